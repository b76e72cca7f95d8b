"""One daemon's connection after its welcome: what may come in, what may go out, when it is over.

It has no task of its own and never waits. What comes is judged at once (`Link` knows the rules) and
lies in the inbox until `Links`, which looks after all connections, has brought it to the store.
"""

import logging
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from cloudagent_backend.api.sockets import PatientWebSocket
from cloudagent_backend.delivery.groups import Reported
from cloudagent_backend.delivery.hints import Hints
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import clock
from cloudagent_backend.store.outbox import OutboxRow
from cloudagent_protocol.errors import CloseCode, ProtocolError
from cloudagent_protocol.frames import (
    Ack,
    CommandResult,
    DeliveryReport,
    Delta,
    Frame,
    Heartbeat,
    HostReport,
    Query,
    RunDiff,
    RunReport,
    Send,
    UnknownFrame,
    decode,
    encode,
)
from cloudagent_protocol.link import Duplicate, Link

logger = logging.getLogger(__name__)

#: Frames of a connection that wait for the store; above it the socket is not read, and TCP holds
#: the daemon back. There is no limit of frames per second: a model that streams makes hundreds of
#: small deltas a second, which is honest. What must be bounded is memory (this times the frame
#: size) and the store's share, and a connection has only one group of frames there at a time.
INBOX: Final = 32
_HEARTBEAT: Final = encode(Heartbeat())

Inbound = Reported | Query


@dataclass(frozen=True)
class Bells:
    """How connections tell that there is something to do for them."""

    #: Of the hub: a session has something to send.
    sends: Hints[Session]
    reported: Hints["Connection"] = field(default_factory=Hints["Connection"])
    #: Deliveries were sent, and their acknowledgement is awaited.
    sent: Hints["Connection"] = field(default_factory=Hints["Connection"])
    #: What was sent last is not acknowledged, and is to be sent again.
    overdue: Hints["Connection"] = field(default_factory=Hints["Connection"])
    ended: Hints["Connection"] = field(default_factory=Hints["Connection"])


class Connection:
    """A `Listener`: the event loop gives it what comes over its socket."""

    __slots__ = ("_bells", "_inbox", "_socket", "busy", "ended", "link", "machine", "session")

    def __init__(
        self,
        socket: PatientWebSocket,
        session: Session,
        machine: Machine,
        link: Link,
        bells: Bells,
    ) -> None:
        self._socket = socket
        self._bells = bells
        self._inbox: list[Inbound] = []
        self.session = session
        self.machine = machine
        self.link = link
        #: Whether a group of its frames is with the store; the next one waits until `free`.
        self.busy = False
        self.ended = False

    def begin(self) -> None:
        """Take what comes from now on."""
        self._socket.take_over(self)

    def end(self, code: CloseCode | None = None, reason: str = "") -> None:
        """Nothing more is taken or sent. Without a code the peer itself has gone."""
        if self.ended:
            return
        self.ended = True
        self._inbox.clear()
        if code is not None:
            self._socket.close(code, reason)
        self._bells.ended.hint(self)

    # --- in ---

    def on_message(self, data: str | bytes) -> None:
        if self.ended:
            return
        with spared("a frame was too much; closing", self.about("judge"), [self]):
            try:
                inbound = self._judge(decode(data))
            except ProtocolError as error:
                self.refuse(error)
            else:
                if inbound is not None:
                    self._keep(inbound)

    def on_writable(self) -> None:
        self._read_on()
        if self.session.behind:
            self._bells.sends.hint(self.session)

    def on_lost(self) -> None:
        self.end()

    def refuse(self, error: ProtocolError) -> None:
        """The daemon did what it may not."""
        logger.warning("closing: %s", error, extra=self.about("close"))
        self.end(error.close_code, str(error))

    def fail(self) -> None:
        """A fault of ours ends it, told apart from one of the daemon's."""
        self.end(CloseCode.RESTART)

    def take(self) -> list[Inbound]:
        """The next group for the store; nothing after a newer connection of the host has begun.

        That one may have begun another history since these frames came.
        """
        if self.ended or self.session.closed or self.busy:
            return []
        group = self._inbox[:INBOX]
        del self._inbox[:INBOX]
        self.busy = bool(group)
        return group

    def acknowledge(self, applied: Sequence[Reported]) -> None:
        """These are on the disk."""
        self.link.heard(time.monotonic())  # while the store was slow, the socket was not read
        numbers = [
            frame.seq
            for frame in applied
            if not isinstance(frame, Ack | Delta | Heartbeat) and frame.seq is not None
        ]
        if numbers and not self.ended:
            self.say(Ack(seq=self.link.accept(numbers[-1])))

    def free(self) -> None:
        """The group is dealt with: the next one may come."""
        self.busy = False
        self._read_on()
        if self._inbox:
            self._bells.reported.hint(self)

    def _keep(self, inbound: Inbound) -> None:
        self._inbox.append(inbound)
        if not self.busy:
            self._bells.reported.hint(self)
        if len(self._inbox) >= INBOX:
            self._socket.hold()

    def _read_on(self) -> None:
        if len(self._inbox) < INBOX:
            self._socket.go_on()

    def _judge(self, frame: Frame) -> Inbound | None:
        """What of a frame is left for the store; a duplicate is only acknowledged anew."""
        match frame:
            case RunReport() | Send() | DeliveryReport() | HostReport() | RunDiff():
                return frame if self._is_fresh(frame.seq) else None
            case UnknownFrame(seq=int(seq)):
                return frame if self._is_fresh(seq) else None
            case Ack():
                was_full = self.link.may_send <= 0
                if not self.link.on_ack(frame.seq):
                    return None
                if was_full and self.session.behind:
                    self._bells.sends.hint(self.session)
                return frame
            case Delta() | Query():
                return frame
            case CommandResult():
                self._heed(frame)
                return None
            case Heartbeat():
                self.session.draining = frame.draining
                return None if self.machine.changes_nothing(frame) else frame
            case UnknownFrame():
                return None
            case _:
                raise ProtocolError(f"a {frame.type} is not for a backend")

    def _heed(self, result: CommandResult) -> None:
        # One that nobody waits for any more is late: left aside.
        if asked := self.session.asked.get(result.id):
            asked.result = result
            asked.over.set()

    def _is_fresh(self, seq: int) -> bool:
        verdict = self.link.receive(seq)
        if isinstance(verdict, Duplicate):
            self.say(Ack(seq=verdict.ack))
            return False
        return True

    # --- out ---

    def say(self, frame: BaseModel) -> None:
        """Send a passing frame. It is small, and to a peer that reads nothing few are said."""
        self._socket.write(encode(frame))
        self.link.spoke(time.monotonic())

    @property
    def room(self) -> int:
        """How many numbered frames may go out now."""
        return self.link.may_send if self._socket.takes_more and not self.ended else 0

    def send(self, rows: Sequence[OutboxRow]) -> None:
        """Send numbered frames of the outbox, those that come next and have room.

        Where one is missing before them, or there is no room, the session is behind.
        """
        now, at_us = time.monotonic(), clock.now_us()
        for row in rows:
            if row.seq <= self.link.sent:
                continue
            if self.room <= 0 or row.seq != self.link.sent + 1:
                self.session.behind = True
                return
            self._socket.write(row.frame)
            self.link.stamp(row.seq, now)
            if row.type == "deliver" and row.delivery_id:
                self.machine.sent[row.delivery_id] = at_us
                self._bells.sent.hint(self)

    def repeat(self, row: OutboxRow) -> None:
        """Send the oldest frame that is not acknowledged once more, unless its ack has come."""
        if row.seq != self.link.acked + 1 or row.seq > self.link.sent or self.ended:
            return
        logger.info(
            "frame %d is not acknowledged; sending it again", row.seq, extra=self.about("repeat")
        )
        self._socket.write(row.frame)
        self.link.spoke(time.monotonic())

    # --- liveness ---

    def look(self, now: float) -> float:
        """Send a heartbeat, or an old frame again, if that is due; give the peer up if it is silent.

        Returns when to look again.
        """
        self.link.heard(self._socket.heard_at)
        if self.link.dead(now):
            self.refuse(ProtocolError("nothing was heard", CloseCode.HEARTBEAT_MISSED))
        elif self.link.heartbeat_due(now):
            self._socket.write(_HEARTBEAT)
            self.link.spoke(now)
        if self.link.overdue(now):
            self.link.repeat(now)
            self._bells.overdue.hint(self)
        return self.link.next_deadline()

    def about(self, action: str) -> dict[str, str]:
        """For the log."""
        return {"action": action, "host_id": self.machine.host_id}


@contextmanager
def spared(
    fault: str, about: dict[str, str], closing: Iterable[Connection] = ()
) -> Generator[None]:
    """Whatever goes wrong inside is logged as this fault, and costs these connections, but no more.

    A few tasks serve every connection, and the store is asked for many at once: an exception of any
    kind that left one of them would end the links of all machines. A machine whose connection is
    closed comes back and resumes; what was not kept was not acknowledged, and comes again.
    """
    try:
        yield
    except Exception:
        logger.exception(fault, extra=about)
        for connection in closing:
            connection.fail()
