"""What agents ask people: kept, answered once, and never left hanging."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_backend.delivery import sending
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import approvals, deliveries, runs
from cloudagent_protocol.events import ApprovalRequested, ApprovalResolved, Outcome, Question
from cloudagent_protocol.frames import Ack, Decide, DeliveryReport, Heartbeat, RunReport
from cloudagent_protocol.ids import ApprovalId, new_approval_id
from cloudagent_protocol.resources import Approval, ApprovalAnswer, ApprovalState, Message
from fakes.desk import Desk, Run, hello, now, open_desk
from fakes.server import running_backend

COMMAND = {"command": "alembic upgrade head"}


class Asking:
    """A run of the desk's agent that has asked for something."""

    def __init__(self, desk: Desk, message: Message) -> None:
        self.desk = desk
        self.message = message
        self.run = Run(message)

    async def begin(self) -> None:
        await self.desk.receive_all()
        await self.desk.report(self.run.started())

    async def ask(self, rule: str | None = "the command alembic upgrade head") -> ApprovalId:
        approval_id = new_approval_id()
        event = ApprovalRequested(
            at=now(), approval_id=approval_id, tool="Bash", action="execute", input=COMMAND,
            rule=rule, expires_at=now() + timedelta(days=7),
        )  # fmt: skip
        await self.desk.report(self.run.report(event))
        return approval_id

    async def question(self) -> ApprovalId:
        approval_id = new_approval_id()
        event = Question(at=now(), approval_id=approval_id, question="Which?", options=["a", "b"])
        await self.desk.report(self.run.report(event))
        return approval_id

    def resolved(self, approval_id: ApprovalId | None, decision: str, **more: Any) -> RunReport:
        event = ApprovalResolved.model_validate(
            {"at": now(), "approval_id": approval_id, "decision": decision, "by": "ana", **more}
        )
        return self.run.report(event)


@asynccontextmanager
async def asking(tmp_path: Path) -> AsyncGenerator[Asking]:
    async with open_desk(tmp_path) as desk:
        one = Asking(desk, await desk.say("migrate"))
        await one.begin()
        yield one


async def answer(desk: Desk, approval_id: ApprovalId, by: str = "ana", **body: Any) -> Approval:
    said = ApprovalAnswer.model_validate(body)
    return await desk.service.answer(desk.user_id, by, approval_id, said)


async def shown(desk: Desk, approval_id: ApprovalId) -> Approval:
    row = await desk.database.read(lambda c: approvals.load(c, approval_id))
    assert row is not None
    return row.resource


async def told(desk: Desk) -> list[tuple[str, str]]:
    return [
        (row.type, json.loads(row.data)["state"])
        for row in await desk.log()
        if row.type.startswith("approval.")
    ]


async def test_a_request_is_kept_told_and_says_on_the_ladder_what_it_waits_for(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        approval_id = await one.ask()
        found = await shown(desk, approval_id)
        assert (found.state, found.tool, found.input) == ("pending", "Bash", COMMAND)
        assert found.rule == "the command alembic upgrade head"
        assert await told(desk) == [("approval.requested", "pending")]
        assert await desk.state(one.message) == "waiting"
        assert await desk.agent_status() == "waiting"
        [row] = await desk.rows(one.message)
        last = deliveries.trace(row).rungs[-1]
        assert (last.rung, last.reason) == ("waiting", "approval")
        assert last.detail == "Bash “alembic upgrade head”"
        trace = [json.loads(r.data) for r in await desk.log() if r.type == "delivery.updated"][-1]
        assert (trace["state"], trace["reason"]) == ("waiting", "approval")


async def test_the_answer_goes_down_as_a_numbered_frame_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        approval_id = await one.ask()
        decided = await answer(desk, approval_id, decision="conversation")
        assert (decided.state, decided.decided_by) == ("answered", "ana")
        [frame] = await desk.outbox()
        assert isinstance(frame, Decide)
        assert (frame.approval_id, frame.decision) == (approval_id, "conversation")
        assert frame.delivery_id == one.run.delivery_ids[0]
        assert await desk.state(one.message) == "waiting"
        await desk.report(Ack(seq=frame.seq), one.resolved(approval_id, "conversation"))
        assert (await shown(desk, approval_id)).state == "resolved"
        assert await desk.state(one.message) == "running"
        assert await desk.agent_status() == "working"
        assert "answered" in await desk.rungs(one.message)
        states = ["pending", "answered", "resolved"]
        assert [state for _, state in await told(desk)] == states


async def test_of_two_who_answer_at_once_one_wins_and_the_other_is_told_who_and_when(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        approval_id = await one.ask()
        won: list[Approval] = []
        lost: list[Refused] = []

        async def decide(by: str, decision: str) -> None:
            try:
                won.append(await answer(desk, approval_id, by, decision=decision))
            except Refused as refused:
                lost.append(refused)

        async with anyio.create_task_group() as people:
            people.start_soon(decide, "ana", "once")
            people.start_soon(decide, "ben", "deny")
        [first], [second] = won, lost
        assert second.code == "conflict"
        assert second.more["decided_by"] == first.decided_by
        assert second.more["decision"] == first.decision
        assert first.decided_by is not None
        assert first.decided_by in second.detail
        assert len([f for f in await desk.outbox() if isinstance(f, Decide)]) == 1


async def test_the_run_goes_on_only_when_all_of_its_requests_are_answered(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        first, second = await one.ask(), await one.question()
        await answer(desk, first)
        await desk.report(one.resolved(first, "once"))
        assert await desk.state(one.message) == "waiting"
        await answer(desk, second, answer="b")
        await desk.report(one.resolved(second, "once", answer="b"))
        assert await desk.state(one.message) == "running"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("question", {"decision": "once"}),
        ("question", {"decision": "always", "answer": "b"}),
        ("permission", {"decision": "once", "answer": "b"}),
        ("no rule", {"decision": "always"}),
        ("no rule", {"decision": "conversation"}),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_and_decides_nothing(
    tmp_path: Path, kind: str, body: dict[str, Any]
) -> None:
    async with asking(tmp_path) as one:
        asked = (
            one.question() if kind == "question" else one.ask(None if kind == "no rule" else "r")
        )
        approval_id = await asked
        with pytest.raises(Refused) as refused:
            await answer(one.desk, approval_id, **body)
        assert refused.value.code == "invalid"
        assert (await shown(one.desk, approval_id)).state is ApprovalState.PENDING


async def test_a_run_that_ends_cancels_what_it_asked_and_a_late_answer_is_told_so(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        unanswered, answered = await one.ask(), await one.ask()
        await answer(desk, answered)
        await desk.report(one.run.finished(Outcome.CANCELLED, stopped_by="ana"))
        assert (await shown(desk, unanswered)).state == "cancelled"
        late = await shown(desk, answered)
        assert (late.state, late.decided_by) == ("cancelled", "ana")
        assert late.detail == "the answer came too late: the run is over (cancelled)"
        with pytest.raises(Refused, match="no longer waits for this: the run is over"):
            await answer(desk, unanswered)


@pytest.mark.parametrize("too_late", [False, True])
async def test_what_its_program_takes_back_waits_no_more_and_takes_no_answer(
    tmp_path: Path, too_late: bool
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        approval_id = await one.ask()
        if too_late:
            await answer(desk, approval_id, decision="once")
        why = "its program has taken it back"
        await desk.report(one.resolved(approval_id, "cancelled", by="nobody", reason=why))
        found = await shown(desk, approval_id)
        late = "the answer came too late: " if too_late else ""
        assert (found.state, found.detail) == ("cancelled", f"{late}{why}")
        assert (await told(desk))[-1] == ("approval.resolved", "cancelled")
        assert await desk.state(one.message) == "running"
        assert await desk.agent_status() == "working"
        with pytest.raises(Refused, match="answered already" if too_late else why) as refused:
            await answer(desk, approval_id, decision="once")
        assert refused.value.code == "conflict"


async def test_what_nobody_answered_in_time_says_so_and_takes_no_answer(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        approval_id = await one.ask()
        report = one.resolved(approval_id, "expired", reason="nobody answered in 7 days")
        await one.desk.report(report)
        found = await shown(one.desk, approval_id)
        assert (found.state, found.decision) == ("expired", None)
        with pytest.raises(Refused, match="Nobody decided in time"):
            await answer(one.desk, approval_id)


async def test_a_request_that_is_reported_twice_is_one(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        approval_id = await one.ask()
        event = ApprovalRequested(at=now(), approval_id=approval_id, tool="Bash", input=COMMAND)
        await one.desk.report(one.run.report(event))
        assert [kind for kind, _ in await told(one.desk)] == ["approval.requested"]


async def test_in_a_new_epoch_a_decision_that_was_under_way_is_said_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        pending, decided = await one.ask(), await one.ask()
        await answer(desk, decided)
        await desk.service.greet(
            desk.machine, hello(epoch="ep_other", unfinished=one.run.delivery_ids)
        )
        [frame] = await desk.outbox()
        assert (frame.type, frame.seq, frame.approval_id) == ("decide", 1, decided)
        assert (await shown(desk, pending)).state == "pending"


async def test_a_machine_that_lost_the_message_waits_for_no_answer(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        approval_id = await one.ask()
        await one.desk.service.greet(one.desk.machine, hello(epoch="ep_other"))
        found = await shown(one.desk, approval_id)
        assert (found.state, found.detail) == (
            "cancelled",
            "its machine no longer knows the message",
        )


async def test_a_run_that_left_to_wait_goes_on_as_another_and_was_not_cut_off(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as one:
        desk = one.desk
        approval_id = await one.ask()
        [delivery_id] = one.run.delivery_ids
        await desk.report(
            DeliveryReport(delivery_id=delivery_id, at=now(), reason="approval", detail="left"),
            Heartbeat(),
            Heartbeat(),
        )
        await answer(desk, approval_id)
        assert [frame.type for frame in await desk.outbox()] == ["decide"], "nobody asks about it"
        left, one.run = one.run, Run(one.message)
        await desk.report(one.resolved(approval_id, "once"), one.run.started())
        assert (await shown(desk, approval_id)).state == "resolved"
        assert await desk.state(one.message) == "running"
        assert "interrupted" not in await desk.rungs(one.message)
        before = await desk.database.read(lambda c: runs.load(c, left.id))
        assert before is not None
        assert (before.outcome, before.reason) == ("cancelled", "approval")
        await desk.report(one.run.finished())
        assert await desk.state(one.message) == "done"


async def test_another_machine_cannot_resolve_what_was_asked(tmp_path: Path) -> None:
    async with asking(tmp_path) as one:
        approval_id = await one.ask()
        await one.desk.report(one.resolved(new_approval_id(), "once"))  # of nobody: ignored
        stranger = await one.desk.add_agent("other")
        report = one.resolved(approval_id, "once")
        report.agent_id = stranger
        applied = await one.desk.report(report)
        assert applied.error is not None
        assert (await shown(one.desk, approval_id)).state == "pending"


async def test_requests_are_listed_and_answered_over_http_by_their_owner_alone(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        ana, ben = backend.ana, await backend.person("ben")
        async with backend.client(ana) as client, backend.client(ben) as other:
            sent = await client.post(f"/v1/agents/{ana.agent.id}/messages", json={"text": "hi"})
            run = Run(Message.model_validate(sent.json()))
            approval_id = new_approval_id()
            event = ApprovalRequested(
                at=now(), approval_id=approval_id, tool="Bash", input=COMMAND, rule="r"
            )
            host = ana.host
            await backend.world.database.write(lambda c: sending.lease(c, ReadyHost(host.id), 32))
            machine = Machine(host.id, ana.user_id, host.name)
            frames = [Ack(seq=1), run.started(), run.report(event)]
            for seq, frame in enumerate(frames):
                frame.seq = max(seq, 1)
            await backend.world.service.apply(machine, frames)

            listed = (await client.get("/v1/approvals", params={"state": "pending"})).json()
            assert [one["id"] for one in listed["data"]] == [approval_id]
            path = f"/v1/approvals/{approval_id}"
            assert (await other.get("/v1/approvals")).json()["data"] == []
            assert (await other.post(path, json={"decision": "once"})).status_code == 404
            key = {"Idempotency-Key": "k1"}
            first = await client.post(path, json={"decision": "deny", "reason": "no"}, headers=key)
            again = await client.post(path, json={"decision": "deny", "reason": "no"}, headers=key)
            assert first.json() == again.json()
            assert (first.json()["state"], first.json()["reason"]) == ("answered", "no")
            late = await client.post(path, json={"decision": "once"})
            assert late.status_code == 409
            problem = late.json()
            assert (problem["decided_by"], problem["decision"]) == ("ana", "deny")
            assert problem["decided_at"] == first.json()["decided_at"]
            assert (await client.get("/v1/approvals?state=pending")).json()["data"] == []
