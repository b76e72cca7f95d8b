"""What a run needs of the link and the spool, and what may stop it."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio

from cloudagent_protocol.frames import (
    AgentEntry,
    DeliveryReport,
    Delta,
    FindAgent,
    FoundAgent,
    ListAgents,
    ListMessages,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import DeliveryId, RunId

#: What a machine says of its work.
Said: TypeAlias = RunReport | Send | DeliveryReport


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

    async def gone(self, launch_id: str) -> None:
        """Forgets a process that was to stay."""
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


class StopSignal:
    """Asks a run to stop; the first request counts."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        #: Who asked: a person's name.
        self.actor = ""
        #: Whether the daemon itself is going down, rather than a person having asked.
        self.daemon_stops = False

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self, actor: str, *, daemon_stops: bool = False) -> None:
        if not self.requested:
            self.actor, self.daemon_stops = actor, daemon_stops
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
