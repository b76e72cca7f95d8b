"""`completion SHELL`: a script that has a shell ask this program what may come next.

The script knows nothing: each press of the key runs `completion --words N -- WORD...`, which prints the
candidates for word N, one a line, or `:files`. So it never is of another version than the program.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, cast

from cloudagent_daemon import config, profile
from cloudagent_daemon.cli.options import PROGRAM, Commands, Here

NAME: Final = "completion"
WORDS: Final = "--words"
FILES: Final = ":files"

_BASH: Final = f"""\
# eval "$({PROGRAM} {NAME} bash)"   in ~/.bashrc
_cloudagent_daemon() {{
    local IFS=$'\\n'
    COMPREPLY=($({PROGRAM} {NAME} {WORDS} "$COMP_CWORD" -- "${{COMP_WORDS[@]}}" 2>/dev/null))
    if [ "${{COMPREPLY[0]-}}" = {FILES} ]; then
        COMPREPLY=()
        compopt -o default
    fi
}}
complete -F _cloudagent_daemon {PROGRAM}
"""
_ZSH: Final = f"""\
#compdef {PROGRAM}
# eval "$({PROGRAM} {NAME} zsh)"   in ~/.zshrc, after compinit
_cloudagent_daemon() {{
    local -a found
    found=("${{(@f)$({PROGRAM} {NAME} {WORDS} $((CURRENT - 1)) -- "${{words[@]}}" 2>/dev/null)}}")
    if [[ "${{found[1]-}}" == {FILES} ]]; then
        _files
    else
        compadd -a found
    fi
}}
compdef _cloudagent_daemon {PROGRAM}
"""
_FISH: Final = f"""\
# {PROGRAM} {NAME} fish > ~/.config/fish/completions/{PROGRAM}.fish
function __cloudagent_daemon
    set -l before (commandline -opc)
    set -l now (commandline -ct)
    set -l found ({PROGRAM} {NAME} {WORDS} (count $before) -- $before "$now" 2>/dev/null)
    if test "$found[1]" = {FILES}
        __fish_complete_path "$now"
    else
        printf '%s\\n' $found
    end
end
complete -c {PROGRAM} -f -a '(__cloudagent_daemon)'
"""
SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

#: Values that are no list, by their placeholder in `--help`.
_PATHS: Final = frozenset({"FILE", "DIR", "PEM"})
#: Of what is printed into somebody's shell: names of ours, and nothing that means more to it.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(NAME, parents=[options])
    parser.add_argument("shell", metavar="SHELL", choices=sorted(SCRIPTS), help="bash, zsh or fish")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    print(SCRIPTS[arguments.shell], end="")
    return 0


def answer(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What a shell is told that asks `N -- WORD...`; nothing if that is no question."""
    number, _, *line = words if len(words) > 1 else ("", "")
    if not number.isdecimal() or not line:
        return []
    at = int(number)
    # bash takes `--profile=fr` for three words.
    before = [word for word in line[1:at] if word != "="]
    now = line[at] if at < len(line) else ""
    return candidates(parser, before, "" if now == "=" else now)


def candidates(parser: argparse.ArgumentParser, before: Sequence[str], now: str) -> list[str]:
    """What may stand for the word `now` after the words `before`, the program's name left out."""
    chosen = [parser]
    for word in before:
        if verb := _verbs(chosen[-1]).get(word):
            chosen.append(verb)
    asks = _option(chosen, before[-1]) if before else None
    if asks is not None and asks.nargs != 0:
        return _values(asks, before, now)
    if now.startswith("-"):
        return _fitting(_flags(chosen[-1]), now)
    choices = [one.choices or () for one in _actions(chosen[-1]) if not one.option_strings]
    return _fitting((str(choice) for each in choices for choice in each), now)


def _values(action: argparse.Action, before: Sequence[str], now: str) -> list[str]:
    here = Here(_named(before))
    known: dict[str, Callable[[], Iterable[str]]] = {
        "--profile": lambda: profile.known(here.environ),
        "--agent-id": lambda: _agents(here),
        "--agent": lambda: _agents(here),
        "--level": lambda: ("debug", "info", "warning", "error"),
        "--driver": lambda: ("builtin", "claude_code"),
    }
    for name in action.option_strings:
        if name in known:
            return _fitting(known[name](), now)
    if action.choices:
        return _fitting(map(str, action.choices), now)
    return [FILES] if action.metavar in _PATHS else []


def _agents(here: Here) -> list[str]:
    """Ids of the workspaces that there are: names of folders, and no file is opened."""
    folders = here.paths.agents_dir.glob("*/.meta")
    return sorted(folder.parent.name for folder in folders if folder.parent.name[:1] != ".")


def _named(before: Sequence[str]) -> argparse.Namespace:
    """The profile that the words name, if it may be called so."""
    named = (value for option, value in pairwise(before) if option == "--profile")
    name = next(named, None)
    try:
        return argparse.Namespace(profile=profile.chosen(name, config.environment()))
    except config.ConfigError:
        return argparse.Namespace(profile=profile.DEFAULT)


def _fitting(found: Iterable[str], now: str) -> list[str]:
    return [one for one in found if one.startswith(now) and _PLAIN.fullmatch(one)]


# argparse has no public way to ask what a parser knows.


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Commands below a parser: the only choices that are a table."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in _actions(parser):
        choices: Any = action.choices
        if isinstance(choices, dict):
            found |= cast("dict[str, argparse.ArgumentParser]", choices)
    return found


def _option(parsers: Sequence[argparse.ArgumentParser], word: str) -> argparse.Action | None:
    for parser in reversed(parsers):
        for action in _actions(parser):
            if word in action.option_strings:
                return action
    return None


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [
        name
        for action in _actions(parser)
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--")
    ]
