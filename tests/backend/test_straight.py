"""A message for a machine that is here, with room, leaves with the transaction that takes it in."""

from pathlib import Path

import anyio
import pytest

from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.store import outbox
from cloudagent_protocol.frames import Ack, decode
from cloudagent_protocol.resources import DeliveryMode
from fakes.desk import Desk, add_helper, open_desk

pytestmark = pytest.mark.anyio
WINDOW = 32  # of the desk's service


async def connected(desk: Desk) -> Session:
    """The desk's machine, greeted, and taking work; its connection has sent all that there was."""
    session = Session(desk.machine.host_id, "in_1")
    desk.hub.attach(session)
    await desk.greet()
    session.ready, session.behind = True, False
    return session


def pushed(session: Session) -> list[str]:
    return [getattr(decode(row.frame), "message").text for row in session.fresh]  # noqa: B009


async def test_it_is_leased_when_it_is_answered_and_its_frame_is_handed_to_the_link(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        message = await desk.say("one")
        assert [one.state for one in message.deliveries] == ["leased"]
        assert await desk.state(message) == "leased"
        assert await desk.rungs(message) == ["stored"]
        assert pushed(session) == ["one"]
        assert not session.behind  # nothing has to be read again
        [frame] = await desk.outbox()
        assert frame == decode(
            session.fresh[0].frame
        )  # and it is on the disk as it was handed over


async def test_who_writes_to_machines_has_it_before_its_sender_has_the_answer(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk, anyio.create_task_group() as tasks:
        session = await connected(desk)
        happened = list[str]()

        async def links() -> None:
            assert await desk.hub.hints.take() == [session]
            happened.append("written")

        tasks.start_soon(links)
        await anyio.wait_all_tasks_blocked()
        await desk.say("one")
        assert happened == ["written"]


async def test_its_numbers_go_on_where_those_of_a_lease_ended(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say("queued while the machine was away")
        session = await connected(desk)
        await desk.lease()
        await desk.say("straight")
        assert [frame.seq for frame in await desk.outbox()] == [1, 2]
        assert [frame.delivery_seq for frame in await desk.outbox()] == [1, 2]
        assert pushed(session) == ["straight"]
        await desk.service.apply(desk.machine, [Ack(seq=2)])
        assert await desk.outbox() == []


async def test_nothing_overtakes_what_waits_for_the_same_agent(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first = await desk.say("first")  # the machine is away
        session = await connected(desk)
        second = await desk.say("second")
        assert session.fresh == []
        # Both are leased in this transaction, in their order.
        assert [frame.message.text for frame in await desk.outbox()] == ["first", "second"]
        assert session.behind
        assert [await desk.state(one) for one in (first, second)] == ["leased", "leased"]


async def test_beyond_the_window_it_waits(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        for number in range(WINDOW):
            await desk.say(f"{number}")
        last = await desk.say("too many")
        assert len(pushed(session)) == WINDOW
        assert await desk.state(last) == "queued"


async def test_another_agent_gets_its_first_though_the_window_is_full(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await connected(desk)
        other = await desk.add_agent("backend")
        for number in range(WINDOW):
            await desk.say(f"{number}")
        message = await desk.say("me too", agent_id=other)
        assert await desk.state(message) == "leased"


async def test_a_job_may_choose_first(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        helper = await add_helper(desk)
        await helper.connect()
        await desk.say("for the job")
        assert await helper.delivered() == ["for the job"]
        assert session.fresh == []


async def test_what_a_job_is_at_work_on_holds_up_its_conversation(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        helper = await add_helper(desk)
        of_helper = await helper.connect()
        await desk.say("for the job")
        await helper.receive_all()
        desk.hub.detach(of_helper)  # it is away for a moment, and has the conversation all the same
        waiting = await desk.say("the same conversation")
        assert session.fresh == []
        assert await desk.state(waiting) == "queued"


async def test_one_that_interrupts_goes_before_all_others(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await connected(desk)
        await desk.say("long work")
        await desk.say("stop that", mode=DeliveryMode.INTERRUPT)
        assert [frame.delivery_seq for frame in await desk.outbox()] == [1, -1]


async def test_one_that_fits_into_no_frame_leaves_no_gap_in_the_numbers(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        large = await desk.say("\x01" * 200_000)  # six characters each on the wire
        assert await desk.state(large) == "dead"
        await desk.say("small")
        assert [frame.seq for frame in await desk.outbox()] == [1]
        assert pushed(session) == ["small"]
        link = await desk.database.read(lambda c: outbox.link(c, desk.machine.host_id))
        assert link
        assert link.last == 1


async def test_to_a_machine_that_shuts_down_nothing_goes(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        session.draining = True
        message = await desk.say("later")
        assert (session.fresh, await desk.state(message)) == ([], "queued")


async def test_many_at_once_reach_the_link_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        session = await connected(desk)
        async with anyio.create_task_group() as tg:
            for number in range(WINDOW):
                tg.start_soon(desk.say, f"{number}")
        assert [row.seq for row in session.fresh] == list(range(1, WINDOW + 1))
