"""What an agent asks other agents, in whole runs: where it goes, how a run with it ends, what survives."""

from pathlib import Path
from typing import Any

import anyio

from cloudagent_daemon.runs.prompts import origin
from cloudagent_protocol.events import Outcome, ToolResult
from cloudagent_protocol.frames import Deliver, FoundAgent
from cloudagent_protocol.ids import AgentId, ConversationId, MessageId
from cloudagent_protocol.resources import Author
from fakes.runs import RecordedUplink, World, a_delivery, a_world

BETWEEN = ConversationId("conv_between")
ASK = '@@call message_agent {"agent": "api", "text": "what do you return?"}'


def knowing_api() -> RecordedUplink:
    uplink = RecordedUplink()
    uplink.known["api"] = FoundAgent(
        id=AgentId("agent_2"), name="api", conversation_id=BETWEEN, waits_for="nas is offline"
    )
    return uplink


def from_agent(world: World, text: str, **message: Any) -> Deliver:
    """A message of the agent `api`, at depth 3 of a chain."""
    deliver = world.deliver(text)
    changes = {"author": Author(type="agent", id="agent_2", name="api"), "depth": 3} | message
    return deliver.model_copy(update={"message": deliver.message.model_copy(update=changes)})


def answers(uplink: RecordedUplink) -> list[str]:
    return [str(event.output) for event in uplink.events if isinstance(event, ToolResult)]


async def test_a_question_to_an_agent_is_sent_into_the_conversation_with_it(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        deliver = world.deliver(f"{ASK}\n@@reply I asked api.")
        seen = await world.run(deliver, uplink=knowing_api())
    [question, reply] = seen.sends
    assert (question.text, question.conversation_id) == ("what do you return?", BETWEEN)
    assert (question.caused_by, question.in_reply_to) == (deliver.message.id, None)
    assert (reply.caused_by, reply.in_reply_to) == (deliver.message.id, deliver.message.id)
    [search] = seen.searches
    assert (search.wanted, search.caused_by) == ("api", deliver.message.id)
    assert "It waits: nas is offline." in answers(seen)[0]
    assert seen.end.outcome is Outcome.REPLIED


async def test_a_question_is_no_answer_to_the_person_who_waits(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(world.deliver(f"{ASK}\n@@say I asked."), uplink=knowing_api())
        assert seen.end.outcome is Outcome.AUTO_PUBLISHED
        assert [send.auto_published for send in seen.sends] == [False, True]
        seen = await world.run(world.deliver(ASK), uplink=knowing_api())
    assert seen.end.outcome is Outcome.SILENT
    assert seen.end.detail == "It asked api and waits for the answer."


async def test_an_answer_given_with_the_tool_for_questions_is_an_answer(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        uplink = knowing_api()
        here = uplink.known["api"].model_copy(update={"conversation_id": world.conversation})
        uplink.known["api"] = here
        seen = await world.run(from_agent(world, ASK), uplink=uplink)
    assert seen.end.outcome is Outcome.REPLIED
    assert seen.sends[0].in_reply_to is not None
    assert "do not wait" not in answers(seen)[0]


async def test_a_question_that_the_backend_refuses_sends_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(f"{ASK}\n@@say So be it.")
    assert [send.text for send in seen.sends] == ["So be it."]
    assert "Nothing was sent to api: There is no agent 'api'." in answers(seen)[0]


async def test_a_reply_that_an_agent_would_not_get_is_refused_at_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for deliver, refused in (
            (from_agent(world, "@@reply 42\n@@say over"), False),
            (from_agent(world, "@@reply 42\n@@say over", depth=8), True),
            (from_agent(world, "@@reply 42", depth=8, written_in=BETWEEN), False),
            (from_agent(world, "@@reply 42", depth=8, author=Author(type="user", id="u", name="a")), False),
        ):  # fmt: skip
            seen = await world.run(deliver.model_copy(update={"hop_limit": 8}))
            assert ("number 9 in a chain" in answers(seen)[0]) == refused
            assert [send.auto_published for send in seen.sends] == [refused]
        unlimited = from_agent(world, "@@reply 42", depth=1_000)
        assert (await world.run(unlimited)).sends[0].text == "42"


async def test_a_turn_cut_off_after_a_question_goes_on_and_knows_of_it(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        uplink, deliver = knowing_api(), world.deliver(f"{ASK}\n@@say asked\n@@hang")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, uplink=uplink))
            await uplink.until(lambda frame: frame.type == "run_report" and _says(frame, "asked"))
            tasks.cancel_scope.cancel()
        changed = deliver.message.model_copy(update={"text": "@@recall"})
        again = deliver.model_copy(update={"message": changed})
        seen = await world.run(again, attempt=2)
        prompts = (tmp_path / "fake").rglob("*.jsonl")
        given = "".join(path.read_text() for path in prompts)
    # The question goes out again under its own id, which changes nothing if it had arrived.
    assert seen.sends[0] == uplink.sends[0]
    assert "> (to the agent api) what do you return?" in given
    # What was asked is no reply, so the words at the end are published.
    assert seen.end.outcome is Outcome.AUTO_PUBLISHED


def _says(frame: Any, text: str) -> bool:
    return getattr(frame.event, "text", None) == text


def test_a_model_is_told_who_speaks_where_that_is_no_person() -> None:
    message = a_delivery().message
    assert origin(message) == ""
    agent = message.model_copy(update={"author": Author(type="agent", id="agent_2", name="api")})
    assert "goes to api and begins its next turn" in origin(agent)
    asked = agent.model_copy(update={"written_in": BETWEEN, "id": MessageId("msg_2")})
    assert "which you have asked" in origin(asked)
    ours = message.model_copy(update={"author": Author(type="system", id="system", name="x")})
    assert "cloudagent itself" in origin(ours)
