"""Machine keys on their way in: out of argv at once, from files, standard input or a prompt."""

import os
import sys
from pathlib import Path
from typing import Final

from cloudagent_daemon.cli.options import USAGE, CommandError

_OPTION: Final = "--api-key"
_FDS: Final = "/dev/fd/"
#: Longer ones are no keys, and would not fit the pipe.
_MAX_CHARS: Final = 4_096
_PREFIX: Final = "sk_machine_"


def leave_argv() -> None:
    """Starts this program anew with the key in a pipe, if it stands in argv.

    Whoever lists processes sees argv, for as long as a process lives. So this comes first, before
    any import that takes time.
    """
    words = sys.argv[1:]
    found = _find(words)
    if found is None or not sys.executable:
        return
    first, last, key = found
    if len(key) > _MAX_CHARS:
        return
    reading, writing = os.pipe()
    os.write(writing, key.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    words[first:last] = [f"{_OPTION}-file", f"{_FDS}{reading}"]
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    os.execv(sys.executable, [sys.executable, *before, *words])  # noqa: S606 - ourselves, no shell


def read_key(path: str, *, next_step: str) -> str:
    """The key in a file, in an inherited descriptor, or (`-`) on standard input.

    Raises:
        CommandError: there is none.
    """
    try:
        if path == "-":
            text = sys.stdin.readline()
        elif path.startswith(_FDS):
            with os.fdopen(int(path.removeprefix(_FDS)), encoding="utf-8") as file:
                text = file.read()
        else:
            text = Path(path).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        why = f"{path}: {error}"
        raise CommandError("The machine key cannot be read", why, next_step, USAGE) from error
    return check(text, next_step=next_step)


def ask(server_url: str, *, next_step: str) -> str:
    """The key that a person types or pastes; it is not shown."""
    import getpass

    if not sys.stdin.isatty():
        raise CommandError(
            "The machine key is missing",
            "standard input is no terminal to ask at",
            f"{next_step} --api-key-file -   (with the key on standard input)",
            USAGE,
        )
    return check(getpass.getpass(f"Machine key for {server_url}: "), next_step=next_step)


def check(key: str, *, next_step: str) -> str:
    """`key` without blanks around it, if it looks like one.

    Raises:
        CommandError: it does not; the message shows no more of it than its beginning.
    """
    key = key.strip()
    if not key.startswith(_PREFIX) or not key.isascii() or not key.isprintable():
        seen = f"{key[:6]}…" if key else "nothing"
        raise CommandError(
            "This is no machine key",
            f"got {seen} ({len(key)} characters); keys begin with {_PREFIX}",
            next_step,
            USAGE,
        )
    return key


def _find(words: list[str]) -> tuple[int, int, str] | None:
    """Where a key stands in `words`: from, to, and the key."""
    for index, word in enumerate(words):
        if word == "--":
            return None
        if word == _OPTION and index + 1 < len(words):
            return index, index + 2, words[index + 1]
        if word.startswith(f"{_OPTION}="):
            return index, index + 1, word.removeprefix(f"{_OPTION}=")
    return None
