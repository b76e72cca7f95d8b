"""What an agent asks a person, on a line: for a ladder, a list, a status."""

from typing import Final

from cloudagent_protocol.events import ApprovalRequested, Question

#: Characters of a command or a question that a line shows; the request itself has all of it.
SHOWN: Final = 80
_TELLING: Final = ("command", "file_path", "path", "url")


def summary(event: ApprovalRequested | Question) -> str:
    """`Bash “alembic upgrade head”`, or the question."""
    if isinstance(event, Question):
        return clipped(event.question)
    words = (event.input.get(name) for name in _TELLING)
    what = next((word for word in words if isinstance(word, str) and word), "")
    return f"{event.tool} “{clipped(what)}”" if what and what != event.tool else event.tool


def clipped(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
