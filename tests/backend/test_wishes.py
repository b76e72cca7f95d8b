"""What a message wants for its turn alone: another model, or a narrower permission mode."""

from pathlib import Path
from typing import Any

import pytest

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.framing import may_want
from cloudagent_backend.store import agents, messages
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.resources import Message
from fakes.desk import Desk, open_desk
from fakes.server import running_backend

MODES = ("plan", "default", "acceptEdits", "bypassPermissions")


@pytest.mark.parametrize("own", MODES)
def test_a_message_wants_the_agents_own_mode_or_the_narrowest(own: str) -> None:
    wanted = {mode for mode in MODES if may_want(own, mode)}
    assert wanted == (set(MODES) if own == "bypassPermissions" else {own, "plan"})


async def changed(desk: Desk, **fields: Any) -> None:
    def work(c: Any) -> None:
        row = agents.load(c, desk.user_id, desk.agent_id)
        assert row
        agents.update(c, row, fields)

    await desk.database.write(work)


async def test_it_is_what_the_machine_is_given_for_this_message_alone(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await changed(desk, model="opus", mode="acceptEdits")
        message = await desk.say("think hard", model="haiku", permission_mode="plan")
        await desk.say("and now as ever")
        wished, ordinary = (frame.agent for frame in await desk.lease())
        assert (wished.model, wished.mode) == ("haiku", "plan")
        assert (ordinary.model, ordinary.mode) == ("opus", "acceptEdits")
        kept = await desk.database.read(lambda c: messages.load(c, desk.user_id, message.id))
        assert kept
        assert (kept.model, kept.permission_mode) == ("haiku", "plan")


async def stored_as(desk: Desk, message: Message) -> str | None:
    """What its newest delivery's first rung says."""
    trace = await desk.database.read(lambda c: ladder.trace_of(c, desk.user_id, message))
    return trace.deliveries[-1].rungs[0].detail


async def test_its_ladder_says_what_it_asked_for(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        both = await desk.say("think hard", model="haiku", permission_mode="plan")
        wished = "asked for the model haiku and the mode plan"
        assert await stored_as(desk, both) == wished
        await desk.service.cancel(desk.user_id, "ana", both.id)
        await desk.service.retry(desk.user_id, "ana", both.id)
        assert await stored_as(desk, both) == (
            f"tried again: the delivery before ended as cancelled (interrupted); {wished}"
        )
        one = await desk.say("plan it", permission_mode="plan")
        assert await stored_as(desk, one) == "asked for the mode plan"
        assert await stored_as(desk, await desk.say("as ever")) is None


async def test_it_never_lets_the_agent_do_more_than_its_own_mode(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await changed(desk, mode="acceptEdits")
        with pytest.raises(Refused) as refused:
            await desk.say("just do it", permission_mode="bypassPermissions")
        assert refused.value.code is ErrorCode.CONFLICT
        assert "acceptEdits" in str(refused.value)
        assert await desk.lease() == []


async def test_what_waits_is_as_narrow_as_its_agent_has_become(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await changed(desk, mode="bypassPermissions")
        message = await desk.say("later", permission_mode="acceptEdits")
        await changed(desk, mode="default")
        [frame] = await desk.lease()
        assert frame.agent.mode == "default"
        trace = await desk.database.read(lambda c: ladder.trace_of(c, desk.user_id, message))
        asked, *_, otherwise = (rung.detail for rung in trace.deliveries[0].rungs)
        assert asked == "asked for the mode acceptEdits"
        assert otherwise == (
            "frontend works in the mode default by now: this goes in that one, not in acceptEdits"
        )


async def test_both_ways_of_sending_take_it_and_refuse_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        wish = {"text": "look only", "model": "haiku", "permission_mode": "plan"}
        sent = await client.post(f"/v1/agents/{backend.ana.agent.id}/messages", json=wish)
        assert sent.status_code == 201
        assert (sent.json()["model"], sent.json()["permission_mode"]) == ("haiku", "plan")
        path = f"/v1/conversations/{sent.json()['conversation_id']}/messages"
        assert (await client.post(path, json=wish)).json()["permission_mode"] == "plan"
        for mode, status in (("acceptEdits", 409), ("everything", 422)):
            answer = await client.post(path, json=wish | {"permission_mode": mode})
            assert answer.status_code == status
