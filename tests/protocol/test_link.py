"""The link: what is sent, what is new, what is acknowledged, when the peer is dead."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.link import Duplicate, Fresh, Link, resume


def new_link(*, accepted: int = 0, acked: int = 0, in_flight: int = 3) -> Link:
    return Link(accepted=accepted, acked=acked, now=100.0, in_flight=in_flight)


def test_the_next_frame_is_fresh_and_an_old_one_is_only_acknowledged_again() -> None:
    link = new_link(accepted=4)
    assert link.receive(5) == Fresh(5)
    assert link.accept(5) == 5
    assert link.receive(5) == Duplicate(5)
    assert link.receive(1) == Duplicate(5)


def test_a_frame_still_on_its_way_to_the_disk_is_not_acknowledged_by_its_duplicate() -> None:
    link = new_link()
    link.receive(1)
    link.receive(2)
    link.accept(1)
    assert link.receive(2) == Duplicate(1)


def test_a_gap_breaks_the_connection_and_moves_nothing() -> None:
    link = new_link()
    with pytest.raises(ProtocolError, match="one is missing"):
        link.receive(2)
    assert link.received == 0


def test_a_numbered_frame_without_its_number_breaks_the_connection() -> None:
    with pytest.raises(ProtocolError, match="without its number"):
        new_link(accepted=3).receive(0)


def test_nothing_is_accepted_that_was_not_received() -> None:
    with pytest.raises(ValueError, match="not received"):
        new_link().accept(1)


def test_accepting_out_of_order_never_takes_the_watermark_back() -> None:
    link = new_link()
    link.receive(1)
    link.receive(2)
    assert link.accept(2) == 2
    assert link.accept(1) == 2


def test_frames_go_out_in_order_and_stop_when_the_flight_is_full() -> None:
    link = new_link(in_flight=2)
    link.stamp(1, 100.0)
    link.stamp(2, 100.0)
    assert link.may_send == 0
    with pytest.raises(ValueError, match="under way"):
        link.stamp(3, 100.0)
    assert link.on_ack(1)
    assert link.may_send == 1
    with pytest.raises(ValueError, match="cannot follow"):
        link.stamp(4, 100.0)


def test_an_ack_is_cumulative_and_an_old_one_is_no_news() -> None:
    link = new_link()
    for seq in (1, 2, 3):
        link.stamp(seq, 100.0)
    assert link.on_ack(2)
    assert not link.on_ack(1)
    assert link.acked == 2


def test_an_ack_of_what_was_never_sent_breaks_the_connection() -> None:
    with pytest.raises(ProtocolError, match="only 0 were sent"):
        new_link().on_ack(1)


def test_a_heartbeat_is_due_after_silence_of_our_own_and_the_peer_is_dead_after_its() -> None:
    link = new_link()
    assert link.next_deadline() == 115.0
    assert not link.heartbeat_due(114.9)
    assert link.heartbeat_due(115.0)
    link.spoke(115.0)
    assert not link.heartbeat_due(129.9)
    assert link.next_deadline() == 125.0
    assert not link.dead(124.9)
    assert link.dead(125.0)
    link.heard(125.0)
    assert not link.dead(149.9)
    link.stamp(1, 140.0)
    assert not link.heartbeat_due(154.9)


def test_both_ends_notice_a_dead_peer_within_26_seconds() -> None:
    link = new_link()
    assert link.silence_s <= 26


@pytest.mark.parametrize("peer_has", [3, 5, 9])
def test_resuming_starts_after_what_the_peer_has(peer_has: int) -> None:
    assert resume(outbox_acked=3, outbox_last=9, peer_has=peer_has) == peer_has


@pytest.mark.parametrize("peer_has", [2, 10])
def test_a_peer_of_another_history_cannot_be_resumed(peer_has: int) -> None:
    with pytest.raises(ProtocolError, match="histories differ"):
        resume(outbox_acked=3, outbox_last=9, peer_has=peer_has)


def test_a_frame_that_is_not_acknowledged_in_time_is_overdue_and_then_after_twice_as_long() -> None:
    link = new_link()
    assert link.lease_ends_at is None
    assert not link.overdue(1_000.0)
    link.stamp(1, 101.0)
    link.stamp(2, 102.0)
    assert not link.overdue(130.9)
    assert link.overdue(131.0)
    link.repeat(131.0)
    assert not link.overdue(190.9)
    assert link.overdue(191.0)
    link.repeat(191.0)
    assert link.lease_ends_at == 311.0


def test_news_by_an_ack_gives_the_frame_behind_it_its_own_time() -> None:
    link = new_link()
    link.stamp(1, 101.0)
    link.stamp(2, 120.0)
    link.repeat(131.0)
    link.on_ack(1)
    assert link.lease_ends_at == 150.0
    link.on_ack(2)
    assert link.lease_ends_at is None
    link.stamp(3, 140.0)
    link.stamp(4, 150.0)
    link.on_ack(4)
    assert link.lease_ends_at is None


def test_an_overdue_frame_is_looked_at_in_time() -> None:
    link = Link(accepted=0, acked=0, now=100.0, lease_s=5.0)
    link.stamp(1, 101.0)
    assert link.next_deadline() == 106.0
    link.repeat(106.0)
    assert link.next_deadline() == 116.0  # the heartbeat; the lease ends at the same time
    link.heard(106.0)
    link.on_ack(1)
    assert link.next_deadline() == 116.0


class Wire(RuleBasedStateMachine):
    """One direction between two ends: the wire is cut between any two frames, and loses any.

    The sender's outbox and the receiver's disk survive; links and frames under way do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outbox: list[int] = []  # numbers that exist at the sender
        self.forgotten = 0  # numbers up to this one were acknowledged and dropped
        self.disk: list[int] = []  # what the receiver made durable, in order
        self.clock = 0.0
        self.connect()

    def connect(self) -> None:
        peer_has = len(self.disk)
        start = resume(outbox_acked=self.forgotten, outbox_last=len(self.outbox), peer_has=peer_has)
        self.sender = Link(accepted=0, acked=start, now=self.clock, in_flight=4)
        self.receiver = Link(accepted=peer_has, acked=0, now=self.clock)
        self.forgotten = max(self.forgotten, start)
        self.flying: list[int] = []
        self.undurable: list[int] = []
        self.acks: list[int] = []

    @rule()
    def write_to_the_outbox(self) -> None:
        self.outbox.append(len(self.outbox) + 1)

    @precondition(lambda self: self.sender.sent < len(self.outbox) and self.sender.may_send)
    @rule()
    def send(self) -> None:
        seq = self.sender.sent + 1
        self.sender.stamp(seq, self.clock)
        self.flying.append(seq)

    @precondition(lambda self: self.flying)
    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        seq = self.flying[0] if again else self.flying.pop(0)
        try:
            judged = self.receiver.receive(seq)
        except ProtocolError:  # what was lost before it shows
            self.connect()
            return
        match judged:
            case Fresh(seq):
                self.undurable.append(seq)
            case Duplicate(ack):
                assert ack <= len(self.disk)
                self.acks.append(ack)

    @precondition(lambda self: self.undurable)
    @rule()
    def make_durable_and_acknowledge(self) -> None:
        seq = self.undurable.pop(0)
        self.disk.append(seq)
        self.acks.append(self.receiver.accept(seq))

    @precondition(lambda self: self.acks)
    @rule()
    def acknowledge(self) -> None:
        if self.sender.on_ack(ack := self.acks.pop(0)):
            self.forgotten = ack

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 3))
    def lose_a_frame(self, which: int) -> None:
        del self.flying[which % len(self.flying)]

    @precondition(lambda self: self.acks)
    @rule()
    def lose_an_ack(self) -> None:
        self.acks.pop(0)

    @precondition(lambda self: self.sender.lease_ends_at is not None)
    @rule()
    def repeat_what_is_overdue(self) -> None:
        self.clock = max(self.clock, self.sender.lease_ends_at or 0.0)
        assert self.sender.overdue(self.clock)
        self.sender.repeat(self.clock)
        self.flying.append(self.sender.acked + 1)

    @rule()
    def cut_and_reconnect(self) -> None:
        self.connect()

    @invariant()
    def the_disk_holds_every_frame_once_and_in_order(self) -> None:
        assert self.disk == list(range(1, len(self.disk) + 1))

    @invariant()
    def nothing_is_forgotten_before_it_is_on_the_other_disk(self) -> None:
        assert self.forgotten <= len(self.disk)

    @override
    def teardown(self) -> None:
        """Left alone, on a link that lives, everything arrives and is acknowledged."""
        while self.forgotten < len(self.outbox):
            if self.acks:
                self.acknowledge()
            elif self.undurable:
                self.make_durable_and_acknowledge()
            elif self.flying:
                self.arrive(again=False)
            elif self.sender.may_send > 0 and self.sender.sent < len(self.outbox):
                self.send()
            else:
                self.repeat_what_is_overdue()
        assert self.disk == self.outbox


TestWire = Wire.TestCase


def test_an_ack_that_says_nothing_new_is_no_news() -> None:
    link = Link(accepted=0, acked=0, now=0.0)
    link.stamp(1, 0.0)
    assert link.on_ack(1)
    assert not link.on_ack(1)


def test_what_was_heard_earlier_does_not_make_the_peer_die_sooner() -> None:
    link = Link(accepted=0, acked=0, now=100.0)
    link.heard(110.0)
    link.heard(105.0)
    assert link.dies_at == 110.0 + link.silence_s
