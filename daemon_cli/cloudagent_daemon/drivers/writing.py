"""The text that a model writes, of a program that tells it piece by piece and never as a whole."""

from collections.abc import Iterator
from typing import Final

from cloudagent_daemon.drivers.base import DriverEvent, TextDelta
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.drivers.values import now
from cloudagent_protocol.events import Text

#: Code points that are held of one block; what a message may hold is far less.
_HELD: Final = 400_000


class Writing:
    """Blocks of text, counted from 0: a block ends when something else happens."""

    def __init__(self) -> None:
        self._block = 0
        self._length = 0
        self._pieces: list[str] = []
        #: The last block that is finished.
        self.last = ""

    def write(self, piece: str) -> Iterator[DriverEvent]:
        if piece:
            yield TextDelta(self._block, self._length, piece)
            if self._length < _HELD:
                self._pieces.append(piece[: _HELD - self._length])
            self._length += len(piece)

    def finish(self, whole: str | None = None) -> Iterator[DriverEvent]:
        """The end of the block that is being written; `whole` is its text, if the program says it."""
        text = "".join(self._pieces) if whole is None else whole
        self._pieces, self._length = [], 0
        if text:
            self.last = text
            yield Text(at=now(), block=self._block, text=clip(text, 50_000)[0])
            self._block += 1
