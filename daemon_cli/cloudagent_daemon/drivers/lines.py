"""Bytes of a pipe to lines, and lines to JSON: bounded, and unmoved by whatever a CLI prints."""

import json
import re
from typing import Any, Final, cast

#: A longer line is skipped; tool results of 10 MB on one line are real.
MAX_LINE_BYTES: Final = 16 * 1_048_576
#: Levels of objects and lists that are kept of a line's JSON; what lies deeper is left out. Every
#: library on the way to the page has a limit of its own, and the lowest is somewhere above 200.
MAX_DEPTH: Final = 60
#: What JSON can spell and nobody behind us carries: halves of surrogate pairs, and NUL.
_ODD: Final = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
#: Characters that a tool's result keeps of its start, and of its end.
KEEP_CHARS: Final = 15_000


class LineSplitter:
    """Cuts a stream of bytes into lines, holding at most `max_bytes` of an unfinished one."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._skipping = False
        #: How many lines were too long and left out.
        self.skipped = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        *complete, rest = data.split(b"\n")
        lines: list[bytes] = []
        for piece in complete:
            self._hold(piece)
            if (line := self._take()) is not None:
                lines.append(line)
        self._hold(rest)
        return lines

    def flush(self) -> list[bytes]:
        """What stands after the last line's end; to be called at the end of the stream."""
        line = self._take()
        return [line] if line else []

    def _hold(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        self._held += piece
        if len(self._held) > self._max_bytes:
            self._skipping = True
            self._held.clear()

    def _take(self) -> bytes | None:
        line = None if self._skipping else bytes(self._held).removesuffix(b"\r")
        self.skipped += self._skipping
        self._held.clear()
        self._skipping = False
        return line


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None if it holds none.

    Bytes that are not UTF-8 become U+FFFD, and so do NUL and lone surrogates, which JSON can spell
    but not everybody can carry any further. What is nested more than `MAX_DEPTH` deep is left out.
    """
    text = line.decode("utf-8", "replace")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    # A walk through a value of 10 MB takes a while, and is hardly ever needed.
    if text.count("{") + text.count("[") > MAX_DEPTH or _ODD.search(text):
        value = _portable(value, MAX_DEPTH)
    return cast("dict[str, Any]", value)


def clip(text: str, keep: int = KEEP_CHARS) -> tuple[str, bool]:
    """The text, or its first and last `keep` characters with a note between; and whether it was cut."""
    if len(text) <= 2 * keep:
        return text, False
    left_out = len(text) - 2 * keep
    return f"{text[:keep]}\n[… {left_out} characters left out …]\n{text[-keep:]}", True


def _portable(value: Any, depth: int) -> Any:
    match value:
        case str():
            text = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return text.replace("\0", "\ufffd")
        case dict() | list() if not depth:
            return "[… nested too deeply …]"
        case dict():
            items = cast("dict[str, Any]", value).items()
            return {_portable(key, 1): _portable(inner, depth - 1) for key, inner in items}
        case list():
            return [_portable(inner, depth - 1) for inner in cast("list[Any]", value)]
        case _:
            return value
