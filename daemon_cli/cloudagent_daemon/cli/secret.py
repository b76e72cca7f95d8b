"""Machine keys on their way in: from files, standard input or a prompt."""

import os
import sys
from pathlib import Path
from typing import Final

from cloudagent_daemon.cli.main import FDS
from cloudagent_daemon.cli.options import USAGE, CommandError

_PREFIX: Final = "sk_machine_"


def read_key(path: str, *, next_step: str) -> str:
    """The key in a file, in an inherited descriptor, or (`-`) on standard input.

    Raises:
        CommandError: there is none.
    """
    try:
        if path == "-":
            text = sys.stdin.readline()
        elif path.startswith(FDS):
            with os.fdopen(int(path.removeprefix(FDS)), encoding="utf-8") as file:
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
