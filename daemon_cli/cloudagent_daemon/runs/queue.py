"""Follows the inbox and runs what is in it: in order, under the machine's cap, until drained.

The inbox is the truth, so a start after a crash is no special case: the queue reads from the
first change, and what an earlier life left behind comes first because it came first.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

import anyio

from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.tables import Waiting
from cloudagent_daemon.process import end_leftover
from cloudagent_daemon.runs.breaker import Breaker
from cloudagent_daemon.runs.limits import Limit, Limits
from cloudagent_daemon.runs.missing import Missing
from cloudagent_daemon.runs.order import Order
from cloudagent_daemon.runs.ports import Parked, Ride, StopSignal, Uplink
from cloudagent_daemon.runs.riding import Riding
from cloudagent_daemon.runs.unrun import only_report, waits_for_people, without_a_run
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.frames import Deliver, DeliveryReport
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId
from cloudagent_protocol.resources import AgentSpec, DeliveryMode, Runtime

logger = logging.getLogger(__name__)

#: Messages whose files are fetched at once.
FETCHES: Final = 4
#: How long a run may take to end after it was told to.
STOP_S: Final = 20.0


class Runs(Protocol):
    """What the queue needs of the runner."""

    async def run(
        self, deliver: Deliver, *, attempt: int, stop: StopSignal, aboard: Sequence[Deliver] = ()
    ) -> Finished | Parked: ...

    async def steer(self, into: DeliveryId, deliver: Deliver, *, attempt: int) -> Ride | None: ...


class RunQueue:
    """One machine's deliveries, from the inbox to their runs' ends.

    Args:
        admit: asked before each start whether the machine has room for it; once it has refused,
            `hold` is to be called when there is room again.
        breaker: leaves agents alone that crash again and again.
        limits: of the accounts that agents use; what is over its limit waits.
        keep: writes limits down, for the next life.
        fetch: brings the files of a message that has some, before it takes a place among the runs.
    """

    def __init__(
        self,
        spool: Spool,
        runner: Runs,
        uplink: Uplink,
        *,
        max_runs: int,
        admit: Callable[[], bool] = lambda: True,
        breaker: Breaker,
        limits: Limits | None = None,
        keep: Callable[[Sequence[Limit]], Awaitable[None]] | None = None,
        fetch: Callable[[Deliver, StopSignal], Awaitable[None]] | None = None,
    ) -> None:
        self._spool = spool
        self._admit = admit
        self._runner = runner
        self._uplink = uplink
        #: Whose messages wait, because it crashes again and again.
        self.breaker = breaker
        #: Whose messages wait, because their account has used up what it may.
        self.limits = limits or Limits({}, lambda: datetime.now(UTC), time.monotonic)
        self._keep = keep
        self._fetch = fetch
        #: What ends the fetching for a delivery; and how many are fetched for at once.
        self._fetches: dict[DeliveryId, StopSignal] = {}
        self._lines = anyio.CapacityLimiter(FETCHES)
        #: Whose messages wait, because their program is not there.
        self.missing = Missing()
        self.order = Order(max_runs, self._withholds)
        #: Deliveries whose run is alive, with since when (Unix seconds).
        self.working: dict[DeliveryId, tuple[Deliver, datetime]] = {}
        #: When each agent's last run ended, in this life of the daemon.
        self.ended: dict[AgentId, datetime] = {}
        self._stops: dict[DeliveryId, StopSignal] = {}
        self._riding = Riding()
        self._draining = False
        self._held: set[str] = set()
        #: Set when the inbox has changed, or there may be something to start for another reason.
        self._look_again = anyio.Event()
        #: Set, and replaced, when something starts, ends or comes in.
        self.changed = anyio.Event()

    async def run(self) -> None:
        """Never returns; cancelling it cancels the runs, whose deliveries stay unfinished."""
        await self._end_leftovers()
        number = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            while True:
                for change in await self._spool.changes_after(number):
                    number = change.number
                    if change.waiting is None:
                        self._forget(change.delivery_id)
                    else:
                        await self._take(change.waiting, tasks)
                self._wake_expired()
                self._start_next(tasks)
                await self._more_to_do()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new, because the daemon ends."""
        return self._draining

    def hold(self, why: str, *, held: bool) -> None:
        """Whether to start nothing for this reason; what runs goes on, and nothing is forgotten."""
        if held:
            self._held.add(why)
        else:
            self._held.discard(why)
            self._look_again.set()

    def lift(self) -> None:
        """Who was left alone after crashes or for a limit is tried at once: a person has had a look."""
        self.breaker.lift()
        self.limits.lift()
        self.missing.lift()
        self._look_again.set()

    def found(self, runtimes: Sequence[Runtime]) -> None:
        """These programs are on the machine: who has waited for one of them goes on."""
        if self.missing.found(runtimes):
            self._look_again.set()

    def _withholds(self, agent_id: AgentId, *, at_work: bool) -> bool:
        return (
            self.breaker.withholds(agent_id, at_work=at_work)
            or self.limits.withholds(agent_id)
            or self.missing.withholds(agent_id)
        )

    @property
    def waits_for(self) -> dict[AgentId, str]:
        """Agents that wait for people, and for what."""
        parked = {one.deliver.agent.id: one.waits_for for one in self.order.parked}
        running = {
            deliver.agent.id: self._stops[delivery_id].waits_for
            for delivery_id, (deliver, _) in self.working.items()
        }
        return {agent_id: what for agent_id, what in (parked | running).items() if what}

    def stop_all(self, actor: str) -> None:
        """Ends what runs."""
        for stop in self._stops.values():
            stop.request(actor)

    async def _follow(self) -> None:
        """Has it looked again at each change of the inbox."""
        number = 0
        while True:
            await self._spool.changed_beyond(number)
            number = self._spool.marks.changes
            self._look_again.set()

    async def _more_to_do(self) -> None:
        """Until the inbox has changed, or a hold, a pause, a limit or a wait has ended."""
        ends = [self.breaker.next_in(), self.limits.next_in(), self._next_expiry_in()]
        pause_s = min((end for end in ends if end is not None), default=math.inf)
        with anyio.move_on_after(pause_s):
            await self._look_again.wait()
        self._look_again = anyio.Event()

    def _wake_expired(self) -> None:
        """What has waited for people for too long is ended by the runner, which says so."""
        for parked in self.order.parked:
            if (parked.asks_until or 0.0) <= time.time():
                self.order.put(parked)

    def _next_expiry_in(self) -> float | None:
        until = [parked.asks_until for parked in self.order.parked if parked.asks_until is not None]
        return max(0.0, min(until) - time.time()) if until else None

    def close(self) -> None:
        """Starts nothing more; what runs goes on, but for what waits for people."""
        self._draining = True
        for stop in self._stops.values():
            stop.draining.set()
        self._notify()

    async def drain(self, timeout_s: float, *, another_life: bool) -> None:
        """Starts nothing more and lets runs finish for `timeout_s`.

        What is not done by then is left to the caller's cancellation, which leaves it unfinished: the
        daemon's next life resumes it. Where there is none (`another_life` is false), it is told to
        stop and its end is reported.
        """
        self.close()
        with anyio.move_on_after(timeout_s):
            await self.idle()
        if another_life:
            return
        for stop in self._stops.values():
            stop.request("the daemon", daemon_stops=True)
        with anyio.move_on_after(STOP_S):
            await self.idle()

    async def idle(self) -> None:
        """Returns when nothing runs."""
        while self._stops:
            await self.changed.wait()

    # --- what the backend wants ---

    async def _take(self, waiting: Waiting, tasks: anyio.abc.TaskGroup) -> None:
        delivery_id = waiting.deliver.delivery_id
        if stop := self._stops.get(delivery_id):
            self._riding.heard(waiting)
            _stop(stop, waiting)
        elif waiting.rides_with is not None:
            self.order.ride(delivery_id)
            self._riding.stay(waiting.rides_with, waiting)
            self._heed_aboard(waiting.rides_with)
        elif waits_for_people(waiting):
            self.order.park(waiting)
            self._heed_aboard(delivery_id)
        elif ending := without_a_run(waiting):
            self.order.remove(delivery_id)
            self._stop_fetching(delivery_id)
            await self._uplink.finish(only_report(waiting.deliver, ending))
        else:
            if waiting.deliver.retry and not self.order.waits(waiting.deliver):
                self.breaker.lift([waiting.deliver.agent.id])
                self.missing.lift([waiting.deliver.agent.id])
            self.limits.know(waiting.deliver.agent)
            self.missing.know(waiting.deliver.agent)
            self.order.put(waiting)
            self._begin_fetching(waiting.deliver, tasks)
            await self._meet(waiting)
        self._notify()

    async def _meet(self, waiting: Waiting) -> None:
        """What a new delivery means for the one that runs in its conversation.

        One that has been launched was marked with the new one's receipt, and is told to stop by that;
        here is met what was not yet.
        """
        new = waiting.deliver
        running = self.order.running_in(new.message.conversation_id)
        if running is None or running.message.id == new.message.id:
            return
        if new.mode is DeliveryMode.INTERRUPT:
            self._stops[running.delivery_id].request(new.message.author.name)
        elif new.mode is DeliveryMode.STEER and not await self._steer(running, waiting):
            await self._uplink.report(
                DeliveryReport(
                    delivery_id=new.delivery_id,
                    at=datetime.now(UTC),
                    reason=Reason.NOT_STEERABLE,
                    detail=f"queued: {running.agent.driver} cannot be steered while it works",
                )
            )

    async def _steer(self, running: Deliver, waiting: Waiting) -> bool:
        """Puts the new one into the turn that is under way; returns whether it could be."""
        into, delivery_id = running.delivery_id, waiting.deliver.delivery_id
        attempt = waiting.attempts + 1
        ride = await self._runner.steer(into, waiting.deliver, attempt=attempt)
        if ride is None or into not in self._stops:
            return False
        self.order.ride(delivery_id)
        self._riding.put_in(into, ride, waiting)
        # They are one run now: who stops one stops both.
        self._stops[delivery_id] = self._stops[into]
        return True

    def _alight(self, delivery_id: DeliveryId) -> list[DeliveryId]:
        """The run is over; what was put into it and not taken up waits for a turn of its own.

        Returns:
            What was taken up, and is over with the run as a rule.
        """
        taken: list[DeliveryId] = []
        for ride, waiting in self._riding.end(delivery_id):
            other = ride.deliver.delivery_id
            del self._stops[other]
            if ride.taken:
                taken.append(other)
            else:
                self.order.ended(other)
                self.order.put(waiting)
        return taken

    async def _go_on_without(self, taken: Sequence[DeliveryId], tasks: anyio.abc.TaskGroup) -> None:
        """What did not end with the run that it was part of: one that has left, or failed with us."""
        for delivery_id in taken:
            waiting = await self._spool.waiting(delivery_id)
            self.order.ended(delivery_id)
            if waiting:
                await self._take(waiting, tasks)

    def _heed_aboard(self, delivery_id: DeliveryId) -> None:
        """A stop of what is part of a turn that has left is one of that turn."""
        parked = self.order.parked_as(delivery_id)
        for one in self._riding.aboard(delivery_id):
            if parked and one.interrupted_by is not None:
                wish = {"interrupted_by": one.interrupted_by, "ended_by": one.ended_by}
                self.order.put(replace(parked, **wish))

    def _forget(self, delivery_id: DeliveryId) -> None:
        self.order.remove(delivery_id)
        if delivery_id not in self._stops:
            self.order.ended(delivery_id)
        for alone in self._riding.forget(delivery_id):
            self.order.ended(alone.deliver.delivery_id)
            self.order.put(alone)
        self._stop_fetching(delivery_id)
        if stop := self._stops.get(delivery_id):
            stop.request("the backend")
        self._notify()

    # --- files ---

    def _begin_fetching(self, deliver: Deliver, tasks: anyio.abc.TaskGroup) -> None:
        if self._fetch and deliver.message.attachments and deliver.delivery_id not in self._fetches:
            self._fetches[deliver.delivery_id] = StopSignal()
            self.order.fetch(deliver.delivery_id)
            tasks.start_soon(self._bring, self._fetch, deliver, tasks)

    def _stop_fetching(self, delivery_id: DeliveryId) -> None:
        if stop := self._fetches.get(delivery_id):
            stop.request("nobody needs it any more")

    async def _bring(
        self,
        fetch: Callable[[Deliver, StopSignal], Awaitable[None]],
        deliver: Deliver,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Whatever comes of it, the run that begins then looks for itself, and tells what is missing."""
        delivery_id = deliver.delivery_id
        try:
            async with self._lines:
                await fetch(deliver, self._fetches[delivery_id])
        except Exception:
            # The edge of a task: a fault of ours here must not end the daemon and all that runs. What
            # comes of it for the message is told by its run, which looks for its files itself.
            logger.exception("files could not be fetched", extra={"action": "fetch"})
        del self._fetches[delivery_id]
        self.order.fetched(delivery_id)
        self._start_next(tasks)

    # --- runs ---

    def _start_next(self, tasks: anyio.abc.TaskGroup) -> None:
        while self._may_start() and (waiting := self.order.next()):
            stop = self._stops[waiting.deliver.delivery_id] = StopSignal()
            _stop(stop, waiting)
            aboard = self._riding.begin(waiting.deliver.delivery_id)
            for one in aboard:
                self._stops[one.deliver.delivery_id] = stop
                _stop(stop, one)
            self.working[waiting.deliver.delivery_id] = (waiting.deliver, datetime.now(UTC))
            tasks.start_soon(self._run, waiting, [one.deliver for one in aboard], tasks)
        self._notify()

    def _may_start(self) -> bool:
        return not self._draining and not self._held and self.order.may_start and self._admit()

    def would_begin(self, agent: AgentSpec, conversation_id: ConversationId) -> bool:
        """Whether a message to this agent would begin at once; it then counts as begun (`admit`)."""
        self.limits.know(agent)
        self.missing.know(agent)
        free = not self._draining and not self._held and self.order.is_idle(conversation_id)
        return free and not self._withholds(agent.id, at_work=False) and self._admit()

    async def _run(
        self, waiting: Waiting, aboard: Sequence[Deliver], tasks: anyio.abc.TaskGroup
    ) -> None:
        deliver = waiting.deliver
        stop = self._stops[deliver.delivery_id]
        parked: Waiting | None = None
        about = {"agent_id": deliver.agent.id, "delivery_id": deliver.delivery_id}
        attempt = waiting.attempts + 1
        began = {"action": "run_started", **about, "attempt": attempt}
        logger.info("%s begins to work", deliver.agent.name, extra=began)
        try:
            finished = await self._runner.run(deliver, attempt=attempt, stop=stop, aboard=aboard)
            if isinstance(finished, Parked):
                logger.info(
                    "%s waits for people", deliver.agent.name, extra={"action": "park", **about}
                )
                parked = await self._spool.waiting(deliver.delivery_id)
                return
            ended = {"action": "run_ended", **about, "outcome": finished.outcome.value}
            logger.info("%s is done", deliver.agent.name, extra=ended)
            self._judge(deliver, finished)
            self.missing.ended(deliver.agent, finished)
            if self.limits.ended(deliver.agent, finished):
                await self._limited(deliver)
        except Exception as error:
            # The edge of a run's task: a fault of ours ends this run, not the daemon.
            logger.exception("a run failed", extra={"action": "run_failed", **about})
            ending = Finished(
                at=datetime.now(UTC),
                outcome=Outcome.FAILED,
                reason=Reason.INTERNAL,
                detail=f"A fault in the daemon ended the run: {type(error).__name__}: {error}",
            )
            await self._uplink.finish(only_report(deliver, ending))
        finally:
            self.order.ended(deliver.delivery_id)
            taken = self._alight(deliver.delivery_id)
            self.ended[deliver.agent.id] = datetime.now(UTC)
            del self._stops[deliver.delivery_id], self.working[deliver.delivery_id]
            if parked:
                # Whoever answered or stopped it while it left is heard here.
                await self._take(parked, tasks)
                self._look_again.set()
            else:
                taken += [
                    one.deliver.delivery_id for one in self._riding.forget(deliver.delivery_id)
                ]
            await self._go_on_without(taken, tasks)
            self._start_next(tasks)

    def _judge(self, deliver: Deliver, finished: Finished) -> None:
        before = self.breaker.paused()
        self.breaker.ended(deliver.agent.id, finished)
        for pause in self.breaker.paused():
            if pause not in before:
                # Whoever waits for the next end of a pause has to look again.
                self._look_again.set()
                about = {"action": "crash_loop", "agent_id": pause.agent_id}
                logger.warning("%s: %s", deliver.agent.name, pause.detail, extra=about)

    async def _limited(self, deliver: Deliver) -> None:
        """Its account gets no turn for now."""
        self._look_again.set()
        if limit := self.limits.limited().get(deliver.agent.id):
            about = {"action": "rate_limit", "agent_id": deliver.agent.id}
            logger.warning("%s: %s", deliver.agent.name, limit.detail, extra=about)
        await self.keep_limits()

    async def keep_limits(self) -> None:
        """Write down which accounts are limited."""
        if self._keep:
            await self._keep(self.limits.all())

    async def _end_leftovers(self) -> None:
        """Ends what earlier lives left running, before a second run of the same can begin."""
        leftovers = await self._spool.leftovers()
        async with anyio.create_task_group() as tasks:
            for left in leftovers:
                tasks.start_soon(end_leftover, left.pid, left.started_at, left.launch_id)
        await self._spool.forget_launches([left.launch_id for left in leftovers])

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


def _stop(stop: StopSignal, waiting: Waiting) -> None:
    """Passes on what people want of the run."""
    if waiting.interrupted_by is not None:
        stop.request(waiting.interrupted_by)
    if waiting.ended_by is not None:
        stop.hurry(waiting.ended_by)
