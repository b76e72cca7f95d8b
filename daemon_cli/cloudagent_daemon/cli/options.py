"""What commands have in common: options that stand before or after the command, and errors."""

import argparse
import sys
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from cloudagent_daemon import config, profile
from cloudagent_daemon.paths import DEFAULT

FAILED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
NOT_LOGGED_IN: Final = 4
UNREACHABLE: Final = 5
CONFLICT: Final = 6
RESTART: Final = 75
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130

PROGRAM: Final = "cloudagent-daemon"


class Commands(Protocol):
    """Where a command adds its parser; its line in `--help` is in `dispatch.py`."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class CommandError(Exception):
    """What failed, why (with the value seen), and the command that comes next."""

    def __init__(self, what: str, why: str, next_step: str, code: int = FAILED) -> None:
        super().__init__(what)
        self.what, self.why, self.next_step, self.code = what, why, next_step, code


def safe(text: str) -> str:
    """Text of somebody else, with nothing in it that could steer a terminal; its lines stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def complain(what: str, why: str, next_step: str) -> None:
    """Says the three lines of an error."""
    print(safe(f"error: {what}\n  why:  {why}\n  next: {next_step}"), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints have three lines too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:  # pyright: ignore[reportImplicitOverride] - `override` of 3.12 would cost 26 ms of typing_extensions here
        complain("The command line cannot be understood", message, f"{self.prog} --help")
        raise SystemExit(USAGE)


class Here:
    """The profile that a command is about, and where its files are."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.environ = config.environment()
        self.profile = profile.chosen(getattr(arguments, "profile", None), self.environ)
        self.paths = profile.paths_of(self.profile, self.environ)
        self.debug: bool = getattr(arguments, "debug", False)

    def shown(self, path: Path) -> str:
        """A path for people: with `~` for their home."""
        home = self.environ.get("HOME")
        inside = home and path.is_relative_to(home)
        return f"~/{path.relative_to(home)}" if inside and home else str(path)

    def command(self, words: str) -> str:
        """A command line that means this profile, for a person to copy."""
        named = "" if self.profile == DEFAULT else f" --profile {self.profile}"
        return f"{PROGRAM} {words}{named}"


def shared() -> argparse.ArgumentParser:
    """Options of every command. Suppressed defaults: the one that was given wins, wherever."""
    options = Parser(add_help=False)
    options.add_argument(
        "--profile",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="which connection of this computer (default: $CLOUDAGENT_DAEMON_PROFILE or default)",
    )
    options.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log more, and show where an error came from",
    )
    return options
