"""Which program is seen doing what, as docs/drivers.md has it."""

from collections.abc import Callable, Sequence
from typing import Final

from contracts import asking
from contracts.drivers import BEHAVIOURS
from contracts.kits import Kit

assert asking  # has behaviours of its own

_WARM: Final = (
    "the next message in the same process",
    "the first message in a process that waits for it",
    "a stop that its process survives",
)
_LEAVE: Final = (
    "leave to act, asked of a person",
    "leave that is given when its process is gone",
)


def instead(kit: Kit, words: str) -> str | None:
    """What the driver does instead, which is what it does of every message; None: it can."""
    if words in _WARM and not kit.warm:
        return "a process per message"
    if words == "a picture that its model sees" and not kit.sees:
        return "has its path"
    if words == "a message put into its turn" and not kit.steers:
        return "queued"
    if words in _LEAVE and kit.act is None:
        return "asks for none"
    return None


def cell(kit: Kit, words: str) -> str:
    """What is seen, where it is looked at."""
    status = words.partition(":")[0]
    if status.isdigit() and int(status) in kit.reasons:
        return f"as `{kit.reasons[int(status)]}`"
    if words == "429 with its end" and kit.limit is None:
        return "no time told"
    if "session" in words and not kit.resumes:
        return "new, with the history"
    if "all that it started" in words and kit.child is None:
        return "yes; starts nothing"
    return instead(kit, words) or "yes"


def matrix(kits: Sequence[Kit], said: Callable[[Kit, str], str] = cell) -> str:
    """A table in Markdown."""
    head = ["", *(f"`{kit.name}`" for kit in kits)]
    rows = [head, ["---"] * len(head)]
    rows += [[words, *(said(kit, words) for kit in kits)] for words in BEHAVIOURS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
