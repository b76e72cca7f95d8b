"""How every command speaks: results on stdout, talk on stderr, errors in three lines."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, TextIO

from cloudagent import config


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_LOGGED_IN = 4
    UNREACHABLE = 5
    CONFLICT = 6
    CONFIGURATION = 78
    INTERRUPTED = 130


#: What would steer a terminal, and what hides the direction of text; newline and tab stay.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def failure(what: str, why: str, next_step: str) -> None:
    """Say what failed, why, and what to do about it."""
    say(f"{style('error:', '31', sys.stderr)} {safe(what)}")
    say(f"  why:  {safe(why) or 'the server did not say'}")
    say(f"  next: {safe(next_step) or 'run it again with `cloudagent --debug …` for details'}")


def say(line: str) -> None:
    """Talk: what a script does not want to read."""
    print(line, file=sys.stderr, flush=True)


def show(line: str) -> None:
    """The result."""
    print(line, flush=True)


def show_json(kind: str, fields: Mapping[str, Any]) -> None:
    """The result as one object, whose shape `schema` names."""
    show(json.dumps({"schema": f"cloudagent.{kind}/1", **fields}, ensure_ascii=False))


def columns(rows: Sequence[Sequence[str]]) -> None:
    """A table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [safe(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        show(line if number else style(line, "2", sys.stdout))


def safe(text: str) -> str:
    """Text of somebody else, with nothing in it that could steer a terminal."""
    return _UNSAFE.sub("\ufffd", text)


def style(text: str, code: str, stream: TextIO) -> str:
    """Text in an SGR style, where somebody looks at it and wants it."""
    return f"\x1b[{code}m{text}\x1b[0m" if moving(stream) else text


def moving(stream: TextIO) -> bool:
    """Whether colour and movement are welcome on a stream."""
    return stream.isatty() and not config.plain_terminal()
