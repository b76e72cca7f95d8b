"""What shares a transaction is written in sets: one bad among good, doubles, and the order kept."""

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from cloudagent_backend.delivery import states
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.store import deliveries
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.deliveries import NewRung
from cloudagent_protocol.frames import Ack, Heartbeat
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import DeliveryState, Hold, RungName
from fakes.desk import Desk, add_host, open_desk

pytestmark = pytest.mark.anyio
#: No database holds a number as large.
BEYOND = 2**70


@asynccontextmanager
async def one_transaction(database: Database) -> AsyncGenerator[Callable[..., Any]]:
    """What is begun inside is written together: the writer is held up until the end."""
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(_: Any) -> None:
        begun.set()
        go_on.wait(10)

    async with anyio.create_task_group() as tg:
        tg.start_soon(database.write, hold_up)
        await anyio.to_thread.run_sync(begun.wait, 10)
        try:
            yield tg.start_soon
            await anyio.wait_all_tasks_blocked()
        finally:
            go_on.set()


async def connected(desk: Desk) -> None:
    session = Session(desk.machine.host_id, "in_1")
    desk.hub.attach(session)
    await desk.greet()
    session.ready, session.behind = True, False


async def texts(desk: Desk) -> list[str]:
    return [frame.message.text for frame in await desk.outbox()]


async def told(desk: Desk) -> list[tuple[int, str]]:
    """The numbers and types of her log from the first message on."""
    return [(row.id, row.type) for row in await desk.log() if row.type.startswith(("mes", "del"))]


async def test_one_that_is_refused_takes_no_other_message_with_it(tmp_path: Path) -> None:
    refused: list[str] = []
    async with open_desk(tmp_path) as desk:
        await connected(desk)

        async def to_nobody() -> None:
            try:
                await desk.say("to nobody", agent_id=AgentId("agent_none"))
            except Refused as error:
                refused.append(error.code)

        async with one_transaction(desk.database) as begin:
            begin(desk.say, "one")
            begin(to_nobody)
            begin(desk.say, "two")
        assert refused == ["not_found"]
        assert await texts(desk) == ["one", "two"]
        assert [frame.seq for frame in await desk.outbox()] == [1, 2]
        numbers, types = zip(*await told(desk), strict=True)
        assert list(types) == ["message.created", "delivery.updated"] * 2
        assert list(numbers) == list(range(numbers[0], numbers[0] + 4))


async def test_messages_of_one_conversation_keep_their_order(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await connected(desk)
        async with one_transaction(desk.database) as begin:
            for number in range(6):
                begin(desk.say, f"{number}")
        assert await texts(desk) == ["0", "1", "2", "3", "4", "5"]
        assert [frame.delivery_seq for frame in await desk.outbox()] == [1, 2, 3, 4, 5, 6]
        assert len({frame.message.conversation_id for frame in await desk.outbox()}) == 1


async def test_beyond_the_cap_only_what_has_no_room_is_refused(tmp_path: Path) -> None:
    outcomes: list[str] = []
    async with open_desk(tmp_path, backlog_cap=2) as desk:

        async def say(text: str) -> None:
            try:
                await desk.say(text)
                outcomes.append(text)
            except Refused as error:
                outcomes.append(error.code)

        async with one_transaction(desk.database) as begin:
            for text in ("one", "two", "three"):
                begin(say, text)
        assert outcomes == ["one", "two", "backlog_full"]


async def test_machines_that_acknowledge_together_are_each_told_what_they_have(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        other = await second_machine(desk)
        mine, theirs = await desk.say("mine"), await desk.say("theirs", agent_id=other.agent_id)
        for one in (desk, other):
            await one.lease()
        before = len(await desk.log())
        await desk.service.apply_all([(desk.machine, [Ack(seq=1)]), (other.machine, [Ack(seq=1)])])
        for message in (mine, theirs):
            assert await desk.state(message) == "received"
            assert (await desk.rungs(message))[-2:] == ["sent", "received"]
        assert [row.type for row in (await desk.log())[before:]] == ["delivery.updated"] * 2
        assert await desk.outbox() == []
        assert await other.outbox() == []


async def test_an_ack_that_cannot_be_kept_takes_no_other_with_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other = await second_machine(desk)
        mine, theirs = await desk.say("mine"), await desk.say("theirs", agent_id=other.agent_id)
        for one in (desk, other):
            await one.lease()
        before = len(await desk.log())
        bad, beat, good = await desk.service.apply_all(
            [
                (other.machine, [Ack(seq=BEYOND)]),
                (other.machine, [Heartbeat(holds=[Hold(reason="disk_full", detail="full")])]),
                (desk.machine, [Ack(seq=1)]),
            ]
        )
        assert isinstance(bad, OverflowError)
        assert not isinstance(beat, Exception)
        assert not isinstance(good, Exception)
        assert await desk.state(mine) == "received"
        assert await desk.state(theirs) == "leased"
        # What stood beside it is kept once, not done over with the rest.
        types = [row.type for row in (await desk.log())[before:]]
        assert sorted(types) == ["delivery.updated", "host.updated"]


async def test_what_a_machine_holds_back_says_so_as_it_is_acknowledged(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other = await second_machine(desk)
        mine, theirs = await desk.say("mine"), await desk.say("theirs", agent_id=other.agent_id)
        for one in (desk, other):
            await one.lease()
        other.machine.holds.append(Hold(reason="disk_full", detail="full"))
        await desk.service.apply_all([(desk.machine, [Ack(seq=1)]), (other.machine, [Ack(seq=1)])])
        assert (await desk.rungs(mine))[-1] == "received"
        assert (await desk.rungs(theirs))[-1] == "waiting"


async def test_a_delivery_that_stands_twice_among_those_moved_is_moved_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("once")
        await desk.lease()
        [row] = await desk.rows(message)
        step = (row, [NewRung(RungName.RECEIVED, "mbp")])
        target = DeliveryState.RECEIVED
        first, second = await desk.database.write(
            lambda c: deliveries.move_all(c, [step, step], target, states.sources(target))
        )
        assert first is not None
        assert (await desk.rows(message))[0] == first
        assert second in (None, first)
        assert (await desk.rungs(message)).count("received") == 1


async def second_machine(desk: Desk) -> Desk:
    """Another machine of hers, with an agent."""
    machine, agent_id = await add_host(desk.database, desk.user_id, "tower", "backend")
    return Desk(desk.database, desk.service, desk.hub, desk.fanout, desk.user_id, machine, agent_id)
