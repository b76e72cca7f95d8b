"""What a person may change of a message that waits: its words and its place, until a machine has it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudagent_backend.delivery import sending, waiting
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store import deliveries
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import MessageId
from cloudagent_protocol.resources import DeliveryMode, Message
from fakes.desk import Desk, open_desk
from fakes.server import running_backend


async def edit(desk: Desk, message: Message, text: str, actor: str = "ana") -> Message:
    return await desk.database.write(
        lambda c: waiting.edit(c, desk.user_id, actor, message.id, text)
    )


async def move(desk: Desk, message: Message, before: Message | None) -> Message:
    place = before.id if before else None
    return await desk.database.write(lambda c: waiting.move(c, desk.user_id, message.id, place))


async def sent(desk: Desk) -> list[str]:
    """What the machine is given, in the order of its places."""
    frames = [frame for frame in await desk.lease() if isinstance(frame, Deliver)]
    frames.sort(key=lambda frame: frame.delivery_seq)
    return [frame.message.text for frame in frames]


async def test_a_message_that_waits_is_sent_with_its_new_words_in_its_old_place(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        first, _ = await desk.say("one"), await desk.say("two")
        edited = await edit(desk, first, "one, but better")
        assert (edited.text, edited.deliveries[0].seq) == ("one, but better", 1)
        [row] = await desk.rows(first)
        assert "changed before it was sent" in row.rungs
        assert (await desk.log())[-1].type == "message.updated"
        assert await sent(desk) == ["one, but better", "two"]


async def test_of_a_change_and_a_machine_that_takes_the_message_one_is_first(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message, other = await desk.say("as it was"), await desk.say("another")
        assert await sent(desk) == ["as it was", "another"]
        for change in (edit(desk, message, "too late"), move(desk, message, None)):
            with pytest.raises(Refused) as refused:
                await change
            assert refused.value.code is ErrorCode.CONFLICT
            assert "has been sent to its machine, as it was" in str(refused.value)
        third = await desk.say("third")
        with pytest.raises(Refused):
            await move(desk, third, other)
        kept = await desk.database.read(lambda c: deliveries.of_message(c, desk.user_id, third.id))
        assert [row.seq for row in kept] == [3]


async def test_what_may_lie_on_a_machine_is_not_changed_though_it_is_queued_again(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("perhaps there")
        await desk.lease()
        [row] = await desk.rows(message)
        await desk.database.write(lambda c: sending.sent(c, {row.id: 1}))
        await desk.greet(epoch="of a machine whose state was lost")
        assert await desk.state(message) == "queued"
        with pytest.raises(Refused):
            await edit(desk, message, "other words")


async def test_a_message_that_interrupts_or_is_for_another_agent_stands_in_no_line(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        first = await desk.say("one")
        urgent = await desk.say("now", mode=DeliveryMode.INTERRUPT)
        elsewhere = await desk.say("elsewhere", agent_id=await desk.add_agent("api"))
        for one, before in ((urgent, first), (first, urgent), (first, elsewhere)):
            with pytest.raises(Refused) as refused:
                await move(desk, one, before)
            assert "do not wait in one line" in str(refused.value)
        assert await sent(desk) == ["now", "one", "elsewhere"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)), max_size=8))
async def test_moves_change_the_order_as_in_a_list_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int | None]]
) -> None:
    async with open_desk(tmp_path_factory.mktemp("desk")) as desk:
        said = [await desk.say(str(number)) for number in range(5)]
        order = list(range(5))
        for number, before in moves:
            if number == before:
                continue
            await move(desk, said[number], None if before is None else said[before])
            order.remove(number)
            order.insert(len(order) if before is None else order.index(before), number)
        assert await sent(desk) == [str(number) for number in order]


async def test_the_routes_change_and_move_and_refuse_in_words(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        first, second = await backend.post("one"), await backend.post("two")
        edited = await client.patch(f"/v1/messages/{first.id}", json={"text": "1"})
        assert (edited.status_code, edited.json()["text"]) == (200, "1")
        moved = await client.post(f"/v1/messages/{first.id}/move", json={})
        assert [d["seq"] for d in moved.json()["deliveries"]] == [2]
        back = await client.post(f"/v1/messages/{first.id}/move", json={"before": second.id})
        assert [d["seq"] for d in back.json()["deliveries"]] == [1]
        await client.delete(f"/v1/messages/{first.id}")
        late = await client.patch(f"/v1/messages/{first.id}", json={"text": "2"})
        assert (late.status_code, late.json()["code"]) == (409, "conflict")
        assert "Too late: the message is over" in late.json()["detail"]
        empty = await client.patch(f"/v1/messages/{second.id}", json={"text": ""})
        assert empty.status_code == 422
        lost = MessageId("msg_" + "0" * 26)
        assert (await client.patch(f"/v1/messages/{lost}", json={"text": "x"})).status_code == 404
