"""Why nothing reaches a machine at the moment: it is offline, or shutting down."""

import sqlite3
from dataclasses import dataclass

from cloudagent_backend.store import hosts
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import AgentId, HostId
from cloudagent_protocol.resources import HostState


@dataclass(frozen=True, slots=True)
class Away:
    """What a message waits for."""

    reason: Reason
    #: The name of the machine.
    host: str
    #: Since when; null: it was never here.
    since_us: int | None

    @property
    def words(self) -> str:
        """For a person; when it began is said beside it, in their own time zone."""
        if self.reason is Reason.HOST_DRAINING:
            return f"{self.host} is shutting down"
        return f"{self.host} is offline" if self.since_us else f"{self.host} has not connected yet"


def away(c: sqlite3.Connection, host_id: HostId, agent_id: AgentId) -> Away | None:
    """Why the host takes nothing of this agent's, if no ephemeral one does that for it."""
    host = hosts.load_any(c, host_id)
    if host is None or host.state is HostState.ONLINE or hosts.has_helper(c, host_id, agent_id):
        return None
    draining = host.state is HostState.DRAINING
    reason = Reason.HOST_DRAINING if draining else Reason.HOST_OFFLINE
    return Away(reason, host.name, host.last_seen_us)
