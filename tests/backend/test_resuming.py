"""A turn that a rate limit cut off goes on when that is over: by itself where that is wanted, else at a word."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.resuming import refusal
from cloudagent_backend.store import agents, chains
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.frames import Ack, Deliver, Heartbeat
from cloudagent_protocol.resources import AgentLimits, ChainDecide, DeliveryTrace, Hold, Message
from fakes.desk import Desk, Run, add_helper, now, open_desk

HOUR = timedelta(hours=1)
BY_ITSELF = {"auto_resume": True, "resume_times": 2, "resume_within_h": 6}


async def allow(desk: Desk, **limits: Any) -> None:
    def work(c: Any) -> None:
        row = agents.load(c, desk.user_id, desk.agent_id)
        assert row
        agents.update(c, row, {"limits": limits})

    await desk.database.write(work)


async def begin(desk: Desk) -> Message:
    await desk.greet()
    message = await desk.say()
    await desk.receive_all()
    return message


def limited(until: datetime | None, **more: Any) -> Finished:
    return Finished(
        at=now(), outcome=Outcome.FAILED, reason=Reason.RATE_LIMIT, resets_at=until, **more
    )


async def cut_off(desk: Desk, message: Message, until: datetime | None) -> None:
    """The newest delivery of the message runs into the limit."""
    newest = (await desk.rows(message))[-1]
    summary = message.deliveries[0].model_copy(update={"id": newest.id})
    run = Run(message.model_copy(update={"deliveries": [summary]}))
    await desk.report(run.started(), run.report(limited(until)))


async def traces(desk: Desk, message: Message) -> list[DeliveryTrace]:
    rows = await desk.rows(message)
    return await desk.database.read(lambda c: [ladder.trace(c, row) for row in rows])


async def sent(desk: Desk) -> list[Deliver]:
    return [frame for frame in await desk.lease() if isinstance(frame, Deliver)]


async def test_without_leave_it_waits_for_a_person_and_goes_on_in_front_at_their_word(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        later = await desk.say("and then this")
        until = now() + HOUR
        await cut_off(desk, message, until)
        over, again = await traces(desk, message)
        assert (over.state, over.reason) == ("failed", "rate_limit")
        assert (again.state, again.reason, again.waits_until) == ("queued", "rate_limit", until)
        assert again.retry_of == over.id
        assert "a person" in (again.rungs[-1].detail or "")
        assert {frame.delivery_id for frame in await sent(desk)}.isdisjoint({again.id})
        trace = await desk.service.go_on(desk.user_id, "ana", message.id)
        assert trace.deliveries[-1].rungs[-1].actor == "ana"
        [frame] = [frame for frame in await sent(desk) if frame.delivery_id == again.id]
        assert frame.retry
        assert (frame.retry.reason, frame.retry.began) == ("rate_limit", True)
        assert frame.delivery_seq < later.deliveries[0].seq  # before what has not begun


async def test_of_two_people_who_let_it_go_on_the_second_is_told(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        await cut_off(desk, message, now() + HOUR)
        await desk.service.go_on(desk.user_id, "ana", message.id)
        with pytest.raises(Refused, match="waits for nobody's word"):
            await desk.service.go_on(desk.user_id, "bo", message.id)
        assert len(await sent(desk)) == 1


async def test_what_nobody_has_cut_off_cannot_go_on(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        with pytest.raises(Refused, match="waits for nobody's word"):
            await desk.service.go_on(desk.user_id, "ana", message.id)
        with pytest.raises(Refused, match=r"."):
            await desk.service.go_on(desk.user_id, "ana", type(message.id)("msg_1"))


async def test_a_person_can_give_it_up(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        await cut_off(desk, message, now() + HOUR)
        await desk.service.cancel(desk.user_id, "ana", message.id)
        assert [one.state for one in await traces(desk, message)] == ["failed", "cancelled"]
        with pytest.raises(Refused):
            await desk.service.go_on(desk.user_id, "ana", message.id)


async def test_with_leave_it_is_sent_at_once_and_its_machine_says_until_when_it_waits(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await allow(desk, **BY_ITSELF)
        message = await begin(desk)
        until = now() + HOUR
        hold = Hold(reason="rate_limit", detail="…", agent_id=desk.agent_id, until=until)
        await desk.report(Heartbeat(holds=[hold]))
        await cut_off(desk, message, until)
        [frame] = await sent(desk)
        await desk.report(Ack(seq=frame.seq))
        _, again = await traces(desk, message)
        assert again.id == frame.delivery_id
        assert (again.state, again.reason, again.waits_until) == ("received", "rate_limit", until)
        await desk.report(Heartbeat())
        _, again = await traces(desk, message)
        assert (again.reason, again.waits_until) == (None, None)


async def test_it_goes_on_by_itself_so_often_and_after_a_person_s_word_so_often_again(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await allow(desk, **BY_ITSELF)
        message = await begin(desk)
        for expected in (False, False, True):
            await cut_off(desk, message, now() + HOUR)
            await desk.receive_all()
            assert (await desk.rows(message))[-1].held is expected
        assert "2 times already" in ((await traces(desk, message))[-1].rungs[-1].detail or "")
        await desk.service.go_on(desk.user_id, "ana", message.id)
        await desk.receive_all()
        await cut_off(desk, message, now() + HOUR)
        assert (await desk.rows(message))[-1].held is False


@pytest.mark.parametrize(
    ("limits", "times", "hours", "words"),
    [
        ({}, 0, 1, "does not go on by itself"),
        (BY_ITSELF, 0, 1, None),
        (BY_ITSELF, 1, 6, None),
        (BY_ITSELF, 2, 1, "2 times already"),
        (BY_ITSELF, 0, 6.01, "more than 6 hours ahead"),
        ({**BY_ITSELF, "auto_resume": False}, 0, 1, "does not go on by itself"),
    ],
)
def test_leave_has_its_bounds(
    limits: dict[str, Any], times: int, hours: float, words: str | None
) -> None:
    said = refusal(AgentLimits.model_validate(limits), times, timedelta(hours=hours))
    assert said is None if words is None else words in (said or "")


@pytest.mark.parametrize("ahead", [None, timedelta(0), -HOUR, timedelta(days=9)])
async def test_without_a_time_that_can_be_waited_for_it_has_failed(
    tmp_path: Path, ahead: timedelta | None
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        await cut_off(desk, message, None if ahead is None else now() + ahead)
        assert [one.state for one in await traces(desk, message)] == ["failed"]


async def test_a_report_that_comes_twice_makes_one_further_delivery(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        run = Run(message)
        end = run.started(), run.report(limited(now() + HOUR))
        await desk.report(*end)
        await desk.report(*end)
        assert len(await desk.rows(message)) == 2


async def test_a_job_s_machine_does_not_wait(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        helper = await add_helper(desk)
        session = await helper.connect()
        message = await desk.say()
        await desk.service.lease([])
        await helper.receive_all()
        run = Run(message)
        await helper.report(run.started(), run.report(limited(now() + HOUR)))
        assert [row.state for row in await desk.rows(message)] == ["failed"]
        await helper.leave(session)


async def test_a_full_queue_leaves_it_failed_so_that_it_can_be_tried_again(tmp_path: Path) -> None:
    async with open_desk(tmp_path, backlog_cap=2) as desk:
        message = await begin(desk)
        await desk.say("two")
        run = Run(message)
        await desk.report(run.started())
        # Its own place is free as it ends; somebody else takes it first.
        await desk.database.write(lambda c: c.execute("UPDATE links SET backlog = 9"))
        await desk.report(run.report(limited(now() + HOUR)))
        assert [row.state for row in await desk.rows(message)] == ["failed"]


async def test_a_word_about_its_chain_is_none_about_its_limit(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await begin(desk)
        await cut_off(desk, message, now() + HOUR)

        def pause(c: Any) -> None:
            c.execute("UPDATE deliveries SET chain_id = message_id")
            chains.begin(c, desk.user_id, message.id, Limits().allowance)
            chains.pause(c, message.id)

        await desk.database.write(pause)
        body = ChainDecide(decision="continue")
        chain = await desk.service.decide(desk.user_id, "ana", message.id, body)
        assert (chain.state, chain.waiting) == ("active", 0)
        assert (await desk.rows(message))[-1].held
        await desk.service.go_on(desk.user_id, "ana", message.id)
        assert not (await desk.rows(message))[-1].held
