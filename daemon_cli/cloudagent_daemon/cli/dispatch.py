"""The commands: what there is, dispatch, and errors as three lines.

argparse, and imports inside of bodies: `status` and `--help` shall cost little more than the
interpreter's own start, and typer alone costs ten times that. A command's module is imported when it
is named, and what it imports at its top is of the standard library, or as light.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from cloudagent_daemon.cli import bridge
from cloudagent_daemon.cli.options import (
    CONFIGURATION,
    FAILED,
    INTERRUPTED,
    NOT_LOGGED_IN,
    PROGRAM,
    USAGE,
    CommandError,
    Commands,
    Parser,
    complain,
    shared,
)
from cloudagent_daemon.config import ConfigError, NotLoggedInError

#: What there is, in the order of `--help`: by the module that has it, each command and its line.
_COMMANDS: Final = {
    "login": {"login": "let this machine in"},
    "service": {
        "install-service": "start the daemon now and at every login",
        "uninstall-service": "stop the service and remove it",
    },
    "start": {"start": "run the daemon in the foreground"},
    "stop": {"stop": "end the daemon"},
    "status": {"status": "how the daemon stands"},
    "doctor": {"doctor": "check what a message needs"},
    "probe": {"probe": "what exactly fails on the way to the backend"},
    "logs": {"logs": "what the daemon has written down"},
    "profiles": {"list-profiles": "the connections of this computer"},
    "agent": {"agent": "workspaces of agents"},
    "acp": {"acp": "the built-in agent for an editor (Agent Client Protocol on stdin and stdout)"},
    "completion": {"completion": "what Tab completes, for your shell"},
}
_EXIT_CODES = """\
exit codes:
  0 ok   1 failed or unhealthy   2 usage   3 not running   4 not logged in, or key rejected
  5 backend unreachable   6 already running, or conflict   7 no message came in time (start --once)
  75 restart me   78 configuration error, which a service does not restart on   130 interrupted
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [bridge.NAME]:
        bridge.run(words[1:])
    if words[:2] == ["completion", "--words"]:
        from cloudagent_daemon.cli import completion

        print("\n".join(completion.answer(_parser(words[2:]), words[2:])))
        return 0
    if words == ["help", "exit-codes"]:
        print(_EXIT_CODES, end="")
        return 0
    arguments = _parser(words).parse_args(["--help"] if words == ["help"] else words)
    debug = getattr(arguments, "debug", False)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output, `head` for one, has seen enough.
        sys.stderr.close()
        return FAILED
    except (CommandError, ConfigError) as error:
        if debug:
            raise
        complain(error.what, error.why, error.next_step)
        return _code(error)
    except Exception as error:
        # The edge of the command: a person gets three lines, and the trace when they ask for it.
        if debug:
            raise
        cause = _first(error)
        complain(
            f"{PROGRAM} {arguments.command} ended with a fault of its own",
            f"{type(cause).__name__}: {cause}",
            f"{PROGRAM} {arguments.command} --debug (shows where), and tell us",
        )
        return FAILED


def _first(error: BaseException) -> BaseException:
    """What went wrong, without the groups that task groups wrap it in."""
    match error:
        case BaseExceptionGroup(exceptions=(BaseException() as first, *_)):
            return _first(first)
        case _:
            return error


def _code(error: CommandError | ConfigError) -> int:
    match error:
        case CommandError():
            return error.code
        case NotLoggedInError():
            return NOT_LOGGED_IN
        case ConfigError():
            return USAGE if error.usage else CONFIGURATION


def _parser(words: Sequence[str] = ()) -> Parser:
    """The commands named in `words`, and of the others the line in `--help`."""
    options = shared()
    parser = Parser(
        prog=PROGRAM,
        parents=[options],
        description="Connects this computer's coding agents to a cloudagent backend.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = _Told(parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    for module, names in _COMMANDS.items():
        if names.keys() & words:
            import_module(f"cloudagent_daemon.cli.{module}").add(commands, options)
        else:
            for name in names:
                commands.add_parser(name)
    return parser


class _Told:
    """Where commands add their parsers: adds the line that tells of each in `--help`."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        lines = next(names for names in _COMMANDS.values() if name in names)
        return self._commands.add_parser(name, help=lines[name], **options)


class _Version(argparse.Action):
    def __call__(self, *arguments: object, **options: object) -> None:  # pyright: ignore[reportImplicitOverride] - see cli/options.py
        from cloudagent_protocol.version import DISTRIBUTION

        print(f"{PROGRAM} {DISTRIBUTION}")
        raise SystemExit(0)
