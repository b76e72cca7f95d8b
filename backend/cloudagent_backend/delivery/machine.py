"""Who is at the other end of a link, and for which agents it may speak."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.frames import Delta, Heartbeat
from cloudagent_protocol.ids import AgentId, DeliveryId, HostId, RunId, UserId
from cloudagent_protocol.resources import Hold


@dataclass(slots=True)
class Machine:
    """Who reports."""

    host_id: HostId
    user_id: UserId
    name: str
    #: Of an ephemeral host: the one whose agents it serves, and the one agent if it is only that.
    parent_id: HostId | None = None
    only: AgentId | None = None
    #: Runs whose model is known to have begun to answer: their deltas change nothing that is kept.
    seen: set[RunId] = field(default_factory=set[RunId])
    #: Runs of this connection whose text is being shown.
    live: set[RunId] = field(default_factory=set[RunId])
    #: Runs that its last heartbeat did not list though they are not known to be over, and those whose
    #: messages were therefore offered again on this connection.
    unlisted: set[RunId] = field(default_factory=set[RunId])
    offered: set[RunId] = field(default_factory=set[RunId])
    #: Why it starts nothing, as it said last on this connection.
    holds: list[Hold] = field(default_factory=list[Hold])
    #: Whether it is shutting down, as it said last on this connection.
    draining: bool = False
    #: When deliveries were sent over it, of those whose ladder does not say so yet; microseconds.
    sent: dict[DeliveryId, int] = field(default_factory=dict[DeliveryId, int])

    @classmethod
    def of(cls, host: HostRow) -> "Machine":
        return cls(host.id, host.user_id, host.name, host.parent_id, host.serves)

    def serves(self, agent: AgentRow) -> bool:
        """Whether it may speak for this agent."""
        own = agent.host_machine_id == (self.parent_id or self.host_id)
        return own and self.only in (None, agent.id)

    def gone(self, frame: Heartbeat) -> set[RunId]:
        """Runs that two heartbeats in a row did not list, each once; to be asked as they come."""
        missing = self.live - {run.run_id for run in frame.running}
        twice = (missing & self.unlisted) - self.offered
        self.unlisted.clear()
        self.unlisted.update(missing)
        self.offered.update(twice)
        return twice

    def changes_nothing(self, frame: BaseModel) -> bool:
        match frame:
            case Delta():
                return frame.run_id in self.seen
            case Heartbeat():
                listed = {run.run_id for run in frame.running}
                same = (frame.holds, frame.draining) == (self.holds, self.draining)
                return same and not self.unlisted and self.live <= listed
            case _:
                return False
