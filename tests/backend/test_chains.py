"""Agents that message agents: where their messages go, and who stops them when they go on and on."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudagent_backend.delivery import chains, relay
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import agents, deliveries, messages, users
from cloudagent_backend.store.messages import Cause
from cloudagent_protocol.events import Finished, Outcome, RunEvent, Started
from cloudagent_protocol.frames import (
    Ack,
    Deliver,
    FindAgent,
    FoundAgent,
    ListAgents,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    MessageId,
    RunId,
    new_message_id,
    new_run_id,
)
from cloudagent_protocol.resources import Author, Chain, ChainDecide, DeliveryTrace, Message
from fakes.desk import Desk, add_host, hello, now, open_desk


@dataclass
class Turn:
    """An agent's work on what it was delivered, as its daemon reports it."""

    office: "Office"
    deliver: Deliver
    run_id: RunId = field(default_factory=new_run_id)
    seq: int = 0

    def report(self, event: RunEvent) -> RunReport:
        self.seq += 1
        event.seq = self.seq
        return RunReport(
            run_id=self.run_id,
            agent_id=self.deliver.agent.id,
            conversation_id=self.deliver.message.conversation_id,
            delivery_ids=[self.deliver.delivery_id],
            event=event,
        )

    def send(self, text: str, conversation_id: ConversationId, **more: Any) -> Send:
        here = conversation_id == self.deliver.message.conversation_id
        frame = Send(
            message_id=new_message_id(),
            agent_id=self.deliver.agent.id,
            conversation_id=conversation_id,
            run_id=self.run_id,
            text=text,
            in_reply_to=self.deliver.message.id if here else None,
            caused_by=self.deliver.message.id,
            sent_at=now(),
        )
        return frame.model_copy(update=more)

    async def start(self) -> None:
        await self.office.desk.report(
            self.report(Started(at=now(), driver="claude_code", launch_id="la_1"))
        )

    async def reply(self, text: str = "done", **more: Any) -> MessageId:
        """As the tool `send_message` does: into the conversation that it works in."""
        frame = self.send(text, self.deliver.message.conversation_id, **more)
        await self.office.desk.report(frame)
        return frame.message_id

    async def ask(self, name: str, text: str = "could you?", **more: Any) -> MessageId:
        """As the tool `message_agent` does."""
        found = await self.office.find(self.deliver, name)
        assert isinstance(found, FoundAgent), found
        frame = self.send(text, found.conversation_id, **more)
        await self.office.desk.report(frame)
        return frame.message_id

    async def end(self, outcome: Outcome = Outcome.REPLIED) -> None:
        await self.office.desk.report(self.report(Finished(at=now(), outcome=outcome)))


@dataclass
class Office:
    """Ana's host with its agents `frontend` and `api`, which take turns as told."""

    desk: Desk
    frontend: AgentId
    api: AgentId
    taken: set[str] = field(default_factory=set[str])

    async def take(self, machine: Machine | None = None) -> list[Turn]:
        """Leases what there is; turns for the deliveries that are new."""
        self.desk.machine, before = machine or self.desk.machine, self.desk.machine
        frames = [one for one in await self.desk.lease() if isinstance(one, Deliver)]
        self.desk.machine = before
        new = [one for one in frames if one.delivery_id not in self.taken]
        self.taken |= {one.delivery_id for one in new}
        return [Turn(self, one) for one in new]

    async def next(self) -> Turn:
        """The one turn that is to be taken now, begun."""
        [turn] = await self.take()
        await turn.start()
        return turn

    async def find(self, deliver: Deliver, name: str) -> FoundAgent | str:
        query = FindAgent(agent_id=deliver.agent.id, wanted=name, caused_by=deliver.message.id)
        return await self.desk.service.find_agent(self.desk.machine, query)

    async def message(self, message_id: MessageId) -> Message:
        found = await self.desk.database.read(
            lambda c: messages.load(c, self.desk.user_id, message_id)
        )
        assert found is not None
        return found

    async def trace(self, message_id: MessageId) -> DeliveryTrace:
        [row] = await self.desk.database.read(
            lambda c: deliveries.of_message(c, self.desk.user_id, message_id)
        )
        return deliveries.trace(row)

    async def chain(self, message: Message) -> Chain:
        return await self.desk.database.read(
            lambda c: chains.show(c, self.desk.user_id, message.id)
        )

    async def decide(self, message: Message, decision: str, **more: Any) -> Chain:
        body = ChainDecide.model_validate({"decision": decision, **more})
        return await self.desk.service.decide(self.desk.user_id, "ana", message.id, body)

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(row.data) for row in await self.desk.log() if row.type == kind]

    async def until_nobody_has_a_turn(self) -> int:
        """Lets every agent always message the other one; returns how many turns they took."""
        count = 0
        while turns := await self.take():
            for turn in turns:
                await turn.start()
                other = "api" if turn.deliver.agent.name == "frontend" else "frontend"
                if isinstance(await self.find(turn.deliver, other), FoundAgent):
                    await turn.ask(other)
                await turn.end()
                count += 1
        return count


@asynccontextmanager
async def office(directory: Path, **limits: int) -> AsyncGenerator[Office]:
    async with open_desk(directory, limits=Limits(**limits)) as desk:
        yield Office(desk, desk.agent_id, await desk.add_agent("api"))


# --- where messages go ---


async def test_a_persons_message_begins_a_chain_of_its_own(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        message = await it.desk.say()
        assert (message.chain_id, message.depth, message.caused_by) == (message.id, 0, None)
        deliver = (await it.next()).deliver
        assert (deliver.message.chain_id, deliver.message.depth) == (message.id, 0)
        assert deliver.hop_limit == 8
        chain = await it.chain(message)
        assert (chain.state, chain.turns, chain.opening) == ("active", 0, "fix the login test")


async def test_a_reply_to_a_person_goes_on_with_the_chain_and_to_no_agent(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        message = await it.desk.say()
        reply = await it.message(await (await it.next()).reply())
        assert (reply.chain_id, reply.depth, reply.caused_by) == (message.id, 1, message.id)
        assert reply.in_reply_to == message.id
        assert reply.deliveries == []
        assert (await it.chain(message)).turns == 0


async def test_what_is_asked_of_an_agent_comes_back_to_where_it_was_asked(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        message = await it.desk.say("what does the api return?")
        first = await it.next()
        question = await first.ask("api", "what do you return?")
        await first.reply("I asked api.")
        await first.end()

        asked = await it.next()
        assert asked.deliver.agent.id == it.api
        assert asked.deliver.message.author == Author(type="agent", id=it.frontend, name="frontend")
        between = asked.deliver.message.conversation_id
        assert between != message.conversation_id
        assert asked.deliver.message.written_in is None
        assert (asked.deliver.message.depth, asked.deliver.message.caused_by) == (1, message.id)
        answer = await asked.reply("42")
        await asked.end()

        back = await it.next()
        got = back.deliver.message
        assert back.deliver.agent.id == it.frontend
        assert (got.text, got.depth, got.caused_by) == ("42", 2, question)
        assert (got.conversation_id, got.written_in) == (message.conversation_id, between)
        last = await it.message(await back.reply("It returns 42."))
        assert last.conversation_id == message.conversation_id
        assert (last.depth, last.caused_by, last.chain_id) == (3, answer, message.id)
        assert last.deliveries == []
        await back.end()
        assert await it.take() == []
        chain = await it.chain(message)
        assert (chain.turns, chain.state) == (2, "active")
        assert chain.conversation_ids == [message.conversation_id, between]
        assert chain.agent_ids == [it.api, it.frontend]


async def test_a_question_back_comes_back_to_where_that_was_asked(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        await (await it.next()).ask("api", "which?")
        asked = await it.next()
        between = asked.deliver.message.conversation_id
        await asked.reply("which what?")
        await (await it.next()).ask("api", "which port")
        again = await it.next()
        assert again.deliver.message.conversation_id == between
        assert again.deliver.message.depth == 3


async def test_two_agents_have_one_conversation_whoever_begins(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        first = await it.find((await it.next()).deliver, "api")
        await it.desk.say(agent_id=it.api)
        second = await it.find((await it.next()).deliver, "frontend")
        assert isinstance(first, FoundAgent)
        assert isinstance(second, FoundAgent)
        assert first.conversation_id == second.conversation_id


async def test_an_answer_to_a_person_in_the_agents_conversation_is_for_the_person(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        turn = await it.next()
        found = await it.find(turn.deliver, "api")
        assert isinstance(found, FoundAgent)
        await it.desk.say("stop it", conversation_id=found.conversation_id, agent_id=it.api)
        told = await it.next()
        assert (await it.message(await told.reply("all right"))).deliveries == []


async def test_a_daemon_that_knows_no_chains_is_understood_by_what_it_replies_to(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as it:
        message = await it.desk.say()
        turn = await it.next()
        reply = await it.message(await turn.reply(caused_by=None))
        assert (reply.caused_by, reply.depth) == (message.id, 1)
        found = await it.find(turn.deliver, "api")
        assert isinstance(found, FoundAgent)
        bare = turn.send("psst", found.conversation_id, caused_by=None)
        await it.desk.report(bare)
        assert (await it.message(bare.message_id)).caused_by == message.id


async def test_a_cause_that_the_agent_was_never_given_counts_for_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        turn = await it.next()
        other = await it.desk.say(agent_id=it.api)
        reply = await it.message(await turn.reply(in_reply_to=None, caused_by=other.id))
        assert (reply.chain_id, reply.depth, reply.caused_by) == (reply.id, 1, None)


async def test_a_send_that_is_repeated_is_one_message_with_one_delivery(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        turn = await it.next()
        found = await it.find(turn.deliver, "api")
        assert isinstance(found, FoundAgent)
        frame = turn.send("once", found.conversation_id)
        await it.desk.report(frame)
        await it.desk.report(frame)
        [asked] = await it.take()
        assert asked.deliver.message.id == frame.message_id


# --- whom an agent may message ---


async def test_an_agent_sees_its_owners_other_agents_and_none_of_their_secrets(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as it:
        listed = await it.desk.service.list_agents(
            it.desk.machine, ListAgents(agent_id=it.frontend)
        )
        assert listed is not None
        assert [one.model_dump() for one in listed] == [
            {
                "id": it.api,
                "name": "api",
                "driver": "claude_code",
                "host": "mbp",
                "status": "offline",
            }
        ]


async def test_a_machine_asks_for_its_own_agents_only(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        other, _ = await add_host(it.desk.database, it.desk.user_id, "other", "x")
        asked = ListAgents(agent_id=it.frontend)
        assert await it.desk.service.list_agents(other, asked) is None
        query = FindAgent(agent_id=it.frontend, wanted="api", caused_by=MessageId("msg_1"))
        assert "no agent of this machine" in str(await it.desk.service.find_agent(other, query))


async def test_whom_it_may_not_message_is_told_as_whom_there_is_not(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        ben = await it.desk.database.write(lambda c: _user(c, "ben@example.com"))
        _, bens = await add_host(it.desk.database, ben, "bens", "bens agent")
        await it.desk.say()
        deliver = (await it.next()).deliver
        nobody = await it.find(deliver, "agent_NOBODY")
        assert nobody == "There is no agent 'agent_NOBODY'. You can message: api."
        assert await it.find(deliver, bens) == str(nobody).replace("agent_NOBODY", bens)
        assert "bens agent" not in str(await it.find(deliver, "bens agent")).partition(".")[2]
        assert "yourself" not in str(nobody)
        assert "cannot message itself" in str(await it.find(deliver, "frontend"))
        assert isinstance(await it.find(deliver, "API"), FoundAgent)
        assert isinstance(await it.find(deliver, it.api), FoundAgent)
        await it.desk.database.write(lambda c: agents.delete(c, it.api))
        assert await it.find(deliver, "api") == (
            "There is no agent 'api'. You can message: nobody."
        )


def _user(c: Any, email: str) -> Any:
    return users.create(c, email, name="ben").id


async def test_an_agent_on_a_machine_that_is_away_is_messaged_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as it:
        far, _ = await add_host(it.desk.database, it.desk.user_id, "nas", "backup")
        await it.desk.greet()
        await it.desk.say()
        turn = await it.next()
        found = await it.find(turn.deliver, "backup")
        assert isinstance(found, FoundAgent)
        assert found.waits_for is not None
        assert "nas has not connected yet" in found.waits_for
        question = await turn.ask("backup")
        assert (await it.trace(question)).state == "queued"
        here = await it.find(turn.deliver, "api")
        assert isinstance(here, FoundAgent)
        assert here.waits_for is None
        [there] = await it.take(far)
        assert there.deliver.message.id == question


# --- messages that may not go ---


async def test_above_the_hop_limit_a_tool_is_refused_before_it_sends(tmp_path: Path) -> None:
    async with office(tmp_path, hops=2) as it:
        await it.desk.say()
        assert await it.until_nobody_has_a_turn() == 3
        rows = await it.desk.database.read(
            lambda c: c.execute("SELECT max(depth) FROM messages").fetchone()
        )
        assert rows[0] == 2


async def test_above_the_hop_limit_a_message_is_kept_and_its_delivery_says_why(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, hops=1) as it:
        message = await it.desk.say()
        await (await it.next()).ask("api")
        asked = await it.next()
        late = await it.message(await asked.reply("too late", auto_published=True))
        assert [one.state for one in late.deliveries] == ["dead"]
        trace = await it.trace(late.id)
        assert (trace.outcome, trace.reason) == ("dead", "hop_limit")
        assert [rung.rung for rung in trace.rungs] == ["stored", "dead"]
        assert "number 2 in a chain" in (trace.rungs[-1].detail or "")
        assert await it.take() == []
        assert (await it.chain(message)).turns == 1


async def test_a_question_that_reaches_nobody_comes_back_to_who_asked(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        message = await it.desk.say()
        turn = await it.next()
        found = await it.find(turn.deliver, "api")
        assert isinstance(found, FoundAgent)
        await it.desk.database.write(lambda c: agents.delete(c, it.api))
        lost = turn.send("are you\nthere?", found.conversation_id)
        await it.desk.report(lost)
        assert (await it.trace(lost.message_id)).reason == "agent_unknown"
        notice = (await it.next()).deliver
        assert notice.agent.id == it.frontend
        assert notice.message.author.type == "system"
        assert notice.message.conversation_id == message.conversation_id
        assert (notice.message.depth, notice.message.caused_by) == (2, lost.message_id)
        assert "did not reach api: api was removed" in notice.message.text
        assert "> are you\n> there?" in notice.message.text


async def test_an_answer_that_reaches_nobody_gives_nobody_another_turn(tmp_path: Path) -> None:
    async with office(tmp_path) as it:
        await it.desk.say()
        await (await it.next()).ask("api")
        asked = await it.next()
        await it.desk.database.write(lambda c: agents.delete(c, it.frontend))
        answer = await asked.reply("42")
        assert (await it.trace(answer)).state == "dead"
        assert await it.take() == []


async def test_a_question_to_a_machine_with_a_full_backlog_comes_back_too(tmp_path: Path) -> None:
    async with open_desk(tmp_path, backlog_cap=2) as desk:
        it = Office(desk, desk.agent_id, await desk.add_agent("api"))
        far, backup = await add_host(desk.database, desk.user_id, "nas", "backup")
        for _ in range(2):
            await desk.say(agent_id=backup)
        await desk.say()
        turn = await it.next()
        lost = await turn.ask("backup")
        assert (await it.trace(lost)).reason == "backlog_full"
        assert "already wait for nas" in (await it.next()).deliver.message.text
        assert len(await it.take(far)) == 2


# --- how long they may go on ---


async def test_two_agents_in_circles_take_exactly_their_turns_and_a_person_is_asked(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, hops=1_000, turns=7) as it:
        message = await it.desk.say()
        assert await it.until_nobody_has_a_turn() == 1 + 7
        chain = await it.chain(message)
        assert (chain.state, chain.turns, chain.waiting, chain.pauses) == ("paused", 7, 1, 1)
        assert chain.paused_at is not None
        [told] = await it.events("chain.updated")
        assert told == json.loads(chain.model_dump_json())

        held = (await it.events("message.created"))[-1]
        trace = await it.trace(held["id"])
        assert (trace.state, trace.reason) == ("queued", "budget")
        assert trace.rungs[-1].rung == "waiting"
        assert "a person decides" in (trace.rungs[-1].detail or "")

        goes_on = await it.decide(message, "continue")
        assert (goes_on.state, goes_on.turns_allowed, goes_on.waiting) == ("active", 14, 0)
        assert [(one.decision, one.by) for one in goes_on.answers] == [("continue", "ana")]
        assert await it.until_nobody_has_a_turn() == 7
        chain = await it.chain(message)
        assert (chain.state, chain.turns, chain.waiting, chain.pauses) == ("paused", 14, 1, 2)

        stopped = await it.decide(message, "stop")
        assert (stopped.state, stopped.waiting) == ("stopped", 0)
        last = (await it.events("message.created"))[-1]
        trace = await it.trace(last["id"])
        assert (trace.state, trace.outcome) == ("cancelled", "cancelled")
        assert (trace.rungs[-1].actor, trace.rungs[-1].detail) == ("ana", "the chain was stopped")
        assert await it.until_nobody_has_a_turn() == 0
        # Nothing is lost: every message has had its turn, or says who stopped it.
        ends = await it.desk.database.read(
            lambda c: c.execute("SELECT state, count(*) FROM deliveries GROUP BY 1").fetchall()
        )
        assert dict(map(tuple, ends)) == {"done": 15, "cancelled": 1}


async def test_the_first_answer_counts_and_the_second_is_told_whose_it_was(tmp_path: Path) -> None:
    async with office(tmp_path, hops=1_000, turns=1) as it:
        message = await it.desk.say()
        with pytest.raises(Refused, match="has not paused: it has had 0 turns"):
            await it.decide(message, "stop")
        await it.until_nobody_has_a_turn()
        await it.decide(message, "continue")
        with pytest.raises(Refused, match="ana has answered already: continue"):
            await it.decide(message, "stop")
        await it.until_nobody_has_a_turn()
        with pytest.raises(Refused, match="ana has answered already: continue"):
            await it.decide(message, "stop", pause=1)
        assert (await it.decide(message, "stop", pause=2)).state == "stopped"


async def test_what_comes_for_a_paused_chain_is_held_and_for_a_stopped_one_cancelled(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, turns=1) as it:
        message = await it.desk.say()
        turn = await it.next()
        for _ in range(2):
            await turn.ask("api")
        asked = await it.next()
        assert (await it.chain(message)).waiting == 1
        third = await turn.ask("api")
        assert (await it.trace(third)).reason == "budget"
        assert (await it.chain(message)).waiting == 2
        found = await it.find(turn.deliver, "api")
        assert isinstance(found, FoundAgent)
        assert "when a person lets it go on" in (found.waits_for or "")
        await it.decide(message, "stop")
        late = turn.send("after all", found.conversation_id)
        await it.desk.report(late)
        trace = await it.trace(late.message_id)
        assert (trace.state, trace.rungs[-1].actor) == ("cancelled", "ana")
        assert "ana has stopped this chain" in str(await it.find(turn.deliver, "api"))
        # What a machine has of it is told to stop, the person's own message too.
        interrupts = [f for f in await it.desk.outbox() if f.type == "interrupt"]
        assert {one.delivery_id for one in interrupts} == {
            turn.deliver.delivery_id,
            asked.deliver.delivery_id,
        }
        # An answer that was written meanwhile is still shown to the person.
        reply = await it.message(await turn.reply("stopped"))
        assert reply.text == "stopped"


async def test_a_paused_chain_holds_up_nothing_else(tmp_path: Path) -> None:
    async with office(tmp_path, turns=1) as it:
        message = await it.desk.say()
        turn = await it.next()
        for _ in range(40):  # more than the window
            await turn.ask("api")
        assert len(await it.take()) == 1
        other = await it.desk.say(agent_id=it.api)
        [overtakes] = await it.take()
        assert overtakes.deliver.message.id == other.id
        await it.decide(message, "continue")
        [released] = await it.take()
        # Its place in the order is where it was let go.
        assert released.deliver.delivery_seq > overtakes.deliver.delivery_seq


async def test_a_turn_that_a_machine_forgot_is_not_counted_again(tmp_path: Path) -> None:
    async with office(tmp_path, turns=1) as it:
        message = await it.desk.say()
        turn = await it.next()
        await it.desk.report(Ack(seq=1))
        question = await turn.ask("api")
        [asked] = await it.take()
        await it.desk.service.greet(it.desk.machine, hello(unfinished=[turn.deliver.delivery_id]))
        assert (await it.trace(question)).state == "queued"
        it.taken.discard(asked.deliver.delivery_id)
        [again] = await it.take()
        assert again.deliver.message.id == question
        assert (await it.chain(message)).turns == 1


async def test_a_held_message_is_cancelled_with_its_agent_or_its_host(tmp_path: Path) -> None:
    async with office(tmp_path, turns=1) as it:
        far, backup = await add_host(it.desk.database, it.desk.user_id, "nas", "backup")
        await it.desk.say()
        turn = await it.next()
        await turn.ask("api")
        first, second = await turn.ask("api"), await turn.ask("backup")
        await it.take()
        await it.take(far)
        service, user_id = it.desk.service, it.desk.user_id
        await it.desk.database.write(lambda c: service.agent_removed(c, user_id, it.api))
        assert (await it.trace(first)).state == "cancelled"
        await it.desk.database.write(lambda c: service.host_removed(c, user_id, far.host_id))
        await service.bury(far.host_id)
        assert (await it.trace(second)).state == "dead"
        del backup


# --- the rules alone ---

_CAUSES = st.builds(
    Cause,
    id=st.just(MessageId("msg_c")),
    conversation_id=st.sampled_from([ConversationId("between"), ConversationId("other")]),
    author=st.sampled_from(
        [Author(type="agent", id="target", name="t"), Author(type="user", id="usr", name="u")]
    ),
    chain_id=st.just(MessageId("msg_0")),
    depth=st.integers(0, 9),
    asked_in=st.sampled_from([None, ConversationId("place")]),
    worked_in=st.just(ConversationId("between")),
)


@given(cause=st.none() | _CAUSES)
@settings(max_examples=50, deadline=None)
def test_only_an_answer_is_worked_on_elsewhere(cause: Cause | None) -> None:
    where = relay.workplace(ConversationId("between"), AgentId("target"), cause)
    is_answer = (
        cause is not None
        and cause.author.id == "target"
        and cause.conversation_id == "between"
        and cause.asked_in == "place"
    )
    assert where == ("place" if is_answer else "between")
    link = relay.linked(MessageId("msg_n"), cause)
    assert link.depth == (cause.depth + 1 if cause else 1)
    assert link.chain_id == ("msg_0" if cause else "msg_n")
