"""One daemon's connection after its welcome, without a socket: what it says, keeps and asks for."""

import time
from typing import Any

import pytest

from cloudagent_backend.api.connection import INBOX, Bells, Connection
from cloudagent_backend.delivery.hints import Hints
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store.outbox import OutboxRow
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import Ack, Heartbeat, HostReport, Numbered, decode
from cloudagent_protocol.ids import DeliveryId, HostId, UserId
from cloudagent_protocol.link import Link
from cloudagent_protocol.resources import Runtime


class Line:
    """The network, which takes what is written as long as it `takes_more`."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.takes_more = True
        self.reads = True
        self.heard_at = 0.0
        self.closed: CloseCode | None = None

    def write(self, text: str) -> None:
        self.written.append(decode(text) if text.startswith("{") else text)

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed = code

    def hold(self) -> None:
        self.reads = False

    def go_on(self) -> None:
        self.reads = True


class Desk:
    """A connection, and who looks after it."""

    def __init__(self, *, sent: int = 0, in_flight: int = 4, **intervals: float) -> None:
        self.line = Line()
        self.bells = Bells(Hints[Session]())
        self.began = time.monotonic()
        times = {"heartbeat_s": 100.0, "silence_s": 200.0, "lease_s": 50.0, **intervals}
        self.link = Link(accepted=0, acked=0, now=self.began, in_flight=in_flight, **times)
        host = HostId("host_1")
        line: Any = self.line
        self.connection = Connection(
            line,
            Session(host, "life-1"),
            Machine(host, UserId("usr_1"), "mbp"),
            self.link,
            self.bells,
        )
        # As after the first look into the store, which has all that there is.
        self.connection.session.behind = False
        self.connection.send(rows(1, sent))
        self.line.written.clear()

    def hear(self, *frames: Numbered | Ack) -> None:
        for frame in frames:
            self.connection.on_message(frame.model_dump_json())

    def take(self) -> list[Any]:
        return list(self.connection.take())

    async def asked(self) -> list[str]:
        """Which bells have rung since they were asked last."""
        bells = vars(self.bells).items()
        return [name for name, bell in bells if await bell.take(timeout_s=0)]

    def sent(self) -> list[str]:
        """What went out since this was asked last: rows by their text, else types."""
        out = [one if isinstance(one, str) else one.type for one in self.line.written]
        self.line.written.clear()
        return out


def report(seq: int) -> HostReport:
    return HostReport(seq=seq, runtimes=[Runtime(name=f"{seq}")])


def rows(first: int, last: int) -> list[OutboxRow]:
    return [
        OutboxRow(seq, "deliver", DeliveryId(f"dlv_{seq}"), f"frame {seq}")
        for seq in range(first, last + 1)
    ]


# --- in ---


async def test_a_frame_that_comes_again_is_acknowledged_again_and_given_on_once() -> None:
    desk = Desk()
    desk.hear(report(1))
    [first] = desk.take()
    desk.connection.acknowledge([first])
    desk.connection.free()
    assert desk.line.written == [Ack(seq=1)]
    desk.hear(report(1))
    assert desk.line.written == [Ack(seq=1)] * 2
    assert desk.take() == []


async def test_a_frame_on_its_way_to_the_disk_is_not_acknowledged_by_its_duplicate() -> None:
    desk = Desk()
    desk.hear(report(1), report(1))
    assert desk.line.written == [Ack(seq=0)]
    assert desk.take() == [report(1)]


async def test_the_store_has_one_group_of_a_connection_at_a_time() -> None:
    desk = Desk()
    desk.hear(report(1))
    assert desk.take() == [report(1)]
    await desk.asked()
    desk.hear(report(2))
    assert desk.take() == []
    assert await desk.asked() == []
    desk.connection.free()
    assert await desk.asked() == ["reported"]
    assert desk.take() == [report(2)]


async def test_a_full_inbox_is_not_filled_further_until_the_store_is_through_with_it() -> None:
    desk = Desk()
    desk.hear(*(report(seq) for seq in range(1, INBOX)))
    assert desk.line.reads
    desk.hear(report(INBOX))
    assert not desk.line.reads
    assert len(desk.take()) == INBOX
    assert not desk.line.reads
    desk.connection.free()
    assert desk.line.reads


async def test_after_its_end_nothing_is_taken_said_or_sent() -> None:
    desk = Desk(sent=1)
    desk.hear(report(1))
    taken = desk.take()
    desk.connection.fail()
    assert desk.line.closed == CloseCode.RESTART
    desk.hear(report(2))
    desk.connection.acknowledge(taken)
    desk.connection.free()
    assert desk.take() == []
    desk.connection.send(rows(2, 2))
    desk.connection.repeat(rows(1, 1)[0])
    assert desk.sent() == []
    assert desk.link.received == 1


# --- out ---


async def test_frames_go_out_in_their_order_and_a_missing_one_is_not_passed_over() -> None:
    desk = Desk()
    desk.connection.send(rows(1, 2))
    desk.connection.send(rows(2, 2))
    assert desk.sent() == ["frame 1", "frame 2"]
    assert not desk.connection.session.behind
    desk.connection.send(rows(4, 4))
    assert desk.sent() == []
    assert desk.connection.session.behind
    assert await desk.asked() == ["sent"]
    assert list(desk.connection.machine.sent) == ["dlv_1", "dlv_2"]


async def test_no_more_go_out_than_the_flight_has_room_for_and_an_ack_asks_for_more() -> None:
    desk = Desk(in_flight=4)
    desk.connection.send(rows(1, 6))
    assert desk.sent() == [f"frame {seq}" for seq in range(1, 5)]
    assert (desk.connection.room, desk.connection.session.behind) == (0, True)
    await desk.asked()
    desk.hear(Ack(seq=1))
    assert desk.connection.room == 1
    # The ack itself is for the store.
    assert await desk.asked() == ["sends", "reported"]
    assert desk.take() == [Ack(seq=1)]
    desk.hear(Ack(seq=1))
    assert await desk.asked() == []


async def test_a_network_that_takes_nothing_is_given_nothing_until_it_does() -> None:
    desk = Desk()
    desk.line.takes_more = False
    desk.connection.send(rows(1, 1))
    assert desk.sent() == []
    await desk.asked()
    desk.line.takes_more = True
    desk.connection.on_writable()
    assert await desk.asked() == ["sends"]


# --- what is not acknowledged ---


async def test_what_is_overdue_is_asked_for_each_time_after_twice_as_long() -> None:
    desk = Desk(sent=2, heartbeat_s=1_000, silence_s=1_000, lease_s=10)
    await desk.asked()
    now = time.monotonic()
    assert desk.connection.look(now + 9) == pytest.approx(now + 10, abs=1)
    assert await desk.asked() == []
    for wait in (10, 20, 40):
        now += wait + 0.1
        desk.connection.look(now)
        assert await desk.asked() == ["overdue"], wait
        assert desk.connection.look(now) == pytest.approx(now + wait * 2, abs=1)
        assert await desk.asked() == [], wait


async def test_only_the_oldest_frame_without_an_ack_is_sent_again() -> None:
    desk = Desk(sent=3)
    desk.hear(Ack(seq=1))
    for row in rows(1, 4):
        desk.connection.repeat(row)
    assert desk.sent() == ["frame 2"]
    desk.hear(Ack(seq=3))
    for row in rows(1, 4):
        desk.connection.repeat(row)
    assert desk.sent() == []


# --- liveness ---


async def test_a_heartbeat_goes_out_when_nothing_else_was_said_for_so_long() -> None:
    desk = Desk(heartbeat_s=10)
    desk.connection.look(desk.began + 9)
    assert desk.sent() == []
    desk.connection.look(desk.began + 10)
    desk.connection.look(desk.began + 11)
    assert desk.line.written == [Heartbeat()]


async def test_silence_ends_it_and_a_part_of_a_frame_is_none() -> None:
    desk = Desk(silence_s=20)
    desk.line.heard_at = desk.began + 15
    desk.connection.look(desk.began + 34)
    assert desk.line.closed is None
    desk.connection.look(desk.began + 35)
    assert desk.line.closed == CloseCode.HEARTBEAT_MISSED
    assert await desk.asked() == ["ended"]


async def test_while_the_store_is_slow_the_peer_that_is_not_read_does_not_count_as_silent() -> None:
    desk = Desk(silence_s=20)
    desk.link.heard(desk.began - 15)
    desk.hear(report(1))
    desk.link._heard_at = desk.began - 15
    desk.connection.acknowledge(desk.take())
    desk.connection.look(desk.began + 10)
    assert desk.line.closed is None
