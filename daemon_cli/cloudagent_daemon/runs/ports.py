"""What a run needs of the link and the spool, and what may stop it."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio

from cloudagent_daemon.link.asked import Asked
from cloudagent_daemon.link.tables import Watermarks
from cloudagent_protocol.frames import (
    AgentEntry,
    Deliver,
    DeliveryReport,
    Delta,
    FindAgent,
    FoundAgent,
    ListAgents,
    ListMessages,
    RunDiff,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import AgentId, ApprovalId, ConversationId, DeliveryId, RunId

#: What a machine says of its work.
Said: TypeAlias = RunReport | Send | DeliveryReport | RunDiff


class UplinkError(Exception):
    """The backend could not be asked; `str()` says why, for a model or a person to read."""


@dataclass(frozen=True)
class Launch:
    """A process that was started; enough to find it again after the daemon's death."""

    run_id: RunId
    delivery_id: DeliveryId
    launch_id: str
    pid: int
    #: When the process was created, as psutil tells it (Unix seconds): guards against a reused pid.
    started_at: float
    attempt: int
    #: It may live longer than the run; `gone` tells its end.
    stays: bool = False


class Uplink(Protocol):
    """What a run needs of the link and the spool."""

    @property
    def full(self) -> bool:
        """Whether so much waits for the backend that details of runs are to be left out."""
        ...

    async def report(self, frame: Said) -> None:
        """Keeps the frame until the backend has it; durable on disk when this returns."""
        ...

    async def finish(self, frame: RunReport) -> None:
        """As `report`, for the run's `Finished`; ends its deliveries in the same transaction."""
        ...

    async def launched(self, launch: Launch) -> None:
        """Remembers a process, durably, so that the daemon's next life can end it."""
        ...

    async def waits(self, launch_id: str, pid: int, started_at: float) -> None:
        """As `launched`, of a process that waits for a message; `pid` 0: it is about to be started."""
        ...

    async def gone(self, launch_id: str) -> None:
        """Forgets a process that was to stay."""
        ...

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        """Remembers that the delivery is part of that one's turn, which leaves now."""
        ...

    def delta(self, frame: Delta) -> None:
        """Passes a piece of text on if the link is up; may drop it."""
        ...

    async def list_messages(self, query: ListMessages) -> list[dict[str, Any]]:
        """Messages of a conversation as the API shows them, oldest first.

        Raises:
            UplinkError: the backend cannot be reached, or refuses.
        """
        ...

    async def list_agents(self, query: ListAgents) -> list[AgentEntry]:
        """Whom an agent may message.

        Raises:
            UplinkError: as `list_messages`.
        """
        ...

    async def find_agent(self, query: FindAgent) -> FoundAgent:
        """Where a message to another agent goes.

        Raises:
            UplinkError: as `list_messages`; there is no such agent, or it may not be messaged now.
        """
        ...


@dataclass
class Ride:
    """A message that was put into another one's turn."""

    deliver: Deliver
    #: Whether the agent took it up; else its own turn is still to come.
    taken: bool = False


class Answers(Protocol):
    """What people have decided, as the spool keeps it."""

    @property
    def marks(self) -> Watermarks: ...

    async def asked(self, delivery_id: DeliveryId) -> list[Asked]: ...

    async def acted_on(self, delivery_id: DeliveryId) -> list[Asked]: ...

    async def acted(self, approval_id: ApprovalId) -> None: ...

    async def changed_beyond(self, number: int) -> None: ...

    async def rules(self, agent_id: AgentId, conversation_id: ConversationId) -> list[str]: ...

    async def add_rule(
        self, rule_id: str, agent_id: AgentId, conversation_id: ConversationId | None, body: str
    ) -> None: ...


@dataclass(frozen=True)
class Parked:
    """A run has left because people it has asked do not answer: it goes on when they have."""


class StopSignal:
    """Asks a run to stop; the first request counts."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        #: Who asked: a person's name.
        self.actor = ""
        #: Set when it is to end at once, and who asked for that.
        self.now = anyio.Event()
        self.ended_by: str | None = None
        #: Whether the daemon itself is going down, rather than a person having asked.
        self.daemon_stops = False
        #: Whether the run is to leave its delivery unfinished: it waits for people.
        self.parks = False
        #: Set when the daemon is about to end: a run that waits for people need not stay.
        self.draining = anyio.Event()
        #: What it waits for people for, at the moment; for a person.
        self.waits_for: str | None = None

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self, actor: str, *, daemon_stops: bool = False) -> None:
        if not self.requested:
            self.actor, self.daemon_stops = actor, daemon_stops
            self._event.set()

    def hurry(self, actor: str) -> None:
        """Wants it ended at once: whoever was asked to stop is not waited for any more."""
        self.request(actor)
        if not self.now.is_set():
            self.ended_by = actor
            self.now.set()

    def park(self) -> None:
        """Has the run leave, if it was not asked to stop already."""
        if not self.requested:
            self.parks = True
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
