"""Processes, one after the other, until one has had the run's turn. `retrying.py` is the rule."""

from collections.abc import Sequence
from typing import Final

import anyio

from cloudagent_daemon.runs.attempt import Seen
from cloudagent_daemon.runs.launches import Launches
from cloudagent_daemon.runs.opening import Opening
from cloudagent_daemon.runs.outcome import Failure, given_up
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.processes import Processes
from cloudagent_daemon.runs.resuming import Resuming
from cloudagent_daemon.runs.retrying import (
    SESSION_FAULTS,
    failed_launch,
    was_not_taken_up,
    worth_another,
)
from cloudagent_daemon.runs.turns import Turns
from cloudagent_daemon.runs.workspace import TurnRecord
from cloudagent_protocol.events import Reason

#: How long to wait after each launch that failed; when they are used up, the message is given up.
RELAUNCH_S: Final = (1.0, 5.0)
#: What is told of a warm process that was gone when the message came to it.
_GONE: Final = "The warm process had ended before it took the message up; another one is started."


class Attempts:
    """Those of one run.

    Args:
        record: what was sent and done so far; it stays the same object.
        relaunch_s: how long to wait after each launch that failed.
    """

    def __init__(
        self,
        stop: StopSignal,
        opening: Opening,
        record: TurnRecord,
        relaunch_s: Sequence[float],
        resuming: Resuming,
        processes: Processes,
        launches: Launches,
        turns: Turns,
    ) -> None:
        self._stop = stop
        self._opening = opening
        self._record = record
        self._relaunch_s = relaunch_s
        self._resuming = resuming
        self._processes = processes
        self._launches = launches
        self._turns = turns
        self._tried = set[Reason]()
        #: How much was sent before; whoever follows is told of it.
        self._sent_before = 0

    async def run(self) -> tuple[Seen, Failure | None]:
        """Until one has had its turn; each cause of a further one counts once.

        Raises:
            DriverError: there is nothing to start.
        """
        self._sent_before = len(self._record.sends)
        session_id, handoff = await self._resuming.chosen()
        warm = await self._processes.take_warm(session_id)
        while not self._stop.requested:
            turn = self._opening.turn(session_id, handoff)
            seen, failed = await self._turns.give(warm, session_id, turn)
            was_warm, warm = warm is not None, None
            if was_warm and was_not_taken_up(seen, turn) and not self._stop.requested:
                await self._launches.tell_retry(Reason.CRASHED, _GONE)
                continue
            again = self._worth_another(seen, session_id)
            if again is not None:
                if again in SESSION_FAULTS:
                    session_id, handoff = None, await self._afresh(again)
                await self._launches.tell_retry(again, seen.end.detail if seen.end else "")
                continue
            failed = failed or failed_launch(seen)
            if failed is None or self._stop.requested:
                return seen, seen.failure
            if not await self._waited_after(failed):
                return seen, given_up(failed, self._record.failed_launches)
        await self._processes.leave(warm)
        return Seen(), None

    def _worth_another(self, seen: Seen, session_id: str | None) -> Reason | None:
        """Why another process follows, which was no reason yet; None if there is none."""
        if self._stop.requested:
            return None
        again = worth_another(
            seen,
            resumed=bool(session_id),
            pictures=bool(self._opening.pictures),
            untouched=self._untouched(seen),
        )
        if again is None or again in self._tried:
            return None
        self._tried.add(again)
        return again

    def _untouched(self, seen: Seen) -> bool:
        """Whether another one does nothing again: it is told what was sent before this run."""
        sends = len(self._record.sends)
        idle = not seen.worked and sends == self._sent_before
        return idle or (not sends and not self._record.worked_since)

    async def _afresh(self, again: Reason) -> str:
        """Gives the session up; returns what a fresh one is told of it."""
        if again is Reason.INVALID_REQUEST:
            # Perhaps its model takes none, or not these: it has the paths.
            self._opening.pictures = []
        return await self._resuming.handoff()

    async def _waited_after(self, failed: Failure) -> bool:
        """Waits before the next launch; returns whether there shall be one."""
        count = await self._launches.failed()
        if count > len(self._relaunch_s):
            return False
        delay_s = self._relaunch_s[count - 1]
        self._tried.discard(Reason.TOOLS_UNAVAILABLE)
        await self._launches.tell_retry(failed.reason, failed.detail, delay_s)
        with anyio.move_on_after(delay_s):
            await self._stop.wait()
        return True
