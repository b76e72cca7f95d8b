"""The link, without I/O: what may be sent, what is new, what to acknowledge, when it is dead.

Both ends hold the same object. The payloads themselves live in a durable outbox (the daemon's
spool, the backend's store); the link holds only watermarks, so that a restart loses nothing:

    outbox   1 2 3 4 5 6 7 8      `acked` = 3: the peer has 1-3 on its disk, forget them
                   ^     ^        `sent` = 6: 4-6 are under way, 7 and 8 wait for `may_send`
    inbox    1 2 3 4 5            `accepted` = 4: durable here; `received` = 5 is not yet

One watermark per direction is enough only because a frame is made durable *before* it is
accepted. After a reconnect both sides say what they have (`resume`), and what is missing is
sent again; numbers that were seen before are duplicates and only acknowledged anew.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from cloudagent_protocol.errors import CloseCode, ProtocolError

HEARTBEAT_S: Final = 15.0
#: Silence after which the peer is taken for dead: at most 26 s until both ends notice.
SILENCE_S: Final = 25.0
#: A numbered frame that is not acknowledged for so long goes out again, and then after twice as long.
LEASE_S: Final = 30.0
#: Numbered frames that may be under way, unacknowledged, per direction.
IN_FLIGHT: Final = 256


@dataclass(frozen=True)
class Fresh:
    """A numbered frame that was not seen before: make it durable, then `accept(seq)`."""

    seq: int


@dataclass(frozen=True)
class Duplicate:
    """A numbered frame that was accepted before: acknowledge `ack` again, do nothing else."""

    ack: int


class Link:
    """One end of one connection. All times are monotonic seconds, given by the caller.

    Args:
        accepted: number of the last frame of the peer that is durable here.
        acked: number of the last own frame that the peer has said it has.
        now: the current time.
    """

    def __init__(
        self,
        *,
        accepted: int,
        acked: int,
        now: float,
        heartbeat_s: float = HEARTBEAT_S,
        silence_s: float = SILENCE_S,
        lease_s: float = LEASE_S,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self.accepted = accepted
        self.received = accepted
        self.acked = acked
        self.sent = acked
        self.heartbeat_s = heartbeat_s
        self.silence_s = silence_s
        self.lease_s = lease_s
        self.in_flight = in_flight
        self._heard_at = now
        self._spoke_at = now
        #: When each frame that is under way went out; the oldest first.
        self._stamped: deque[float] = deque()
        #: When the oldest one was repeated, and how often; 0 once an ack brings news.
        self._repeated_at = now
        self._repeats = 0

    # --- sending ---

    @property
    def may_send(self) -> int:
        """How many more numbered frames may go out before an ack must come in."""
        return self.in_flight - (self.sent - self.acked)

    def stamp(self, seq: int, now: float) -> None:
        """A numbered frame of the outbox goes out.

        Raises:
            ValueError: it is not the next one, or the flight is full: a fault of the caller's.
        """
        if seq != self.sent + 1:
            raise ValueError(f"frame {seq} cannot follow {self.sent}")
        if self.may_send <= 0:
            raise ValueError(f"{self.in_flight} frames are under way already")
        self.sent = seq
        self._spoke_at = now
        self._stamped.append(now)

    def repeat(self, now: float) -> None:
        """The oldest frame that is under way is about to go out once more, with its number.

        On a link that lives, what was lost is either the last frames or the last ack: whatever comes
        after a lost frame shows the gap. The peer's answer to what it has already is its ack.
        """
        self._repeats += 1
        self._repeated_at = now

    @property
    def lease_ends_at(self) -> float | None:
        """When the oldest frame that is under way is to be repeated; null if there is none.

        Each repetition gives it twice as long as before: on a slow line it may only be late.
        """
        if not self._stamped:
            return None
        since = self._repeated_at if self._repeats else self._stamped[0]
        return since + self.lease_s * 2**self._repeats

    def overdue(self, now: float) -> bool:
        """Whether the oldest frame that is under way should go out once more."""
        ends_at = self.lease_ends_at
        return ends_at is not None and now >= ends_at

    def spoke(self, now: float) -> None:
        """A passing frame goes out; it counts as a sign of life."""
        self._spoke_at = now

    def on_ack(self, seq: int) -> bool:
        """The peer has everything up to `seq`; returns whether that is news.

        Raises:
            ProtocolError: it was never sent.
        """
        if seq > self.sent:
            raise ProtocolError(f"ack of {seq}, but only {self.sent} were sent")
        if seq <= self.acked:
            return False
        for _ in range(seq - self.acked):
            self._stamped.popleft()
        self.acked = seq
        self._repeats = 0
        return True

    # --- receiving ---

    def heard(self, now: float) -> None:
        """Anything at all came in, if only a part of a frame; an earlier time changes nothing."""
        self._heard_at = max(self._heard_at, now)

    def receive(self, seq: int) -> Fresh | Duplicate:
        """Judge a numbered frame that came in.

        Raises:
            ProtocolError: it lacks its number, or one is missing before it; the connection must be
                resumed.
        """
        if seq < 1:
            raise ProtocolError("a numbered frame without its number")
        if seq <= self.received:
            # Perhaps still on its way to the disk: then its own ack will follow.
            return Duplicate(self.accepted)
        if seq != self.received + 1:
            raise ProtocolError(f"frame {seq} after {self.received}: one is missing")
        self.received = seq
        return Fresh(seq)

    def accept(self, seq: int) -> int:
        """Frames up to `seq` are durable; returns the number to acknowledge.

        Raises:
            ValueError: it was not received: a fault of the caller's.
        """
        if seq > self.received:
            raise ValueError(f"frame {seq} was not received")
        self.accepted = max(self.accepted, seq)
        return self.accepted

    # --- liveness ---

    def heartbeat_due(self, now: float) -> bool:
        """Whether a heartbeat should go out now."""
        return now - self._spoke_at >= self.heartbeat_s

    @property
    def dies_at(self) -> float:
        """When the peer is taken for dead, unless something comes in before."""
        return self._heard_at + self.silence_s

    def dead(self, now: float) -> bool:
        """Whether the peer has been silent for too long; the close code is `HEARTBEAT_MISSED`."""
        return now >= self.dies_at

    def next_deadline(self) -> float:
        """When to look again at `heartbeat_due`, `dead` and `overdue`."""
        due = min(self._spoke_at + self.heartbeat_s, self.dies_at)
        ends_at = self.lease_ends_at
        return due if ends_at is None else min(due, ends_at)


def resume(*, outbox_acked: int, outbox_last: int, peer_has: int) -> int:
    """The watermark to start sending after, from what the peer says it has on its disk.

    Args:
        outbox_acked: the last own number that was acknowledged before.
        outbox_last: the last own number that exists.
        peer_has: the last number that the peer says it has.

    Raises:
        ProtocolError: the two histories do not fit: a side was restored from a backup or lost its
            state. A new epoch is needed.
    """
    if not outbox_acked <= peer_has <= outbox_last:
        raise ProtocolError(
            f"histories differ: the peer has {peer_has}, this side {outbox_acked}..{outbox_last}",
            CloseCode.BAD_FRAME,
        )
    return peer_has
