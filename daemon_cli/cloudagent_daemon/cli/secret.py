"""Machine keys on their way in: from files, standard input or a prompt."""

import getpass
import os
import sys
from pathlib import Path
from typing import Final

from cloudagent_daemon.cli.main import FDS
from cloudagent_daemon.cli.options import USAGE, CommandError

_PREFIX: Final = "sk_machine_"


def read_key(path: str, *, next_step: str) -> str:
    """The key in a file, in an inherited descriptor, or (`-`) on standard input.

    At a terminal `-` asks for it without showing it.

    Raises:
        CommandError: there is none.
    """
    try:
        if path == "-" and sys.stdin.isatty():
            text = getpass.getpass("Machine key (not shown): ")
        elif path == "-":
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


def was_in_argv(path: str | None) -> bool:
    """Whether it stands for an `--api-key` that `leave_argv` has taken away."""
    return path is not None and path.startswith(FDS)


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
