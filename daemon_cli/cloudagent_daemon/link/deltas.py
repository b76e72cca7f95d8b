"""The text that models are writing, on its way to whoever watches; a rule without I/O.

It may be late, coalesced, or lost: the finished text follows as a run's `text` event. What is kept
here is the unfinished block of each live run, so that a new connection can begin with all of it.
"""

from dataclasses import dataclass
from typing import Final

import anyio

from cloudagent_protocol.events import Finished, Text
from cloudagent_protocol.frames import Delta, RunReport
from cloudagent_protocol.ids import RunId

#: Characters of one block that are kept; what is beyond comes with the finished text.
MAX_CHARS: Final = 100_000


@dataclass
class _Block:
    first: Delta
    text: str
    sent: int = 0


class Deltas:
    """At most one unfinished block for each run."""

    def __init__(self) -> None:
        self._blocks: dict[RunId, _Block] = {}
        self._news = anyio.Event()

    def add(self, delta: Delta) -> None:
        """A piece that came; one that does not join on is left out (docs/protocol.md §5)."""
        block = self._blocks.get(delta.run_id)
        if block is None or delta.block > block.first.block:
            if delta.offset:
                return
            block = self._blocks[delta.run_id] = _Block(delta, "")
        if (
            delta.block == block.first.block
            and delta.offset == len(block.text)
            and delta.offset + len(delta.text) <= MAX_CHARS
        ):
            block.text += delta.text
            self._news.set()

    def reported(self, report: RunReport) -> None:
        """A finished text makes its block's pieces worthless, as does the run's end."""
        block = self._blocks.get(report.run_id)
        match report.event:
            case Text(block=number) if block and number >= block.first.block:
                del self._blocks[report.run_id]
            case Finished():
                self._blocks.pop(report.run_id, None)
            case _:
                pass

    def begin_again(self) -> None:
        """A new connection: its other end may know nothing."""
        for block in self._blocks.values():
            block.sent = 0
            self._news.set()

    async def wait(self) -> None:
        """Returns when `take` has something."""
        await self._news.wait()

    def take(self) -> list[Delta]:
        """What was added since the last time, joined to one piece a run."""
        self._news = anyio.Event()
        taken = list[Delta]()
        for block in self._blocks.values():
            if block.sent < len(block.text):
                rest = block.text[block.sent :]
                taken.append(block.first.model_copy(update={"offset": block.sent, "text": rest}))
                block.sent = len(block.text)
        return taken
