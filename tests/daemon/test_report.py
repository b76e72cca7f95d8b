"""What a run reports always fits the wire: a report that does not would never end its delivery."""

import anyio
import pytest
from typing_extensions import override

from cloudagent_daemon.runs.ports import Said
from cloudagent_daemon.runs.report import LEFT_OUT, Reporter, now
from cloudagent_protocol.events import (
    Finished,
    Outcome,
    Reason,
    Retry,
    RunEvent,
    Started,
    Stderr,
    Text,
)
from cloudagent_protocol.frames import MAX_FRAME_BYTES, encode
from cloudagent_protocol.ids import new_run_id
from fakes.runs import RecordedUplink, a_delivery

HUGE = "€" * MAX_FRAME_BYTES


@pytest.mark.parametrize(
    "event",
    [
        Text(at=now(), block=0, text=HUGE),
        Stderr(at=now(), text=HUGE),
        Retry(at=now(), attempt=2, reason=Reason.SERVER_ERROR, detail=HUGE),
    ],
    ids=lambda event: event.type,
)
async def test_an_event_is_cut_to_what_a_frame_holds(event: RunEvent) -> None:
    uplink = RecordedUplink()
    await Reporter(uplink, a_delivery(), new_run_id()).event(event)
    assert len(uplink.frames) == 1


async def test_an_end_is_cut_rather_than_never_told() -> None:
    uplink = RecordedUplink()
    finished = Finished(
        seq=1, at=now(), outcome=Outcome.FAILED, reason=Reason.MODEL_ERROR, detail=HUGE
    )
    await Reporter(uplink, a_delivery(), new_run_id()).finish(finished)
    assert uplink.end.reason is Reason.MODEL_ERROR
    assert "left out" in uplink.end.detail
    assert encode(uplink.finished[0])


class _SlowUplink(RecordedUplink):
    """It keeps an event, but its answer never comes."""

    @override
    async def report(self, frame: Said) -> None:
        await super().report(frame)
        if not self.finished:
            await anyio.sleep_forever()


async def test_an_event_that_was_cancelled_while_it_was_kept_does_not_give_its_number_to_the_end() -> (
    None
):
    uplink = _SlowUplink()
    reporter = Reporter(uplink, a_delivery(), new_run_id())
    with anyio.move_on_after(0.05):
        await reporter.event(Text(at=now(), block=0, text="kept"))
    end = Finished(seq=reporter.last_seq + 1, at=now(), outcome=Outcome.REPLIED)
    await reporter.finish(end)
    assert [event.seq for event in uplink.events] == [1, 2]


async def test_when_too_much_waits_details_are_left_out_and_that_is_said_once() -> None:
    uplink = RecordedUplink()
    reporter = Reporter(uplink, a_delivery(), new_run_id())
    uplink.full = True
    await reporter.event(Started(at=now(), driver="scripted", launch_id="l"))
    for text in ("one", "two"):
        await reporter.event(Text(at=now(), block=0, text=text))
    uplink.full = False
    await reporter.event(Text(at=now(), block=1, text="three"))
    assert [(event.seq, event.type) for event in uplink.events] == [
        (1, "started"),
        (2, "stderr"),
        (3, "text"),
    ]
    assert uplink.events[1].text == LEFT_OUT
