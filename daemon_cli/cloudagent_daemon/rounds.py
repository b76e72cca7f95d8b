"""What no event tells of is looked at by one thread for all who wait, and they wake up only for news.

A machine on batteries pays for each time that a process wakes up. A loop of its own for each watcher,
with a thread for what may block and the way back, was four wake-ups every few seconds; a round is one.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.to_thread import run_sync

#: Between two rounds: what changes is shown in less than 5 s.
EVERY_S: Final = 4.5


@dataclass(eq=False)
class _Wait:
    changed: Callable[[], bool]
    over: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    def is_over(self) -> bool:
        try:
            return self.changed()
        except Exception as error:  # noqa: BLE001  whoever waits is given it
            self.error = error
            return True


class Rounds:
    """Those of one daemon. Somebody must `run` them; until then nobody who waits goes on.

    Args:
        every_s: between two of them.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        #: Changed in the event loop only; the thread looks at copies.
        self._waits: list[_Wait] = []

    async def run(self) -> None:
        """Until cancelled."""
        over, own = threading.Event(), anyio.CapacityLimiter(1)
        try:
            await run_sync(
                self._go_round,
                over,
                asyncio.get_running_loop(),
                abandon_on_cancel=True,
                limiter=own,
            )
        finally:
            over.set()

    async def until(self, changed: Callable[[], bool]) -> None:
        """Returns once `changed` is true in a round.

        It is asked in the thread of the rounds, where it may block, and holds up the others then.
        Raises what `changed` raises.
        """
        wait = _Wait(changed)
        self._waits.append(wait)
        try:
            await wait.over.wait()
        finally:
            self._waits.remove(wait)
        if wait.error:
            raise wait.error

    def _go_round(self, over: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        while not over.wait(self._every_s):
            for wait in tuple(self._waits):
                if wait.is_over() and not over.is_set():
                    loop.call_soon_threadsafe(wait.over.set)
