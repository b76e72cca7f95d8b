"""The verbs of delivery on a real database: what a message goes through, and what machines may do."""

import json
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_backend.delivery import queueing, sending
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import (
    agents,
    clock,
    conversations,
    deliveries,
    hosts,
    messages,
    outbox,
    runs,
)
from cloudagent_backend.store.deliveries import NewRung
from cloudagent_backend.store.events import EventRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import Outcome, Reason, Steered
from cloudagent_protocol.frames import (
    Ack,
    AgentsChanged,
    Deliver,
    DeliveryReport,
    Delta,
    Heartbeat,
    HostReport,
    Interrupt,
    ListMessages,
    LiveRun,
    UnknownFrame,
)
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    DeliveryId,
    MessageId,
    RunId,
    new_message_id,
)
from cloudagent_protocol.resources import DeliveryMode, RungName, Runtime
from fakes.desk import Desk, Run, add_host, hello, open_desk


async def test_a_message_is_stored_queued_and_told_in_one_step(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        assert message.author.name == "ana"
        assert [one.state for one in message.deliveries] == ["queued"]
        assert await desk.rungs(message) == ["stored", "waiting"]
        assert [row.type for row in await desk.log()] == ["message.created", "delivery.updated"]


async def test_a_queued_message_says_that_its_host_is_away(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say()
        data = json.loads((await desk.log())[-1].data)
        assert data["reason"] == "host_offline"
        assert data["rungs"][-1]["detail"].startswith("mbp has not connected yet")


async def test_messages_without_a_conversation_share_the_newest_one(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first, second = await desk.say("one"), await desk.say("two")
        assert first.conversation_id == second.conversation_id
        assert [m.deliveries[0].seq for m in (first, second)] == [1, 2]


async def test_a_message_of_no_agent_is_not_found(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        with pytest.raises(Refused) as refused:
            await desk.say(agent_id=AgentId("agent_none"))
        assert refused.value.code is ErrorCode.NOT_FOUND
        assert await desk.log() == []


async def test_above_the_backlog_cap_nothing_is_taken_until_something_ends(tmp_path: Path) -> None:
    async with open_desk(tmp_path, backlog_cap=2) as desk:
        first = await desk.say()
        await desk.say()
        with pytest.raises(Refused, match="already wait for mbp") as refused:
            await desk.say()
        assert refused.value.code is ErrorCode.BACKLOG_FULL
        await desk.service.cancel(desk.user_id, "ana", first.id)
        assert (await desk.say()).deliveries[0].seq == 3


async def test_a_message_to_a_machine_that_is_here_is_leased_at_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = Session(desk.machine.host_id, "in_1")
        desk.hub.attach(session)
        early = await desk.say("before its welcome")
        assert await desk.state(early) == "queued"
        session.ready = True
        assert await desk.state(await desk.say("and after it")) == "leased"
        assert [frame.message.text for frame in await desk.outbox()] == [
            "before its welcome",
            "and after it",
        ]


async def test_a_lease_numbers_frames_in_the_order_of_the_messages(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        sent = [await desk.say(f"{n}") for n in range(3)]
        frames = await desk.lease()
        assert [(f.seq, f.delivery_seq, f.message.id) for f in frames] == [
            (n + 1, n + 1, message.id) for n, message in enumerate(sent)
        ]
        assert isinstance(frames[0], Deliver)
        assert await desk.state(sent[0]) == "leased"


async def test_no_more_is_leased_than_the_window_has_room_for(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        sent = [await desk.say() for _ in range(3)]
        assert len(await desk.lease(window=2)) == 2
        assert len(await desk.lease(window=2)) == 2
        run = Run(sent[0])
        await desk.report(Ack(seq=2), run.started(), run.finished())
        await desk.lease(window=2)
        assert await desk.state(sent[2]) == "leased"


async def test_the_thousand_messages_of_one_agent_do_not_hold_up_the_first_of_another(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path, backlog_cap=2_000) as desk:
        other = await desk.add_agent("backend")

        def flood(c: Any) -> None:
            for n in range(1_000):
                queueing.submit(c, desk.submission(f"{n}"), 2_000)

        await desk.database.write(flood)
        assert len(await desk.lease(window=8)) == 8
        first = await desk.say("and now the other", agent_id=other)
        await desk.say("and once more", agent_id=other)
        [*_, ninth] = await desk.lease(window=8)
        assert (ninth.message.id, ninth.agent.id) == (first.id, other)
        assert len(await desk.lease(window=8)) == 9


async def test_a_message_that_interrupts_goes_before_what_waits(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        queued = [await desk.say(f"{n}") for n in range(2)]
        urgent = await desk.say("stop, this first", mode=DeliveryMode.INTERRUPT)
        more_urgent = await desk.say("no, this", mode=DeliveryMode.INTERRUPT)
        frames = await desk.lease()
        assert [frame.message.id for frame in frames] == [
            one.id for one in (more_urgent, urgent, *queued)
        ]
        assert [frame.mode for frame in frames] == ["interrupt", "interrupt", "queue", "queue"]
        numbers = [frame.delivery_seq for frame in frames]
        assert numbers == sorted(numbers)


async def test_a_message_that_interrupts_is_leased_though_the_window_is_full(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        running = await desk.say()
        for n in range(3):
            await desk.say(f"{n}")
        assert len(await desk.lease(window=2)) == 2
        await desk.report(Ack(seq=2), Run(running).started())
        await desk.say("stop", mode=DeliveryMode.INTERRUPT)
        [frame] = await desk.lease(window=2)
        assert (frame.mode, frame.seq) == ("interrupt", 3)


async def test_who_interrupts_what_is_shown_before_it_has_stopped(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        running = await desk.say()
        await desk.receive_all()
        run = Run(running)
        await desk.report(run.started())
        await desk.say("stop", mode=DeliveryMode.INTERRUPT)
        [frame] = await desk.lease()
        assert isinstance(frame, Deliver)
        told = [json.loads(row.data) for row in await desk.log() if row.type == "delivery.updated"]
        shown = [one for one in told if one["id"] == running.deliveries[0].id][-1]
        assert (shown["state"], shown["interrupted_by"]) == ("running", "ana")
        await desk.report(
            run.finished(Outcome.CANCELLED, reason=Reason.INTERRUPTED, stopped_by="ana")
        )
        [row] = await desk.rows(running)
        last = json.loads(row.rungs)[-1]
        assert (row.state, last["actor"], last["reason"]) == ("cancelled", "ana", "interrupted")


async def test_a_daemon_that_does_not_know_the_mode_is_told_what_to_stop(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        running = await desk.say()
        await desk.receive_all()
        await desk.report(Run(running).started())
        await desk.say("stop", mode=DeliveryMode.INTERRUPT)
        old = ReadyHost(desk.machine.host_id, interrupts=False)
        await desk.database.write(lambda c: sending.lease(c, old, 32))
        deliver, interrupt = await desk.outbox()
        assert isinstance(deliver, Deliver)
        assert isinstance(interrupt, Interrupt)
        assert interrupt.delivery_id == running.deliveries[0].id


async def test_a_machine_says_why_a_message_waits(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say(mode=DeliveryMode.STEER)
        await desk.receive_all()
        note = DeliveryReport(
            delivery_id=message.deliveries[0].id,
            at=clock.at(clock.now_us()),
            reason=Reason.NOT_STEERABLE,
            detail="queued: claude_code cannot be steered while it works",
        )
        await desk.report(note)
        [row] = await desk.rows(message)
        last = json.loads(row.rungs)[-1]
        assert (row.state, last["rung"], last["actor"]) == ("received", "waiting", "mbp")
        assert last["reason"] == "not_steerable"
        log = await desk.log()
        await desk.report(Run(message).finished())
        await desk.report(note)
        assert (await desk.rungs(message))[-1] == "replied"
        assert len(await desk.log()) > len(log)
        other, _ = await _stranger(desk)
        assert (await desk.service.apply(other, [note])).error is not None


async def test_a_message_that_was_put_into_a_turn_is_of_that_run_to_its_end(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first = await desk.say()
        second = await desk.say(mode=DeliveryMode.STEER)
        other = await desk.say("elsewhere", agent_id=await desk.add_agent("backend"))
        await desk.receive_all()
        run, [row] = Run(first), await desk.rows(second)
        at = clock.at(clock.now_us())
        taken = Steered(seq=5, at=at, delivery_id=row.id, message_id=second.id)
        await desk.report(run.started(), run.report(taken), run.report(taken))
        assert await desk.rungs(second) == ["stored", "waiting", "sent", "received", "started"]
        [row] = await desk.rows(second)
        assert (row.state, row.run_id) == ("running", run.id)
        assert json.loads(row.rungs)[-1]["detail"] == "put into the turn under way"
        await desk.report(run.finished())
        assert [await desk.state(m) for m in (first, second)] == ["done", "done"]
        assert (await desk.rungs(second))[-1] == "replied"
        # Nothing of a run that is over, of another agent, or of nobody.
        gone = Steered(seq=9, at=at, delivery_id=DeliveryId("dlv_gone"), message_id=second.id)
        assert (await desk.report(run.report(gone))).error is None
        again = Run(await desk.say())
        await desk.receive_all()
        [theirs] = await desk.rows(other)
        wrong = Steered(seq=2, at=at, delivery_id=theirs.id, message_id=other.id)
        applied = await desk.report(again.started(), again.report(wrong))
        assert applied.error is not None
        assert await desk.state(other) == "received"


async def test_an_ack_puts_the_message_on_the_machine_even_before_it_was_noted_as_sent(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        [frame] = await desk.lease()
        await desk.service.apply(desk.machine, [Ack(seq=1)])
        await desk.service.sent(desk.machine, {frame.delivery_id: clock.now_us()})
        assert await desk.rungs(message) == ["stored", "waiting", "sent", "received"]
        assert await desk.outbox() == []


async def test_a_whole_run_climbs_the_whole_ladder(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        [frame] = await desk.lease()
        await desk.service.sent(desk.machine, {frame.delivery_id: clock.now_us()})
        run = Run(message)
        await desk.report(
            Ack(seq=1), run.started(), run.ready(), run.text("On it."), run.send("Fixed.")
        )
        assert await desk.agent_status() == "working"
        await desk.report(run.finished(usage={"input_tokens": 5, "output_tokens": 7}))
        expected = ["stored", "sent", "received", "started", "ready", "seen", "replied"]
        assert await desk.rungs(message) == expected
        assert await desk.state(message) == "done"
        assert await desk.agent_status() == "idle"
        stored = await desk.database.read(lambda c: runs.load(c, run.id))
        assert stored is not None
        shown = stored.resource
        assert (shown.outcome, shown.session_id, shown.state) == ("replied", "s-1", "finished")
        assert shown.usage is not None
        assert shown.usage.output_tokens == 7
        kinds = [row.type for row in await desk.log()]
        assert kinds.count("run.event") == 4
        assert kinds.count("run.started") == kinds.count("run.finished") == 1
        assert kinds.count("message.created") == 2


async def test_what_comes_twice_is_kept_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        frames = [run.started(), run.send("Fixed."), run.finished()]
        await desk.report(*frames)
        log = await desk.log()
        await desk.report(*frames)
        assert await desk.log() == log
        assert (await desk.rungs(message)).count("replied") == 1


async def test_a_failed_run_says_why_and_marks_its_agent(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        await desk.report(run.started(), run.failed(Reason.CRASHED, "ended by signal 9"))
        [row] = await desk.rows(message)
        assert (row.state, row.outcome, row.reason) == ("failed", "failed", "crashed")
        assert json.loads(row.rungs)[-1]["detail"] == "ended by signal 9"
        assert await desk.agent_status() == "crashed"


async def test_a_run_that_never_started_ends_all_the_same(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        await desk.report(Run(message).failed(Reason.RUNTIME_MISSING, "claude is not installed"))
        assert await desk.state(message) == "failed"
        assert (await desk.rungs(message))[-1] == "failed"


async def test_a_later_attempt_is_counted_and_ends_the_run_that_was_cut_off(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        first, second = Run(message), Run(message)
        await desk.report(first.started())
        applied = await desk.report(second.started(attempt=2))
        assert applied.abandoned == [first.id]
        [row] = await desk.rows(message)
        assert (row.state, row.attempt, row.run_id) == ("running", 2, second.id)
        assert (await desk.rungs(message))[-2:] == ["interrupted", "started"]
        old = await desk.database.read(lambda c: runs.load(c, first.id))
        assert old is not None
        assert (old.state, old.reason) == ("finished", "daemon_stopped")


async def test_an_end_without_a_process_ends_the_run_that_was_cut_off_too(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        first, second = Run(message), Run(message)
        await desk.report(first.started(), first.send("Fixed."))
        applied = await desk.report(second.finished())
        assert applied.abandoned == [first.id]
        assert await desk.state(message) == "done"
        old = await desk.database.read(lambda c: runs.load(c, first.id))
        assert old is not None
        assert old.state == "finished"


async def test_the_first_delta_says_that_the_model_has_begun(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        delta = Delta(
            run_id=run.id,
            agent_id=desk.agent_id,
            conversation_id=message.conversation_id,
            block=0,
            offset=0,
            text="On",
        )
        await desk.report(run.started())
        await desk.service.apply(desk.machine, [delta])
        assert (await desk.rungs(message))[-1] == "seen"
        assert desk.machine.changes_nothing(delta)


async def test_a_ladder_never_goes_back_in_time(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        early, late = run.started(), run.finished()
        early.event.at -= timedelta(hours=1)
        late.event.at += timedelta(hours=1)
        await desk.report(early, late)
        [row] = await desk.rows(message)
        times = [rung["at"] for rung in json.loads(row.rungs)]
        assert times == sorted(times)
        assert times[-1] <= clock.rfc3339(clock.now_us())


async def test_an_agents_message_names_it_and_answers_only_what_is_there(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        reply = run.send("Fixed.", in_reply_to=message.id)
        stray = run.send("And this.", in_reply_to=MessageId("msg_elsewhere"))
        await desk.report(run.started(), reply, stray)
        found = await desk.database.read(
            lambda c: messages.following(c, message.conversation_id, None, 10)
        )
        assert [m.text for m in found.data] == ["fix the login test", "Fixed.", "And this."]
        assert found.data[1].author.name == "frontend"
        assert [m.in_reply_to for m in found.data] == [None, message.id, None]


async def _stranger(desk: Desk) -> tuple[Any, AgentId]:
    return await add_host(desk.database, desk.user_id, "other", "backend")


async def test_a_machine_speaks_only_for_its_own_agents(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other, _ = await _stranger(desk)
        message = await desk.say()
        await desk.receive_all()
        log = await desk.log()
        desk.machine, owner = other, desk.machine
        run = Run(message)
        for frame in (run.started(), run.send("I am not the one you think.")):
            applied = await desk.report(frame)
            assert applied.error is not None
            assert applied.error.close_code == 4400
        assert await desk.log() == log
        desk.machine = owner
        assert await desk.state(message) == "received"


async def test_what_came_before_a_refused_frame_is_kept(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        _, foreign = await _stranger(desk)
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        bad = run.send("x").model_copy(update={"agent_id": foreign})
        applied = await desk.report(run.started(), bad, run.finished())
        assert (applied.count, applied.error is not None) == (1, True)
        assert await desk.state(message) == "running"
        link = await desk.database.read(lambda c: outbox.link(c, desk.machine.host_id))
        assert link is not None
        assert link.accepted == 1


async def test_an_agent_speaks_only_where_it_takes_part(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        _, foreign = await _stranger(desk)
        message = await desk.say()
        elsewhere = await desk.say(agent_id=foreign)
        run = Run(message)
        misplaced = run.send("x").model_copy(update={"conversation_id": elsewhere.conversation_id})
        assert (await desk.report(misplaced)).error is not None
        unknown = run.send("y").model_copy(update={"conversation_id": ConversationId("conv_0")})
        assert (await desk.report(unknown)).error is None


async def test_reports_on_what_is_gone_are_accepted_and_ignored(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        ghost = Run(message)
        report = ghost.started().model_copy(update={"delivery_ids": ["dlv_gone"]})
        stranger = ghost.send("x").model_copy(update={"agent_id": AgentId("agent_gone")})
        applied = await desk.report(report, stranger, UnknownFrame(type="novelty", seq=3))
        assert (applied.count, applied.error) == (3, None)
        link = await desk.database.read(lambda c: outbox.link(c, desk.machine.host_id))
        assert link is not None
        assert link.accepted == 3


@pytest.mark.parametrize("run_id", ["run_../../etc", "nonsense", "run_" + "x" * 99, 'run_"'])
async def test_an_id_that_is_none_is_refused(tmp_path: Path, run_id: str) -> None:
    async with open_desk(tmp_path) as desk:
        run = Run(await desk.say())
        applied = await desk.report(run.started().model_copy(update={"run_id": RunId(run_id)}))
        assert applied.error is not None


async def test_an_event_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = Run(await desk.say())
        assert (await desk.report(run.text("\ud800"))).error is not None


async def test_a_host_report_changes_the_hosts_runtimes(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        await desk.report(HostReport(runtimes=[Runtime(name="claude_code", version="2.1.197")]))
        newest = (await desk.log())[-1]
        assert newest.type == "host.updated"
        assert json.loads(newest.data)["runtimes"][0]["version"] == "2.1.197"


async def test_a_queued_message_is_cancelled_at_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        trace = await desk.service.cancel(desk.user_id, "ana", message.id)
        assert trace.deliveries[0].state == "cancelled"
        assert trace.deliveries[0].rungs[-1].actor == "ana"
        with pytest.raises(Refused) as refused:
            await desk.service.cancel(desk.user_id, "ana", message.id)
        assert refused.value.code is ErrorCode.CONFLICT
        assert await desk.lease() == []


async def test_a_failed_message_is_delivered_again_and_says_who_wanted_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        await desk.report(run.started(), run.failed(Reason.CRASHED, "ended by signal 9"))
        trace = await desk.service.retry(desk.user_id, "ana", message.id)
        first, second = trace.deliveries
        assert (first.state, first.retry_of) == ("failed", None)
        assert (second.state, second.retry_of) == ("queued", first.id)
        assert (second.rungs[0].rung, second.rungs[0].actor) == ("stored", "ana")
        assert (
            second.rungs[0].detail == "tried again: the delivery before ended as failed (crashed)"
        )
        updated = [
            json.loads(row.data) for row in await desk.log() if row.type == "message.updated"
        ]
        assert [one["id"] for one in updated[-1]["deliveries"]] == [first.id, second.id]
        [frame] = await desk.lease()
        assert (frame.delivery_id, frame.message.id) == (second.id, message.id)
        assert frame.retry is not None
        assert (frame.retry.delivery_id, frame.retry.actor) == (first.id, "ana")
        assert (frame.retry.outcome, frame.retry.reason) == ("failed", "crashed")
        assert frame.retry.began


async def test_a_message_that_no_launch_could_work_on_is_dead_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        poison, fine = await desk.say("poison"), await desk.say("fine")
        await desk.receive_all()
        run = Run(poison)
        why = "Given up after 3 launches. The last: exit 1"
        await desk.report(run.finished(Outcome.DEAD, reason=Reason.SPAWN_FAILED, detail=why))
        [row] = await desk.rows(poison)
        last = json.loads(row.rungs)[-1]
        assert (row.state, row.outcome, row.reason) == ("dead", "dead", "spawn_failed")
        assert (last["rung"], last["actor"], last["detail"]) == ("dead", "mbp", why)
        assert await desk.agent_status() == "crashed"
        after = Run(fine)
        await desk.report(after.started(), after.send("Fixed."), after.finished())
        assert await desk.state(fine) == "done"
        assert await desk.agent_status() == "idle"
        trace = await desk.service.retry(desk.user_id, "ana", poison.id)
        assert trace.deliveries[-1].state == "queued"


async def test_a_run_that_two_heartbeats_do_not_list_is_offered_again_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        await desk.report(run.started())
        ids = [message.deliveries[0].id]
        listed = Heartbeat(running=[LiveRun(run_id=run.id, delivery_ids=ids)])
        for beat in (listed, Heartbeat(), listed, Heartbeat()):
            await desk.service.apply(desk.machine, [beat])
        assert await desk.outbox() == [], "one that was missed is no sign of anything"
        for _ in range(3):
            await desk.service.apply(desk.machine, [Heartbeat()])
        [again] = await desk.outbox()
        assert isinstance(again, Deliver)
        assert again.delivery_id == ids[0]
        assert await desk.state(message) == "running"
        await desk.report(run.finished())
        assert await desk.state(message) == "done"


async def test_a_clock_that_was_set_back_does_not_hide_the_newest_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.service.cancel(desk.user_id, "ana", message.id)
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() - 86_400 * 10**9)
        await desk.service.retry(desk.user_id, "ana", message.id)
        with pytest.raises(Refused, match="under way already"):
            await desk.service.retry(desk.user_id, "ana", message.id)


async def test_what_is_under_way_or_done_is_not_tried_again(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        with pytest.raises(Refused, match="under way already"):
            await desk.service.retry(desk.user_id, "ana", message.id)
        await desk.service.cancel(desk.user_id, "ana", message.id)
        await desk.service.retry(desk.user_id, "ana", message.id)
        with pytest.raises(Refused, match="under way already"):
            await desk.service.retry(desk.user_id, "ana", message.id)
        await desk.receive_all()
        rows = await desk.rows(message)
        assert [row.state for row in rows] == ["cancelled", "received"]
        run = Run(message)
        report = run.finished().model_copy(update={"delivery_ids": [rows[1].id]})
        await desk.report(report)
        with pytest.raises(Refused, match="nothing to try again") as refused:
            await desk.service.retry(desk.user_id, "ana", message.id)
        assert refused.value.code is ErrorCode.CONFLICT
        with pytest.raises(Refused) as refused:
            await desk.service.retry(desk.user_id, "ana", new_message_id())
        assert refused.value.code is ErrorCode.NOT_FOUND


async def test_a_message_on_its_machine_is_interrupted_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        await desk.report(run.started())
        await desk.service.cancel(desk.user_id, "ana", message.id)
        await desk.service.interrupt(desk.user_id, "ana", run.id)
        [frame] = await desk.outbox()
        assert isinstance(frame, Interrupt)
        assert (frame.delivery_id, frame.actor) == (message.deliveries[0].id, "ana")
        await desk.report(run.finished(Outcome.CANCELLED, reason=Reason.INTERRUPTED))
        [row] = await desk.rows(message)
        assert (row.state, json.loads(row.rungs)[-1]["actor"]) == ("cancelled", "ana")
        with pytest.raises(Refused):
            await desk.service.interrupt(desk.user_id, "ana", run.id)


async def test_a_removed_agents_queue_is_cancelled(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        held, queued = await desk.say(), None
        await desk.receive_all()
        queued = await desk.say()

        def remove(c: Any) -> None:
            desk.service.agent_removed(c, desk.user_id, desk.agent_id)
            agents.delete(c, desk.agent_id)

        await desk.database.write(remove)
        assert await desk.state(queued) == "cancelled"
        assert [type(f) for f in await desk.outbox()] == [Interrupt]
        await desk.report(Run(held).finished(Outcome.CANCELLED))
        assert await desk.state(held) == "cancelled"


async def test_a_removed_host_leaves_nothing_open(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        running = await desk.say()
        await desk.receive_all()
        run = Run(running)
        await desk.report(run.started())
        queued = await desk.say()
        await desk.database.write(
            lambda c: desk.service.host_removed(c, desk.user_id, desk.machine.host_id)
        )
        await desk.service.bury(desk.machine.host_id)
        assert {await desk.state(running), await desk.state(queued)} == {"dead"}
        over = await desk.database.read(lambda c: runs.load(c, run.id))
        assert over is not None
        assert over.state == "finished"


async def test_the_queue_of_a_removed_host_is_ended_in_many_transactions_even_by_another_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudagent_backend.delivery.owners._BURIED_AT_ONCE", 2)
    async with open_desk(tmp_path) as desk:
        sent = [await desk.say(f"{number}") for number in range(5)]
        held = await desk.rows(sent[4])
        await desk.database.write(
            lambda c: deliveries.hold(c, held[0], NewRung(RungName.WAITING, "backend"))
        )

        def remove(c: Any) -> None:
            desk.service.host_removed(c, desk.user_id, desk.machine.host_id)
            hosts.delete(c, desk.machine.host_id)

        await desk.database.write(remove)
        assert [await desk.state(message) for message in sent] == ["queued"] * 5
        # The process ended here. Another one finds what is left.
        await desk.service.start()
        await desk.service.bury()
        assert [await desk.state(message) for message in sent] == ["dead"] * 5
        assert (await desk.rows(sent[0]))[0].reason == "host_removed"
        assert await desk.database.read(deliveries.of_removed_hosts) == []


async def test_changed_agents_are_told_to_a_host_that_is_here_and_to_another_by_its_welcome(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.service.agents_changed(desk.machine.host_id)
        await desk.greet()
        await desk.service.agents_changed(desk.machine.host_id)
        assert await desk.outbox() == []
        desk.hub.attach(Session(desk.machine.host_id, "in_1"))
        await desk.service.agents_changed(desk.machine.host_id)
        [frame] = await desk.outbox()
        assert isinstance(frame, AgentsChanged)
        assert [agent.name for agent in frame.agents] == ["frontend"]


async def test_a_message_that_fits_no_frame_is_dead_not_stuck(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        huge = await desk.say("\x01" * 190_000)
        small = await desk.say()
        frames = await desk.lease()
        assert [f.message.id for f in frames] == [small.id]
        assert frames[0].seq == 1
        [row] = await desk.rows(huge)
        assert (row.state, row.reason) == ("dead", "too_large")


async def test_what_a_machine_holds_is_not_queued_though_a_backup_says_so(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.greet(epoch="ep_of_another_history", unfinished=[message.deliveries[0].id])
        assert await desk.state(message) == "received"
        assert await desk.lease() == []


async def test_a_machine_writes_no_live_text_of_another_hosts_run(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        await desk.report(run.started())
        other, _ = await add_host(desk.database, desk.user_id, "nuc", "backend")
        await desk.service.apply(other, [delta_of(run, "not mine")])
        await desk.service.apply(desk.machine, [delta_of(run, "mine")])
        async with aclosing(desk.fanout.follow(desk.user_id, (await desk.log())[-1].id)) as rows:
            with anyio.fail_after(5):
                texts = [json.loads(row.data) async for row in _first(rows, "run.delta")]
        assert [text["text"] for text in texts] == ["mine"]


def delta_of(run: Run, text: str) -> Delta:
    message = run.message
    return Delta(
        run_id=run.id,
        agent_id=message.deliveries[0].agent_id,
        conversation_id=message.conversation_id,
        block=0,
        offset=0,
        text=text,
    )


async def _first(rows: AsyncGenerator[EventRow], kind: str) -> AsyncGenerator[EventRow]:
    async for row in rows:
        if row.type == kind:
            yield row
            return


async def test_who_follows_is_told_at_once_of_a_message_that_is_given_up(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say("\x01" * 190_000)
        before = (await desk.log())[-1].id
        async with aclosing(desk.fanout.follow(desk.user_id, before)) as rows:
            assert (await anext(rows)).type == "ping"
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tg:
                    tg.start_soon(desk.service.lease, [ReadyHost(desk.machine.host_id)])
                    assert json.loads((await anext(rows)).data)["state"] == "dead"


async def test_an_agent_reads_its_conversation_and_no_other(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other, foreign = await _stranger(desk)
        first, second = await desk.say("one"), await desk.say("two")

        async def ask(machine: Any, agent_id: AgentId, **more: Any) -> list[str] | None:
            query = ListMessages(agent_id=agent_id, conversation_id=first.conversation_id, **more)
            found = await desk.service.list_messages(machine, query)
            return None if found is None else [m.text for m in found]

        assert await ask(desk.machine, desk.agent_id) == ["one", "two"]
        assert await ask(desk.machine, desk.agent_id, limit=1) == ["two"]
        assert await ask(desk.machine, desk.agent_id, before=second.id) == ["one"]
        assert await ask(desk.machine, desk.agent_id, before=new_message_id()) == []
        assert await ask(other, desk.agent_id) is None
        assert await ask(other, foreign) is None


async def test_hot_queries_use_indexes(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        statements: list[str] = []

        def work(c: Any) -> list[str]:
            c.set_trace_callback(statements.append)
            deliveries.waiting_agents(c, desk.machine.host_id)
            deliveries.waiting_hosts(c)
            deliveries.queued(c, desk.machine.host_id, desk.agent_id, 5)
            deliveries.in_flight_by_agent(c, desk.machine.host_id)
            deliveries.open_of_host(c, desk.machine.host_id)
            deliveries.in_flight(c, desk.machine.host_id)
            deliveries.open_of_agent(c, desk.agent_id, [desk.machine.host_id])
            deliveries.carried(c, [(desk.machine.host_id, 5)])
            outbox.link(c, desk.machine.host_id)
            outbox.take_free_way(c, desk.machine.host_id, desk.agent_id, 5)
            deliveries.of_message(c, desk.user_id, MessageId("msg_1"))
            deliveries.of_conversation(c, ConversationId("conv_1"), limit=5)
            messages.following(c, ConversationId("conv_1"), None, 5)
            messages.preceding(c, ConversationId("conv_1"), None, 5)
            conversations.page(c, desk.user_id, limit=5)
            conversations.page(c, desk.user_id, limit=5, agent_id=desk.agent_id)
            conversations.latest_with(c, desk.user_id, desk.agent_id)
            runs.live_of_host(c, desk.machine.host_id)
            runs.has_live(c, desk.machine.host_id, desk.agent_id)
            runs.of_conversation(c, ConversationId("conv_1"), limit=5)
            c.set_trace_callback(None)
            return [
                f"{row['detail']} in {sql}"
                for sql in statements
                for row in c.execute(f"EXPLAIN QUERY PLAN {sql}")
                if (
                    row["detail"].startswith("SCAN")
                    and "json_each" not in row["detail"]
                    and row["detail"] != "SCAN waiting"  # rows of the query's own, one per agent
                )
                or ("TEMP B-TREE" in row["detail"] and "json_each" not in sql)
            ]

        assert await desk.database.write(work) == []
        assert statements


async def test_a_leaving_that_the_store_did_not_take_is_noted_later(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        full = (
            "CREATE TRIGGER full BEFORE UPDATE ON host_machines BEGIN SELECT RAISE(ABORT, ''); END"
        )
        await desk.database.write(lambda c: c.execute(full))
        with pytest.raises(sqlite3.Error):
            await desk.service.leave(desk.machine)
        assert await state_of_host(desk) == "online"
        await desk.database.write(lambda c: c.execute("DROP TRIGGER full"))
        await desk.service.note_left()
        assert await state_of_host(desk) == "offline"


async def test_a_host_that_is_back_is_not_noted_as_having_left_before(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        full = (
            "CREATE TRIGGER full BEFORE UPDATE ON host_machines BEGIN SELECT RAISE(ABORT, ''); END"
        )
        await desk.database.write(lambda c: c.execute(full))
        with pytest.raises(sqlite3.Error):
            await desk.service.leave(desk.machine)
        await desk.database.write(lambda c: c.execute("DROP TRIGGER full"))
        await desk.greet()
        await desk.service.note_left()
        assert await state_of_host(desk) == "online"


async def test_hosts_that_leave_at_once_are_noted_once_each(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        machines = [
            (await add_host(desk.database, desk.user_id, f"host{n}", f"agent{n}"))[0]
            for n in range(8)
        ]
        for machine in machines:
            await desk.service.greet(machine, hello())
        before = len(await desk.log())
        async with anyio.create_task_group() as tg:
            for machine in machines:
                tg.start_soon(desk.service.leave, machine)
        told = [json.loads(row.data) for row in (await desk.log())[before:] if "host" in row.type]
        assert [one["state"] for one in told] == ["offline"] * 8
        assert len({one["id"] for one in told}) == 8


async def test_a_host_that_comes_back_while_others_are_noted_stays_online(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other, _ = await add_host(desk.database, desk.user_id, "other", "backend")
        await desk.service.greet(other, hello())
        await desk.greet()
        full = (
            "CREATE TRIGGER full BEFORE UPDATE ON host_machines BEGIN SELECT RAISE(ABORT, ''); END"
        )
        await desk.database.write(lambda c: c.execute(full))
        for machine in (other, desk.machine):
            with pytest.raises(sqlite3.Error):
                await desk.service.leave(machine)
        await desk.database.write(lambda c: c.execute("DROP TRIGGER full"))
        async with anyio.create_task_group() as tg:
            tg.start_soon(desk.service.note_left)  # waits for the other one's commit
            tg.start_soon(desk.greet)
        assert await state_of_host(desk) == "online"


async def state_of_host(desk: Desk) -> str:
    host = await desk.database.read(lambda c: hosts.load_any(c, desk.machine.host_id))
    assert host is not None
    return host.state.value


async def test_a_run_is_asked_to_stop_once_and_to_end_at_once_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        running = await desk.say()
        await desk.receive_all()
        run = Run(running)
        await desk.report(run.started())
        for actor, now in (("ana", False), ("ana", False), ("bo", True), ("cy", True)):
            await desk.service.interrupt(desk.user_id, actor, run.id, now=now)
        told = [
            (frame.actor, frame.now)
            for frame in await desk.outbox()
            if isinstance(frame, Interrupt)
        ]
        assert told == [("ana", None), ("bo", True)]
        [row] = await desk.rows(running)
        shown = deliveries.trace(row)
        assert (shown.interrupted_by, shown.ended_by) == ("ana", "bo")
        await desk.greet(unfinished=[row.id])  # of a daemon that has lost its numbers
        again = [frame for frame in await desk.outbox() if isinstance(frame, Interrupt)]
        assert [(frame.actor, frame.now) for frame in again] == [("bo", True)]
        await desk.report(run.finished(Outcome.CANCELLED, reason=Reason.INTERRUPTED))
        [row] = await desk.rows(running)
        assert deliveries.trace(row).ended_by is None  # it is done
