"""The queue over a real spool, with a runner and an uplink that tests can watch."""

import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil

from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.tables import Leftover
from cloudagent_daemon.runs.breaker import CRASHES, Breaker
from cloudagent_daemon.runs.limits import Limit, Limits
from cloudagent_daemon.runs.ports import Launch, Ride, Said, StopSignal, UplinkError
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.unrun import MAX_ATTEMPTS
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Finished, Outcome, Question, Reason
from cloudagent_protocol.frames import (
    AgentEntry,
    Decide,
    Deliver,
    DeliveredMessage,
    DeliveryReport,
    Delta,
    FindAgent,
    FoundAgent,
    Interrupt,
    ListAgents,
    ListMessages,
    Retried,
    RunReport,
    decode,
)
from cloudagent_protocol.ids import (
    AgentId,
    ApprovalId,
    ConversationId,
    DeliveryId,
    MessageId,
    new_attachment_id,
    new_run_id,
)
from cloudagent_protocol.resources import AgentSpec, Author, DeliveryMode, Runtime


def delivery(
    number: int,
    conversation: str = "conv_1",
    agent: str = "agent_1",
    mode: DeliveryMode = DeliveryMode.QUEUE,
) -> Deliver:
    return Deliver(
        seq=number,
        delivery_id=DeliveryId(f"dlv_{number}"),
        delivery_seq=-number if mode is DeliveryMode.INTERRUPT else number,
        mode=mode,
        agent=AgentSpec(id=AgentId(agent), name="Ada", driver="scripted"),
        message=DeliveredMessage(
            id=MessageId(f"msg_{number}"),
            conversation_id=ConversationId(conversation),
            author=Author(type="user", id="usr_1", name="Ana"),
            text="hello",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    )


def _ending(outcome: Outcome, reason: Reason | None = None) -> Finished:
    return Finished(
        seq=1, at=datetime.now(UTC), outcome=outcome, reason=reason, detail="killed by SIGSEGV"
    )


def a_question(deliver: Deliver) -> RunReport:
    now = datetime.now(UTC)
    later = now + timedelta(days=1)
    return RunReport(
        run_id=new_run_id(),
        agent_id=deliver.agent.id,
        conversation_id=deliver.message.conversation_id,
        delivery_ids=[deliver.delivery_id],
        event=Question(
            seq=1, at=now, approval_id=ApprovalId("apr_1"), question="?", expires_at=later
        ),
    )


def an_answer(number: int) -> Decide:
    return Decide(
        seq=number, approval_id=ApprovalId("apr_1"), delivery_id=DeliveryId("dlv_1"),
        decision="once", answer="!", actor="Ana", decided_at=datetime.now(UTC),
    )  # fmt: skip


#: Pauses nobody.
NEVER = Breaker(time.monotonic, 0)
CRASH = _ending(Outcome.FAILED, Reason.CRASHED)


class World:
    """A runner whose runs end when the test says so, and the uplink over the spool."""

    #: As an uplink: everything is to be reported.
    full = False

    def __init__(
        self, spool: Spool, *, max_runs: int = 5, breaker: Breaker = NEVER, **more: Any
    ) -> None:
        self.spool = spool
        self.started: list[tuple[str, int]] = []
        self.stopped: list[tuple[str, str, bool]] = []
        self.endings: list[RunReport] = []
        self.fault: Exception | None = None
        #: Whether runs end when they are asked to, and who has ended those at once that do not.
        self.heeds = True
        self.ended_by: list[str | None] = []
        #: How runs end, where not with a reply.
        self.verdicts: dict[str, Finished] = {}
        self.queue = RunQueue(spool, self, self, max_runs=max_runs, breaker=breaker, **more)
        #: Whether what is under way takes a message in, and those that were.
        self.steers = False
        self.rides: list[Ride] = []
        #: What was part of the turns that went on, run by run.
        self.aboard: list[list[DeliveryId]] = []
        self._ends: dict[str, anyio.Event] = {}
        self._news = anyio.Event()

    def end(self, number: int, verdict: Finished | None = None) -> None:
        if verdict:
            self.verdicts[f"dlv_{number}"] = verdict
        self._ends[f"dlv_{number}"].set()

    async def steer(self, into: DeliveryId, deliver: Deliver, *, attempt: int) -> Ride | None:
        if not self.steers:
            return None
        self.rides.append(Ride(deliver))
        return self.rides[-1]

    async def waits(self, launch_id: str, pid: int, started_at: float) -> None:
        raise NotImplementedError

    async def gone(self, launch_id: str) -> None:
        raise NotImplementedError

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        raise NotImplementedError

    async def until(self, *started: int) -> None:
        wanted = [f"dlv_{number}" for number in started]
        with anyio.fail_after(5):
            while [name for name, _ in self.started] != wanted:
                await self._news.wait()

    async def until_ended(self, count: int) -> list[Finished]:
        with anyio.fail_after(5):
            while len(self.endings) < count:
                await self._news.wait()
        return [report.event for report in self.endings if isinstance(report.event, Finished)]

    # --- the runner ---

    async def run(
        self, deliver: Deliver, *, attempt: int, stop: StopSignal, aboard: Sequence[Deliver] = ()
    ) -> Finished:
        self._ends[deliver.delivery_id] = anyio.Event()
        self.aboard.append([one.delivery_id for one in aboard])
        self.started.append((deliver.delivery_id, attempt))
        self._notify()
        if self.fault:
            raise self.fault
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await stop.wait()
                self.stopped.append((deliver.delivery_id, stop.actor, stop.daemon_stops))
                if not self.heeds:
                    await stop.now.wait()
                    self.ended_by.append(stop.ended_by)
                self._ends[deliver.delivery_id].set()

            tasks.start_soon(watch)
            await self._ends[deliver.delivery_id].wait()
            tasks.cancel_scope.cancel()
        finished = self.verdicts.get(deliver.delivery_id) or _ending(Outcome.REPLIED)
        await self.finish(self.a_report(deliver, finished, [deliver.delivery_id]))
        return finished

    def a_report(self, deliver: Deliver, ending: Finished, ids: list[DeliveryId]) -> RunReport:
        return RunReport(
            run_id=new_run_id(),
            agent_id=deliver.agent.id,
            conversation_id=deliver.message.conversation_id,
            delivery_ids=ids,
            event=ending,
        )

    async def at_rest(self) -> None:
        """Until nothing follows any more from what the spool holds: some rounds through its thread."""
        for _ in range(5):
            await self.spool.held()
            await anyio.wait_all_tasks_blocked()

    # --- the uplink ---

    async def report(self, frame: Said) -> None:
        await self.spool.append(frame)

    async def finish(self, frame: RunReport) -> None:
        await self.spool.finish(frame)
        self.endings.append(frame)
        self._notify()

    async def launched(self, launch: Launch) -> None:
        raise AssertionError

    def delta(self, frame: Delta) -> None:
        raise AssertionError

    async def list_messages(self, query: ListMessages) -> list[dict[str, Any]]:
        raise AssertionError

    async def list_agents(self, query: ListAgents) -> list[AgentEntry]:
        raise AssertionError

    async def find_agent(self, query: FindAgent) -> FoundAgent:
        raise AssertionError

    def _notify(self) -> None:
        self._news.set()
        self._news = anyio.Event()


@asynccontextmanager
async def queue_over(
    spool: Spool, *, max_runs: int = 5, breaker: Breaker = NEVER, **more: Any
) -> AsyncGenerator[World]:
    world = World(spool, max_runs=max_runs, breaker=breaker, **more)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.queue.run)
        yield world
        tasks.cancel_scope.cancel()


async def test_messages_of_a_conversation_run_one_after_the_other() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2)], 2)
        await world.until(1)
        world.end(1)
        await world.until(1, 2)


async def test_the_cap_holds_and_a_free_place_is_used_at_once() -> None:
    async with open_spool(None) as spool, queue_over(spool, max_runs=2) as world:
        await spool.receive([delivery(n, f"conv_{n}", f"agent_{n}") for n in (1, 2, 3)], 3)
        await world.until(1, 2)
        world.end(2)
        await world.until(1, 2, 3)


async def test_what_an_earlier_life_left_is_run_again_as_a_further_attempt(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.receive([delivery(1), delivery(2, "conv_2")], 2)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 2**22 - 1, 1.0), 1)
    async with open_spool(tmp_path / "state.db") as spool, queue_over(spool) as world:
        await world.until(1, 2)
        assert world.started == [("dlv_1", 2), ("dlv_2", 1)]
        assert await spool.leftovers() == []


async def test_a_process_of_an_earlier_life_is_ended_before_its_message_runs_again() -> None:
    program = "import time; time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "CLOUDAGENT_LAUNCH_ID": "l1"}
    )
    try:
        born = psutil.Process(child.pid).create_time()
        async with open_spool(None) as spool:
            await spool.receive([delivery(1)], 1)
            await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", child.pid, born), 1)
            async with queue_over(spool) as world:
                await world.until(1)
                assert child.poll() is not None
    finally:
        child.kill()
        child.wait()


async def test_a_message_that_waits_is_cancelled_without_a_run() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2)], 2)
        await world.until(1)
        await spool.receive([Interrupt(seq=3, delivery_id=DeliveryId("dlv_2"), actor="Ana")], 3)
        [finished] = await world.until_ended(1)
        assert (finished.outcome, finished.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
        assert "Ana" in finished.detail
        world.end(1)
        await world.until_ended(2)
        assert world.started == [("dlv_1", 1)]


async def test_a_message_and_its_interrupt_in_one_batch_never_run() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        interrupt = Interrupt(seq=2, delivery_id=DeliveryId("dlv_1"), actor="Ana")
        await spool.receive([delivery(1), interrupt], 2)
        [finished] = await world.until_ended(1)
        assert finished.outcome == Outcome.CANCELLED
        assert world.started == []


async def test_an_interrupt_of_what_an_earlier_life_began_is_the_runners_to_judge() -> None:
    async with open_spool(None) as spool:
        interrupt = Interrupt(seq=2, delivery_id=DeliveryId("dlv_1"), actor="Ana")
        await spool.receive([delivery(1), interrupt], 2)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 0, 0.0), 1)
        async with queue_over(spool) as world:
            await world.until_ended(1)
            assert world.started == [("dlv_1", 2)]
            assert world.stopped == [("dlv_1", "Ana", False)]


async def test_a_run_that_is_interrupted_is_told_by_whom() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        await spool.receive([Interrupt(seq=2, delivery_id=DeliveryId("dlv_1"), actor="Ana")], 2)
        await world.until_ended(1)
        assert world.stopped == [("dlv_1", "Ana", False)]


async def test_who_was_asked_to_stop_may_be_ended_at_once() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        world.heeds = False
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        await spool.receive([Interrupt(seq=2, delivery_id=DeliveryId("dlv_1"), actor="Ana")], 2)
        bo = Interrupt(seq=3, delivery_id=DeliveryId("dlv_1"), actor="Bo", now=True)
        await spool.receive([bo], 3)
        await world.until_ended(1)
        assert world.stopped == [("dlv_1", "Ana", False)]
        assert world.ended_by == ["Bo"]


async def test_a_message_that_interrupts_stops_its_conversation_and_runs_next() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2), delivery(3, "conv_3", "agent_3")], 3)
        await world.until(1, 3)
        await spool.receive([delivery(4, mode=DeliveryMode.INTERRUPT)], 4)
        await world.until(1, 3, 4)
        assert world.stopped == [("dlv_1", "Ana", False)]
        world.end(4)
        await world.until(1, 3, 4, 2)


async def test_what_was_launched_is_stopped_even_if_the_daemon_dies_before_it_does_so(
    tmp_path: Path,
) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 2**22 - 1, 1.0), 1)
        await spool.receive([delivery(3, mode=DeliveryMode.INTERRUPT)], 3)
    async with open_spool(tmp_path / "state.db") as spool, queue_over(spool) as world:
        await world.until(3)
        world.end(3)
        await world.until(3, 1, 2)
        assert world.stopped == [("dlv_1", "Ana", False)]


async def test_a_message_to_two_agents_does_not_interrupt_itself() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        one = delivery(1, mode=DeliveryMode.INTERRUPT)
        other = delivery(2, agent="agent_2", mode=DeliveryMode.INTERRUPT)
        other.message.id = one.message.id
        await spool.receive([one], 1)
        await world.until(1)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 2**22 - 1, 1.0), 1)
        await spool.receive([other], 2)
        await world.at_rest()
        assert world.stopped == []
        world.end(1)
        await world.until(1, 2)


async def test_a_message_that_is_to_steer_is_queued_and_its_trace_says_so() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1, mode=DeliveryMode.STEER)], 1)
        await world.until(1)
        assert await spool.frames_after(0, 10) == [], "there was nothing to steer"
        await spool.receive([delivery(2, mode=DeliveryMode.STEER)], 2)
        with anyio.fail_after(5):
            await spool.grown_beyond(0)
        [(_, text)] = await spool.frames_after(0, 10)
        frame = decode(text)
        assert isinstance(frame, DeliveryReport)
        assert (frame.delivery_id, frame.reason) == ("dlv_2", Reason.NOT_STEERABLE)
        assert frame.detail == "queued: scripted cannot be steered while it works"
        world.end(1)
        await world.until(1, 2)


async def test_a_message_that_was_put_into_a_turn_has_no_run_of_its_own() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        world.steers = True
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        await spool.receive([delivery(2, mode=DeliveryMode.STEER), delivery(3)], 3)
        with anyio.fail_after(5):
            while not world.rides:
                await world.queue.changed.wait()
        world.rides[0].taken = True
        both = [DeliveryId("dlv_1"), DeliveryId("dlv_2")]  # as the run does
        await spool.finish(world.a_report(delivery(1), _ending(Outcome.REPLIED), both))
        world.end(1)
        await world.until(1, 3)
        assert await spool.frames_after(0, 10)  # and nothing says that it had to be queued
        assert not any("not_steerable" in text for _, text in await spool.frames_after(0, 10))


async def test_what_was_put_in_and_not_taken_up_has_its_turn_next_and_a_stop_is_for_both() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        world.steers = True
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        await spool.receive([delivery(2, mode=DeliveryMode.STEER)], 2)
        with anyio.fail_after(5):
            while not world.rides:
                await world.queue.changed.wait()
        world.end(1)
        await world.until(1, 2)
        await spool.receive([delivery(3, mode=DeliveryMode.STEER)], 3)
        with anyio.fail_after(5):
            while len(world.rides) < 2:
                await world.queue.changed.wait()
        await spool.receive([Interrupt(seq=4, delivery_id=DeliveryId("dlv_3"), actor="Ana")], 4)
        with anyio.fail_after(5):
            while not world.stopped:
                await world.queue.changed.wait()
        assert world.stopped[0][:2] == ("dlv_2", "Ana")


async def a_turn_of_two_that_has_left(spool: Spool) -> None:
    """Of dlv_1, which asks people, and of dlv_2, which was put into it."""
    await spool.receive([delivery(1), delivery(2), delivery(3)], 3)
    await spool.append(a_question(delivery(1)))
    await spool.ride(DeliveryId("dlv_2"), DeliveryId("dlv_1"))


async def test_what_is_part_of_a_turn_that_left_goes_on_with_it() -> None:
    async with open_spool(None) as spool:
        await a_turn_of_two_that_has_left(spool)
        async with queue_over(spool) as world:
            await world.at_rest()
            assert world.started == []
            await spool.receive([an_answer(4)], 4)
            await world.until(1)
            # Whoever stops one of them stops both.
            await spool.receive([Interrupt(seq=5, delivery_id=DeliveryId("dlv_2"), actor="Ana")], 5)
            await world.until(1, 3)
            assert world.aboard == [["dlv_2"], []]
            assert world.stopped[0][:2] == ("dlv_1", "Ana")


async def test_of_a_turn_that_left_and_is_dropped_or_fails_with_us_the_other_has_its_own() -> None:
    async with open_spool(None) as spool:
        await a_turn_of_two_that_has_left(spool)
        async with queue_over(spool) as world:
            await world.at_rest()
            await spool.drop([DeliveryId("dlv_1")])
            await world.until(2)
            world.end(2)
            await world.until(2, 3)
    async with open_spool(None) as spool:
        await a_turn_of_two_that_has_left(spool)
        async with queue_over(spool) as world:
            await world.at_rest()
            world.fault = RuntimeError("for the test")
            await spool.receive([an_answer(4)], 4)
            await world.until_ended(3)
            assert [report.delivery_ids for report in world.endings] == [
                [f"dlv_{number}"] for number in (1, 2, 3)
            ]


async def test_what_the_backend_drops_is_not_run() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2), delivery(3)], 3)
        await world.until(1)
        await spool.drop([DeliveryId("dlv_2")])
        world.end(1)
        await world.until(1, 3)


async def test_what_an_earlier_version_had_handled_ends_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"processed": ["msg_1"]}')
    async with (
        open_spool(tmp_path / "state.db", tmp_path / "state.json") as spool,
        queue_over(spool) as world,
    ):
        await spool.receive([delivery(1)], 1)
        assert [f.outcome for f in await world.until_ended(1)] == [Outcome.SILENT]


async def test_a_message_that_takes_the_daemon_down_again_and_again_is_given_up() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        gone = Leftover("l1", 2**22 - 1, 1.0)
        await spool.record_launch(DeliveryId("dlv_1"), gone, MAX_ATTEMPTS)
        async with queue_over(spool) as world:
            await world.until(2)
            [finished] = await world.until_ended(1)
            assert (finished.outcome, finished.reason) == (Outcome.DEAD, Reason.CRASHED)


async def test_a_fault_of_the_runner_fails_its_message_and_no_other() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        world.fault = ValueError("broken")
        await spool.receive([delivery(1)], 1)
        [finished] = await world.until_ended(1)
        assert (finished.outcome, finished.reason) == (Outcome.FAILED, Reason.INTERNAL)
        world.fault = None
        await spool.receive([delivery(2)], 2)
        await world.until(1, 2)


async def test_a_drain_lets_runs_finish_and_starts_nothing_more() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2)], 2)
        await world.until(1)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(world.queue.drain, 60.0, another_life=False))
                world.end(1)
        assert world.stopped == []
        assert world.started == [("dlv_1", 1)]


async def test_a_last_drain_stops_what_does_not_finish_in_time() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        with anyio.fail_after(5):
            await world.queue.drain(0.0, another_life=False)
        assert world.stopped == [("dlv_1", "the daemon", True)]


async def test_what_does_not_finish_in_time_is_left_for_the_next_life_to_resume() -> None:
    async with open_spool(None) as spool:
        async with queue_over(spool) as world:
            await spool.receive([delivery(1)], 1)
            await world.until(1)
            with anyio.fail_after(5):
                await world.queue.drain(0.0, another_life=True)
            assert world.stopped == []
        async with queue_over(spool) as next_life:
            await next_life.until(1)


async def test_cancelling_the_queue_leaves_its_messages_unfinished() -> None:
    async with open_spool(None) as spool:
        async with queue_over(spool) as world:
            await spool.receive([delivery(1)], 1)
            await world.until(1)
        assert [change.delivery_id for change in await spool.changes_after(0)] == ["dlv_1"]
        assert world.endings == []


def long_pauses() -> Breaker:
    return Breaker(time.monotonic, 3_600.0)


async def crash(world: World, first: int, *numbers: int) -> None:
    """Messages that crash one after the other, of which the first is running."""
    await world.until(*range(1, first + 1))
    for number in (first, *numbers):
        await world.until(*range(1, number + 1))
        world.end(number, CRASH)
        await world.until_ended(number)


async def test_an_agent_that_crashes_again_and_again_is_left_alone_and_loses_nothing() -> None:
    numbers = list(range(1, CRASHES + 3))
    now = [0.0]
    breaker = Breaker(lambda: now[0], 0.2)
    async with open_spool(None) as spool, queue_over(spool, breaker=breaker) as world:
        await spool.receive([delivery(n) for n in numbers], numbers[-1])
        await crash(world, *numbers[:CRASHES])
        assert [pause.agent_id for pause in breaker.paused()] == ["agent_1"]
        # Another agent works on meanwhile.
        await spool.receive([delivery(90, "conv_90", "agent_2")], 90)
        await world.until(*numbers[:CRASHES], 90)
        assert world.queue.order.queued(AgentId("agent_1")) == 2
        now[0] = 0.2  # the pause ends by itself, in the old order
        await world.until(*numbers[:CRASHES], 90, CRASHES + 1)


async def test_a_retry_of_a_person_has_a_paused_agent_tried_at_once_and_in_order() -> None:
    async with open_spool(None) as spool, queue_over(spool, breaker=long_pauses()) as world:
        await spool.receive([delivery(n) for n in range(1, 5)], 4)
        await crash(world, 1, 2, 3)
        assert world.queue.breaker.paused()
        again = Retried(delivery_id=DeliveryId("dlv_1"), actor="Ana", outcome="failed")
        retry = delivery(5).model_copy(update={"retry": again})
        await spool.receive([retry], 5)
        await world.until(1, 2, 3, 4)
        world.end(4)
        await world.until(1, 2, 3, 4, 5)
        assert world.queue.breaker.paused() == []


async def test_a_look_at_the_machine_ends_all_pauses() -> None:
    async with open_spool(None) as spool, queue_over(spool, breaker=long_pauses()) as world:
        await spool.receive([delivery(n) for n in range(1, 5)], 4)
        await crash(world, 1, 2, 3)
        world.queue.lift()
        await world.until(1, 2, 3, 4)


async def test_what_waits_for_a_paused_agent_can_be_taken_back() -> None:
    async with open_spool(None) as spool, queue_over(spool, breaker=long_pauses()) as world:
        await spool.receive([delivery(n) for n in range(1, 5)], 4)
        await crash(world, 1, 2, 3)
        await spool.receive([Interrupt(seq=5, delivery_id=DeliveryId("dlv_4"), actor="Ana")], 5)
        assert (await world.until_ended(4))[-1].outcome == Outcome.CANCELLED


async def test_a_missing_program_fails_one_message_and_the_rest_waits_for_it() -> None:
    gone = _ending(Outcome.FAILED, Reason.RUNTIME_MISSING)
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(n) for n in (1, 2, 3)], 3)
        await world.until(1)
        world.end(1, gone)
        await world.until_ended(1)
        await spool.receive([delivery(4, "conv_4", "agent_2")], 4)
        await world.until(1, 4)  # another agent works on
        world.queue.found([Runtime(name="scripted", problem="still gone")])
        await world.at_rest()
        assert world.queue.order.queued(AgentId("agent_1")) == 2
        world.queue.found([Runtime(name="scripted")])
        await world.until(1, 4, 2)


async def test_an_account_at_its_limit_keeps_what_waits_in_order_until_the_end_of_that() -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    kept: list[list[str]] = []

    async def keep(limits: Sequence[Limit]) -> None:
        kept.append([limit.driver for limit in limits])

    limits = Limits({}, lambda: now[0], time.monotonic)
    until = now[0] + timedelta(hours=1)
    limited = _ending(Outcome.FAILED, Reason.RATE_LIMIT).model_copy(update={"resets_at": until})
    async with open_spool(None) as spool, queue_over(spool, limits=limits, keep=keep) as world:
        await spool.receive([delivery(n) for n in (1, 2, 3)], 3)
        await world.until(1)
        world.end(1, limited)
        await world.until_ended(1)
        # It is done over again: in front of what waits, by the number that it was given.
        redo = delivery(4).model_copy(update={"delivery_seq": -1})
        await spool.receive([redo, delivery(5, "conv_2", "agent_2")], 5)
        await world.at_rest()
        assert world.started == [("dlv_1", 1)]
        assert set(limits.limited()) == {"agent_1", "agent_2"}  # they share the account
        now[0] = until
        world.queue.hold("test", held=False)  # as its own look at the clock does
        await world.until(1, 5, 4)  # who was served longest ago is first
        world.end(4)
        await world.until(1, 5, 4, 2)
        assert kept == [[delivery(1).agent.driver]]


async def test_nothing_starts_while_another_daemon_has_the_host() -> None:
    async with open_spool(None) as spool, queue_over(spool) as world:
        await spool.receive([delivery(1), delivery(2, "conv_2")], 2)
        await world.until(1, 2)
        world.queue.hold("test", held=True)
        world.end(1)
        await spool.receive([delivery(3)], 3)
        await spool.receive([delivery(4, "conv_4")], 4)
        world.end(2)
        await world.at_rest()
        assert world.started == [("dlv_1", 1), ("dlv_2", 1)]
        world.queue.hold("test", held=False)
        await world.until(1, 2, 3, 4)


# --- before there is a message ---------------------------------------------------------


async def test_whether_a_message_would_begin_at_once(tmp_path: Path) -> None:
    admits = [True]
    agent, other = delivery(1).agent, ConversationId("conv_other")
    async with (
        open_spool(tmp_path / "state.db") as spool,
        queue_over(spool, max_runs=1, admit=lambda: admits[0]) as world,
    ):
        queue, here = world.queue, delivery(1).message.conversation_id
        assert queue.would_begin(agent, here)
        admits[0] = False  # the machine is short of something
        assert not queue.would_begin(agent, here)
        admits[0] = True
        queue.hold("installation", held=True)
        assert not queue.would_begin(agent, here)
        queue.hold("installation", held=False)
        await spool.receive([delivery(1)], 1)
        await world.until(1)
        assert not queue.would_begin(agent, here)
        assert not queue.would_begin(agent, other)  # there is no place
        world.end(1)
        await world.until_ended(1)
        with anyio.fail_after(5):
            await queue.idle()
        assert queue.would_begin(agent, here)
        queue.close()
        assert not queue.would_begin(agent, here)


async def test_for_an_agent_that_is_left_alone_nothing_is_started_ahead(tmp_path: Path) -> None:
    breaker = Breaker(time.monotonic, 60)
    async with (
        open_spool(tmp_path / "state.db") as spool,
        queue_over(spool, breaker=breaker) as world,
    ):
        agent = delivery(1).agent
        here = delivery(1).message.conversation_id
        for _ in range(3):
            assert world.queue.would_begin(agent, here)
            breaker.ended(agent.id, CRASH)
        assert not world.queue.would_begin(agent, here)


async def test_a_message_whose_files_are_on_their_way_takes_no_place_among_the_runs() -> None:
    asked: dict[str, StopSignal] = {}
    there = {name: anyio.Event() for name in ("dlv_1", "dlv_3")}
    news = anyio.Event()

    async def fetch(deliver: Deliver, stop: StopSignal) -> None:
        asked[deliver.delivery_id] = stop
        if len(asked) == len(there):
            news.set()
        if deliver.delivery_id == "dlv_3":
            await stop.wait()
        await there[deliver.delivery_id].wait()
        raise UplinkError("what became of it is for the run to tell")

    def with_file(deliver: Deliver) -> Deliver:
        file = Attachment(
            id=new_attachment_id(), name="a", media_type="x/y", size_bytes=1, sha256="0" * 64
        )
        message = deliver.message.model_copy(update={"attachments": [file]})
        return deliver.model_copy(update={"message": message})

    async with open_spool(None) as spool, queue_over(spool, max_runs=1, fetch=fetch) as world:
        first = with_file(delivery(1, agent="agent_1", conversation="conv_1"))
        behind = delivery(2, agent="agent_1", conversation="conv_2")
        third = with_file(delivery(3, agent="agent_3", conversation="conv_3"))
        other = delivery(4, agent="agent_4", conversation="conv_4")
        await spool.receive([first, behind, third, other], 4)
        # Not the one with a file, nor what comes after it for the same agent.
        await world.until(4)
        world.end(4)
        await world.until_ended(1)
        with anyio.fail_after(5):
            await news.wait()
        await spool.receive([Interrupt(seq=5, delivery_id=third.delivery_id, actor="Ana")], 5)
        endings = await world.until_ended(2)
        assert (endings[1].outcome, endings[1].stopped_by) == (Outcome.CANCELLED, "Ana")
        assert asked["dlv_3"].requested
        there["dlv_3"].set()
        there["dlv_1"].set()
        await world.until(4, 1)
        world.end(1)
        await world.until(4, 1, 2)
        world.end(2)
        await world.until_ended(4)
