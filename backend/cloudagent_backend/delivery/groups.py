"""What a machine sends at once, and what became of it."""

from dataclasses import dataclass, field

from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import (
    Ack,
    DeliveryReport,
    Delta,
    Heartbeat,
    HostReport,
    RunDiff,
    RunReport,
    Send,
    UnknownFrame,
)
from cloudagent_protocol.ids import HostId, RunId

#: What can wait in a group. An unknown numbered frame is accepted and otherwise ignored.
Reported = (
    RunReport
    | Send
    | DeliveryReport
    | HostReport
    | RunDiff
    | Ack
    | Delta
    | Heartbeat
    | UnknownFrame
)


@dataclass
class Applied:
    """What became of a group of frames."""

    #: Frames that were dealt with, from the start of the group.
    count: int = 0
    #: Runs that turned out to be over because a later attempt has begun.
    abandoned: list[RunId] = field(default_factory=list[RunId])
    #: Machines that there is work for: their agents were messaged by an agent, or they take it again.
    hosts: set[HostId] = field(default_factory=set[HostId])
    #: Why the rest was refused.
    error: ProtocolError | None = None
