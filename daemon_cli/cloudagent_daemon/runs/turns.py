"""Gives a run's turn to a process: a warm one, or one that is started for it."""

from collections.abc import Callable
from typing import Final

from cloudagent_daemon.bridge.tools import Toolbox
from cloudagent_daemon.drivers.base import Turn
from cloudagent_daemon.mask import UnmaskedError
from cloudagent_daemon.process import SpawnError
from cloudagent_daemon.runs.attempt import Attempt, Seen, UnderWay
from cloudagent_daemon.runs.events import Events
from cloudagent_daemon.runs.launches import Launches
from cloudagent_daemon.runs.launching import Held
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.processes import Processes
from cloudagent_protocol.events import Reason

#: How long a warm process may take to begin its next turn.
_TAKE_UP_S: Final = 10.0


class Turns:
    """Those of one run, one after the other.

    Args:
        hang_timeout_s: silence after which a process is taken for dead.
        toolbox: what the agent's tools do.
        watch: begins to look what changes in the agent's folder; the first call counts.
    """

    def __init__(
        self,
        stop: StopSignal,
        hang_timeout_s: float,
        toolbox: Toolbox,
        watch: Callable[[], None],
        processes: Processes,
        launches: Launches,
        events: Events,
        under_way: UnderWay,
    ) -> None:
        self._stop = stop
        self._hang_timeout_s = hang_timeout_s
        self._toolbox = toolbox
        self._watch = watch
        self._processes = processes
        self._launches = launches
        self._events = events
        self._under_way = under_way

    async def give(
        self, warm: Held | None, session_id: str | None, turn: Turn
    ) -> tuple[Seen, Failure | None]:
        """One turn in a process: a warm one, or one that is started for it, if that can be.

        Raises:
            DriverError: there is nothing to start.
        """
        try:
            held = warm or await self._start(session_id)
        except (SpawnError, UnmaskedError) as error:
            return Seen(), Failure(Reason.SPAWN_FAILED, str(error))
        # One that was started ahead may still be starting.
        take_up_s = _TAKE_UP_S if warm and warm.worker.worked else None
        return await self._in(held, turn, take_up_s, resumed=session_id is not None), None

    async def _start(self, session_id: str | None) -> Held:
        self._watch()  # while the process starts
        return await self._processes.start(self._launches.begin(), session_id, self._launches.keep)

    async def _in(self, held: Held, turn: Turn, take_up_s: float | None, *, resumed: bool) -> Seen:
        kept = False
        try:
            await self._launches.given(held.worker, resumed=resumed)
            held.place.open(self._toolbox)
            self._under_way.attempt = attempt = self._attempt(held, turn, take_up_s)
            self._watch()  # a warm one: not before it has its message
            seen = await attempt.run()
            session_id = seen.end.session_id if seen.end else None
            kept = attempt.kept and self._processes.keep(held, session_id)
            return seen
        finally:
            self._under_way.attempt = None
            if not kept:
                await self._processes.leave(held)

    def _attempt(self, held: Held, turn: Turn, take_up_s: float | None) -> Attempt:
        return Attempt(
            worker=held.worker,
            turn=turn,
            on_event=self._events.take,
            stop=self._stop,
            hang_timeout_s=self._hang_timeout_s,
            decide=self._events.decide,
            on_taken=self._events.taken_up,
            withdrawn=self._events.withdrawn,
            keeps=self._processes.keeps,
            shut=held.place.shut,
            spared=held.tool_servers,
            take_up_s=take_up_s,
        )
