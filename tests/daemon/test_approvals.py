"""A run that asks people: it waits, leaves, comes back, and does only what it was allowed."""

import json
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_protocol.events import Finished, Outcome, Question
from cloudagent_protocol.frames import (
    Decide,
    Deliver,
    Interrupt,
    RunReport,
)
from cloudagent_protocol.ids import new_approval_id, new_run_id
from cloudagent_protocol.resources import DeliveryMode
from fakes.people import Machine, a_machine_in
from fakes.runs import a_delivery, a_world

FAKE = Path(__file__).parent.parent / "fakes" / "acp_agent.py"
CLAUDE = FAKE.with_name("agent_cli.py")


@asynccontextmanager
async def a_machine(
    home: Path, spool: Spool | None = None, **limits: Any
) -> AsyncGenerator[Machine]:
    async with a_world(home, mask="off", **limits) as world:
        command = [sys.executable, str(FAKE)]
        world.agent = world.agent.model_copy(update={"driver": "acp", "command": command})
        async with a_machine_in(world, spool) as machine:
            yield machine


def done(machine: Machine) -> list[str]:
    return [line for line in machine.world.effects() if line.startswith("did ")]


async def test_an_agent_that_asks_waits_for_the_decision_and_acts_on_it(tmp_path: Path) -> None:
    async with a_machine(tmp_path) as machine:
        delivery = await machine.say("@@ask execute alembic upgrade\n@@ask execute rm -r data")
        first = await machine.event("approval_requested")
        assert (first.tool, first.input) == ("alembic upgrade", {"command": "alembic upgrade"})
        assert machine.queue.waits_for == {delivery.agent.id: "approval: alembic upgrade"}
        assert done(machine) == []
        await machine.decide(first, delivery, "once")
        second = await machine.event("approval_requested")
        await machine.decide(second, delivery, "deny", reason="not the data")
        finished = await machine.event("finished")
        assert done(machine) == ["did alembic upgrade"]
        resolved = [e for e in machine.uplink.events if e.type == "approval_resolved"]
        assert [(e.decision, e.by, e.reason) for e in resolved] == [
            ("once", "Ana", None),
            ("deny", "Ana", "not the data"),
        ]
        assert finished.outcome == "auto_published"
        assert await machine.spool.asked(delivery.delivery_id) == []


async def test_what_was_refused_is_not_asked_again_in_the_turn(tmp_path: Path) -> None:
    async with a_machine(tmp_path) as machine:
        delivery = await machine.say("@@ask execute reboot\n@@ask execute reboot")
        await machine.decide(await machine.event("approval_requested"), delivery, "deny")
        await machine.event("finished")
        assert machine.uplink.types.count("approval_requested") == 1
        assert done(machine) == []


async def test_of_two_decisions_the_first_counts_and_an_unknown_one_refuses(tmp_path: Path) -> None:
    async with a_machine(tmp_path) as machine:
        delivery = await machine.say("@@ask execute reboot")
        asked = await machine.event("approval_requested")
        await machine.decide(asked, delivery, "perhaps")
        await machine.decide(asked, delivery, "once")
        resolved = await machine.event("approval_resolved")
        await machine.event("finished")
        assert (resolved.decision, done(machine)) == ("perhaps", [])


async def test_nobody_answers_so_the_process_ends_and_the_answer_brings_it_back(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        delivery = await machine.say("@@ask execute make deploy\n@@reply deployed")
        asked = await machine.event("approval_requested")
        await machine.parked()
        assert machine.queue.working == {}
        assert machine.queue.waits_for == {delivery.agent.id: "approval: make deploy"}
        later = await machine.say("@@say later")
        await machine.decide(asked, delivery, "once")
        await machine.event("finished")
        assert done(machine) == ["did make deploy"]
        assert [send.text for send in machine.uplink.sends] == ["deployed"]
        [told] = [line for line in machine.world.effects() if line.startswith("told ")]
        assert "Ana allows it. Call it again with exactly the same input." in told
        started = [e for e in machine.uplink.events if e.type == "started"]
        assert [(e.attempt, e.resumed) for e in started[:2]] == [(1, False), (1, True)]
        await machine.event("finished")
        order = [frame.delivery_ids[0] for frame in machine.uplink.finished]
        assert order == [delivery.delivery_id, later.delivery_id]


async def put_in(machine: Machine, orders: str, more: str) -> tuple[Deliver, Deliver]:
    """A message, and one that claude takes up into its turn."""
    claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
    delivery = await machine.say(orders, **claude)
    await machine.event("tool_result")  # it has begun, and waits for more
    second = machine.world.deliver(more, **claude).model_copy(
        update={"delivery_seq": 2, "mode": DeliveryMode.STEER}
    )
    machine.delivered = 2
    await machine.receive(second)
    taken = await machine.event("steered")
    assert taken.delivery_id == second.delivery_id
    return delivery, second


def sent(machine: Machine) -> list[str]:
    """What the agent sent; each once, however often it is handed on."""
    return list({send.message_id: send.text for send in machine.uplink.sends}.values())


def prompts_of(machine: Machine) -> list[str]:
    """What its sessions were told, the first message of each process first."""
    files = (machine.world.home / "fake").glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


ORDERS = '@@reply one\n@@pause\n@@may Bash {"command": "make deploy"}\n@@reply three'


async def test_a_turn_that_was_added_to_leaves_as_well_and_goes_on_with_all_that_it_had(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        delivery, second = await put_in(machine, ORDERS, "@@reply two")
        both = [delivery.delivery_id, second.delivery_id]
        asked = await machine.event("approval_requested")
        await machine.leaves(2)  # of both it is told
        await machine.parked()
        assert machine.queue.working == {}
        assert machine.queue.order.running == 0
        assert machine.uplink.aboard == [(second.delivery_id, delivery.delivery_id)]
        later = await machine.say(
            "@@reply later", command=delivery.agent.command, driver="claude_code"
        )
        await machine.decide(asked, delivery, "once")
        await machine.event("finished")
        [end] = machine.uplink.finished
        assert end.delivery_ids == both
        started = [f for f in machine.uplink.frames if isinstance(f, RunReport)
                   and f.event.type == "started"]  # fmt: skip
        assert [frame.delivery_ids for frame in started[:2]] == [both[:1], both]
        assert [one.delivery_id for one in machine.uplink.launches[-2:]] == both
        assert [(await machine.spool.waiting(one)) for one in both] == [None, None]
        await machine.event("finished")
        assert [frame.delivery_ids for frame in machine.uplink.finished[1:]] == [
            [later.delivery_id]
        ]
        assert sent(machine) == ["one", "two", "later"]
        first, note, last = prompts_of(machine)
        assert (first, last) == (ORDERS, "@@reply later")
        assert "Ana allows it" in note
        assert "@@reply two" not in note, "its session has that already"


async def test_what_was_put_in_while_people_are_waited_for_is_told_once_and_afterwards(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=0.5) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        delivery = await machine.say('@@reply one\n@@may Bash {"command": "x"}', **claude)
        asked = await machine.event("approval_requested")
        second = machine.world.deliver("@@reply two", **claude).model_copy(
            update={"delivery_seq": 2, "mode": DeliveryMode.STEER}
        )
        await machine.receive(second)
        await machine.parked()
        assert machine.uplink.aboard == []
        await machine.decide(asked, delivery, "deny")
        for one in (delivery, second):
            await machine.event("finished")
            assert machine.uplink.finished[-1].delivery_ids == [one.delivery_id]
        assert sent(machine) == ["one", "two"]
        assert [prompt for prompt in prompts_of(machine) if "two" in prompt] == ["@@reply two"]


async def test_a_daemon_that_begins_anew_knows_what_is_part_of_a_turn_that_left(
    tmp_path: Path,
) -> None:
    async with open_spool(None) as spool:
        async with a_machine(tmp_path, spool, approval_park_s=0.2) as machine:
            delivery, second = await put_in(machine, ORDERS, "@@reply two")
            asked = await machine.event("approval_requested")
            await machine.leaves(2)
            await machine.parked()
            agent, seq = machine.world.agent, machine.seq
        # What its session was is not known either, so that a fresh one is told all of it.
        [known] = machine.world.settings.agents_dir.glob("*/.meta/sessions/*.json")
        known.unlink()
        shutil.rmtree(tmp_path / "fake")
        async with a_machine(tmp_path, spool) as machine:
            machine.world.agent, machine.seq = agent, seq
            with anyio.fail_after(20):
                while not machine.queue.order.parked:
                    await machine.queue.changed.wait()
            await machine.queue.idle()
            assert machine.uplink.types == []
            await machine.decide(asked, delivery, "deny")
            await machine.event("tool_result")
            [prompt] = prompts_of(machine)
            texts = (ORDERS, "@@reply two", "Ana does not allow it")
            assert sorted(texts, key=prompt.index) == list(texts)
            await machine.receive(Interrupt(delivery_id=delivery.delivery_id, actor="Ana"))
            await machine.event("finished")
            [end] = machine.uplink.finished
            assert end.delivery_ids == [delivery.delivery_id, second.delivery_id]


async def test_a_stop_of_what_is_part_of_a_turn_that_left_is_for_all_of_it(tmp_path: Path) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        delivery, second = await put_in(machine, ORDERS, "@@reply two")
        await machine.event("approval_requested")
        await machine.leaves(2)
        await machine.parked()
        await machine.receive(Interrupt(delivery_id=second.delivery_id, actor="Ana"))
        finished = await machine.event("finished")
        assert (finished.outcome, finished.stopped_by) == ("cancelled", "Ana")
        [end] = machine.uplink.finished
        assert end.delivery_ids == [delivery.delivery_id, second.delivery_id]
        assert (await machine.event("approval_resolved")).decision == "cancelled"


async def test_leave_that_brought_it_back_is_for_that_alone(tmp_path: Path) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        delivery = await machine.say("@@ask execute make deploy\n@@ask execute make deploy")
        asked = await machine.event("approval_requested")
        await machine.parked()
        await machine.decide(asked, delivery, "once")
        again = await machine.event("approval_requested")
        assert again.approval_id != asked.approval_id
        assert done(machine) == ["did make deploy"]


LONG = """\
@@unless first reply first
@@unless Which call ask_user {"question": "Which port?"}
@@may Bash {"command": "make deploy"}
@@may Bash {"command": "make check"}
@@reply last"""


@pytest.mark.parametrize("lost", ["session", "its record"])
async def test_a_run_that_left_and_has_lost_its_session_goes_on_afresh_and_knows_what_was_said(
    tmp_path: Path, lost: str
) -> None:
    async with a_machine(tmp_path, approval_park_s=2.0) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        delivery = await machine.say(LONG, **claude)
        question = await machine.event("question")
        await machine.decide(question, delivery, "once", answer="8080")
        asked = await machine.event("approval_requested")
        await machine.parked()
        [session] = (tmp_path / "fake").glob("*.jsonl")
        session.unlink()
        if lost != "session":
            [known] = machine.world.settings.agents_dir.glob("*/.meta/sessions/*.json")
            known.unlink()
        await machine.decide(asked, delivery, "once")
        await machine.decide(await machine.event("approval_requested"), delivery, "deny")
        finished = await machine.event("finished")
        assert (finished.outcome, sent(machine)) == ("replied", ["first", "last"])
        assert done(machine) == ["did make deploy"], "its leave was for this process"
        assert machine.uplink.types.count("question") == 1
        retries = [one.reason for one in machine.uplink.events if one.type == "retry"]
        assert retries == (["session_lost"] if lost == "session" else [])
        [prompt] = prompts_of(machine)
        told = (
            "had to wait for a person",
            "You had already sent:\n> first",
            "> Which port?\nAna answered:\n> 8080",
            LONG,
            "Ana allows it. Call it again",
        )
        assert sorted(told, key=prompt.index) == list(told)


async def test_what_was_allowed_before_it_left_again_is_told_as_done_and_not_to_be_done(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=2.0) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        orders = '@@unless deploy may Bash {"command": "make deploy"}\n@@may Bash {"command": "x"}'
        delivery = await machine.say(f"@@goes_on\n{orders}", **claude)
        await machine.decide(await machine.event("approval_requested"), delivery, "once")
        second = await machine.event("approval_requested")
        await machine.parked()
        [session] = (tmp_path / "fake").glob("*.jsonl")
        session.unlink()
        await machine.decide(second, delivery, "once")
        await machine.event("finished")
        assert done(machine) == ["did make deploy", "did x"]
        [prompt] = prompts_of(machine)
        assert prompt.count("Ana allowed it then; it may be done already.") == 1


async def test_a_fresh_session_is_not_tried_once_the_resumed_one_has_done_something(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=0.3) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        orders = '@@goes_on\n@@reply one\n@@may Bash {"command": "x"}\n@@error 400 invalid_request'
        delivery = await machine.say(orders, **claude)
        asked = await machine.event("approval_requested")
        await machine.parked()
        await machine.decide(asked, delivery, "once")
        finished = await machine.event("finished")
        assert (finished.outcome, finished.reason) == ("failed", "invalid_request")
        assert len([one for one in machine.uplink.events if one.type == "started"]) == 2


async def test_a_daemon_that_died_meanwhile_waits_on_and_acts_on_the_answer(tmp_path: Path) -> None:
    async with open_spool(None) as spool:
        async with a_machine(tmp_path, spool) as machine:
            delivery = await machine.say("@@ask execute make deploy")
            asked = await machine.event("approval_requested")
            agent, seq = machine.world.agent, machine.seq
        async with a_machine(tmp_path, spool) as machine:
            machine.world.agent, machine.seq = agent, seq
            with anyio.fail_after(20):
                while not machine.queue.order.parked:
                    await machine.queue.changed.wait()
            assert machine.uplink.types == [], "nothing runs before there is an answer"
            await machine.decide(asked, delivery, "once")
            await machine.event("finished")
            assert done(machine) == ["did make deploy"]


async def test_a_machine_that_shuts_down_does_not_wait_for_people(tmp_path: Path) -> None:
    async with a_machine(tmp_path) as machine:
        await machine.say("@@ask execute make deploy")
        await machine.event("approval_requested")
        with anyio.fail_after(15):
            await machine.queue.drain(60, another_life=True)
        await machine.parked()
        assert machine.uplink.finished == []


async def test_an_agent_that_is_not_to_wait_goes_on_without(tmp_path: Path) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        await machine.say("@@ask execute make deploy\n@@reply done without", unattended="deny")
        resolved = await machine.event("approval_resolved")
        assert (resolved.decision, resolved.by) == ("expired", "nobody")
        await machine.event("finished")
        assert [send.text for send in machine.uplink.sends] == ["done without"]
        assert done(machine) == []


async def test_a_stop_ends_what_waits_for_people(tmp_path: Path) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2) as machine:
        delivery = await machine.say("@@ask execute make deploy")
        await machine.event("approval_requested")
        await machine.parked()
        await machine.receive(Interrupt(delivery_id=delivery.delivery_id, actor="Ana"))
        finished = await machine.event("finished")
        assert (finished.outcome, finished.stopped_by) == ("cancelled", "Ana")
        resolved = await machine.event("approval_resolved")
        assert resolved.decision == "cancelled"
        assert done(machine) == []


async def test_what_nobody_decides_in_time_ends_the_run_without_another_process(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path, approval_park_s=0.2, approval_expire_s=1.0) as machine:
        await machine.say("@@ask execute make deploy")
        await machine.leaves()  # its time may be over before its process is
        resolved = await machine.event("approval_resolved")
        finished = await machine.event("finished")
        assert (resolved.decision, finished.reason) == ("expired", "unanswered")
        assert machine.uplink.types.count("started") == 1


@pytest.mark.parametrize(("decision", "again"), [("conversation", 0), ("always", 0), ("once", 1)])
async def test_a_rule_allows_the_same_again_unasked_and_says_so(
    tmp_path: Path, decision: str, again: int
) -> None:
    async with a_machine(tmp_path) as machine:
        delivery = await machine.say("@@ask execute make test")
        asked = await machine.event("approval_requested")
        assert (
            asked.rule == f"exactly the command `make test` in {machine.world.workspace}/workspace"
        )
        await machine.decide(asked, delivery, decision)
        await machine.event("finished")
        second = await machine.say("@@ask execute make test\n@@ask execute make test")
        if again:
            await machine.decide(await machine.event("approval_requested"), second, "deny")
        await machine.event("finished")
        told = [e for e in machine.uplink.events if e.type == "approval_resolved"]
        assert [e.decision for e in told] == [decision, "deny" if again else "rule"]
        assert len(done(machine)) == (1 if again else 3)


async def test_a_question_is_answered_in_the_turn_or_by_the_next_process(tmp_path: Path) -> None:
    async with a_machine(tmp_path, approval_park_s=0.3) as machine:
        order = '@@call ask_user {"question": "Which port?", "options": ["1", "2"]}'
        delivery = await machine.say(order)
        asked = await machine.event("question")
        assert (asked.question, asked.options) == ("Which port?", ["1", "2"])
        await machine.parked()
        await machine.decide(asked, delivery, "once", answer="2")
        await machine.event("finished")
        assert machine.uplink.types.count("question") == 1, "asked once more, it is known"
        [told] = [line for line in machine.world.effects() if line.startswith("told ")]
        assert "Ana answered:\\n> 2" in told
        result = [e for e in machine.uplink.events if e.type == "tool_result"][-1]
        assert result.output == "Ana answered: 2"


async def test_a_script_that_was_changed_since_it_was_allowed_is_asked_for_again(
    tmp_path: Path,
) -> None:
    async with a_machine(tmp_path) as machine:
        script = machine.world.workspace / "workspace" / "deploy.sh"
        script.parent.mkdir(parents=True)
        script.write_text("echo deploy")
        delivery = await machine.say("@@ask execute sh deploy.sh")
        asked = await machine.event("approval_requested")
        assert list(asked.files) == [str(script)]
        await machine.decide(asked, delivery, "always")
        await machine.event("finished")
        script.write_text("rm -rf ~")
        second = await machine.say("@@ask execute sh deploy.sh")
        again = await machine.event("approval_requested")
        assert again.files != asked.files
        await machine.decide(again, second, "deny")
        await machine.event("finished")
        assert len(done(machine)) == 1


async def test_what_is_shown_has_no_keys_and_says_what_is_left_out(tmp_path: Path) -> None:
    async with a_machine(tmp_path) as machine:
        key = "sk-ant-" + "a" * 40
        delivery = await machine.say(f"@@ask execute curl -H {key} x\n@@ask execute {'y' * 60_000}")
        first = await machine.event("approval_requested")
        assert key not in first.model_dump_json()
        assert (first.redacted, first.truncated, first.rule) == (True, False, None)
        await machine.decide(first, delivery, "always")
        second = await machine.event("approval_requested")
        assert (second.redacted, second.truncated, second.rule) == (False, True, None)
        assert "10000 more characters are not shown" in second.input["command"]
        await machine.decide(second, delivery, "deny")
        await machine.event("finished")
        where = (delivery.agent.id, delivery.message.conversation_id)
        assert await machine.spool.rules(*where) == [], "of what was not shown no rule is made"
        assert len(done(machine)) == 1


async def test_claude_s_own_questions_are_a_person_s_to_answer_and_so_is_its_leave(
    tmp_path: Path,
) -> None:
    options = [{"label": "A"}, {"label": "B"}]
    put = json.dumps({"questions": [{"question": "Pick one?", "options": options}]})
    asks = f'@@may AskUserQuestion {put}\n@@may Bash {{"command": "reboot"}}'
    async with a_machine(tmp_path) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        delivery = await machine.say(asks, **claude)
        asked = await machine.event("question")
        assert (asked.question, asked.options) == ("Pick one?", ["A", "B"])
        await machine.decide(asked, delivery, "once", answer="B")
        leave = await machine.event("approval_requested")
        assert (leave.tool, leave.action, leave.input) == ("Bash", "execute", {"command": "reboot"})
        await machine.decide(leave, delivery, "deny", reason="it is in use")
        await machine.event("finished")
        texts = [event.text for event in machine.uplink.events if event.type == "text"]
        assert json.loads(texts[0])["updatedInput"]["answers"] == {"Pick one?": "B"}
        assert "Ana did not allow it: it is in use" in json.loads(texts[1])["message"]


@pytest.mark.parametrize("what", ["a permission", "a question"])
async def test_what_its_program_takes_back_is_over_at_once(tmp_path: Path, what: str) -> None:
    questions = {"questions": [{"question": "Which?", "options": []}]}
    put = {
        "a permission": 'Bash {"command": "x"}',
        "a question": f"AskUserQuestion {json.dumps(questions)}",
    }[what]
    orders = f'@@retract {put}\n@@may Bash {{"command": "y"}}\n@@reply done'
    async with a_machine(tmp_path) as machine:
        claude = {"driver": "claude_code", "command": [sys.executable, str(CLAUDE)]}
        delivery = await machine.say(orders, **claude)
        first = await machine.event("question" if "?" in orders else "approval_requested")
        (tmp_path / "fake" / "gate").touch()
        resolved = await machine.event("approval_resolved")
        assert (resolved.approval_id, resolved.decision) == (first.approval_id, "cancelled")
        assert resolved.reason == "its program has taken it back"
        second = await machine.event("approval_requested")
        assert machine.queue.waits_for == {delivery.agent.id: "approval: Bash “y”"}
        known = await machine.spool.asked(delivery.delivery_id)
        assert [one.request.approval_id for one in known] == [second.approval_id]
        await machine.decide(first, delivery, "once")  # too late
        await machine.decide(second, delivery, "deny")
        await machine.event("finished")
        ended = [(e.approval_id, e.decision) for e in machine.uplink.events
                 if e.type == "approval_resolved"]  # fmt: skip
        assert ended == [(first.approval_id, "cancelled"), (second.approval_id, "deny")]
        assert sent(machine) == ["done"]


def report(delivery: Deliver, event: Any) -> RunReport:
    return RunReport(
        run_id=new_run_id(),
        agent_id=delivery.agent.id,
        conversation_id=delivery.message.conversation_id,
        delivery_ids=[delivery.delivery_id],
        event=event,
    )


async def test_the_disk_keeps_the_first_decision_about_what_is_asked_until_it_is_acted_on() -> None:
    delivery = a_delivery().model_copy(update={"seq": 1})
    now = datetime.now(UTC)
    first, other = (
        Question(seq=1, at=now, approval_id=new_approval_id(), question="?", expires_at=now)
        for _ in range(2)
    )

    def decided(seq: int, answer: str, **changed: Any) -> Decide:
        decide = Decide(
            seq=seq, approval_id=first.approval_id, delivery_id=delivery.delivery_id,
            decision="once", answer=answer, actor="Ana", decided_at=now,
        )  # fmt: skip
        return decide.model_copy(update=changed)

    async with open_spool(None) as spool:
        await spool.receive([delivery], 1)
        await spool.append(report(delivery, first))
        await spool.append(report(delivery, other))
        waiting = await spool.waiting(delivery.delivery_id)
        assert waiting is not None
        assert (waiting.asks_until, waiting.waits_for) == (now.timestamp(), "question: ?")
        changes = spool.marks.changes
        strange = decided(2, "of another", delivery_id="dlv_2")
        await spool.receive([strange, decided(3, "first"), decided(4, "second")], 4)
        assert spool.marks.changes == changes + 1, "only the first one is news"
        known = {
            one.request.approval_id: one.decided for one in await spool.asked(delivery.delivery_id)
        }
        answer = known[first.approval_id]
        assert answer is not None
        assert (answer.answer, known[other.approval_id]) == ("first", None)

        await spool.acked(2)
        await spool.reset_epoch("ep_2")
        again = [
            json.loads(body)["event"]["approval_id"] for _, body in await spool.frames_after(0, 9)
        ]
        # By their ids, which of one millisecond have no order.
        asked = sorted([first.approval_id, other.approval_id])
        assert sorted(again) == asked, "what is asked is asked again"

        await spool.acted(first.approval_id)
        await spool.receive([decided(1, "late")], 1)
        assert [one.request.approval_id for one in await spool.asked(delivery.delivery_id)] == [
            other.approval_id
        ]
        end = Finished(seq=9, at=now, outcome=Outcome.REPLIED)
        await spool.finish(report(delivery, end))
        assert await spool.asked(delivery.delivery_id) == []
