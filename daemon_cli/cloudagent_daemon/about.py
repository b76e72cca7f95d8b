"""What the daemon says of itself: to its backend, to `status`, and to the service manager."""

import os
import secrets
import socket
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio

from cloudagent_daemon import log, trust
from cloudagent_daemon.config import Settings
from cloudagent_daemon.guards import Guards
from cloudagent_daemon.installation import Installation
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.keyfile import KeyFile
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.runs.breaker import Pause
from cloudagent_daemon.runs.limits import Limit
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.uplink import LiveRuns
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.service.notify import standing_text
from cloudagent_daemon.tunnel import Tunnel
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import MAX_HOLDS, Capability, Heartbeat, Hello
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import Hold, Runtime
from cloudagent_protocol.version import DISTRIBUTION, SUPPORTED

#: Of a hold, and the status of an agent.
_LACKS: Final = Reason.RUNTIME_MISSING.value


@dataclass
class About:
    """Looks at the parts of one daemon and changes none."""

    settings: Settings
    spool: Spool
    client: LinkClient
    queue: RunQueue
    guards: Guards
    installation: Installation
    masks: Masks
    live: LiveRuns
    key: KeyFile | None
    tunnel: Tunnel | None
    warm: Warm
    #: What was found at the last look.
    runtimes: list[Runtime] = field(default_factory=list[Runtime])
    #: Tells this life from the one before, on the same machine.
    instance_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def report(self) -> dict[str, Any]:
        """What `status` shows (interface.md §6)."""
        standing = self.client.standing
        connection = self.client.connection
        weaknesses = trust.weaknesses(self.settings.server_url, insecure=self.settings.insecure)
        key_note = self.key.note if self.key else ""
        return {
            "daemon_version": DISTRIBUTION,
            "pid": os.getpid(),
            "profile": self.settings.profile,
            "state": standing.state,
            "detail": standing.detail or None,
            "attempt": standing.attempt,
            "next_attempt_at": _time(standing.next_at),
            "server_url": self.settings.server_url,
            "insecure": bool(weaknesses),
            "weaknesses": weaknesses,
            "tunnel": self.tunnel.report() if self.tunnel else None,
            "host_id": connection.welcome.host_id if connection else self.settings.host_id,
            "hostname": socket.gethostname(),
            "draining": self.queue.draining,
            "round_trip_ms": _milliseconds(connection.round_trip_s if connection else None),
            "since": _time(standing.since),
            "last_seq": self.spool.marks.accepted,
            "unsent": self.spool.marks.unsent,
            "notes": [
                note for note in (self.installation.detail, self.spool.note, key_note) if note
            ],
            "installation": self.installation.report(),
            "runtimes": [runtime.model_dump() for runtime in self.runtimes],
            "agents": self._agents(),
            "warm": self._warm(),
            "guards": [*self.guards.report(), _log_guard()],
            "service": None,
            "own_files": {"state": self.masks.cover, "detail": self.masks.detail or None},
        }

    def changes(self) -> list[anyio.Event]:
        """Set when `report` may say something else; to be taken before the report."""
        return [
            self.client.changed,
            self.queue.changed,
            self.guards.changed,
            self.installation.changed,
            self.spool.committed,
            self.warm.changed,
            *([self.key.changed] if self.key else []),
            *([self.tunnel.changed] if self.tunnel else []),
        ]

    def _agents(self) -> list[dict[str, Any]]:
        connection = self.client.connection
        waits_for = self.queue.waits_for
        working = {
            deliver.agent.id: since.isoformat() for deliver, since in self.queue.working.values()
        }
        ended = {agent_id: at.isoformat() for agent_id, at in self.queue.ended.items()}
        paused = {one.agent_id: one for one in reversed(self.pauses())}
        return [
            {
                "id": agent.id,
                "name": agent.name,
                "driver": agent.driver,
                "status": _status(
                    paused.get(agent.id),
                    working=agent.id in working,
                    waiting=agent.id in waits_for,
                ),
                "waiting_for": waits_for.get(agent.id),
                "since": working.get(agent.id),
                "last_turn_at": ended.get(agent.id),
                "queued": self.queue.order.queued(agent.id),
                "hold": paused[agent.id].model_dump(mode="json") if agent.id in paused else None,
            }
            for agent in (connection.agents if connection else ())
        ]

    def _warm(self) -> list[dict[str, Any]]:
        """Processes that wait for a message; what they take is looked up by who asks."""
        connection = self.client.connection
        agents = {one.id: one for one in connection.agents} if connection else {}
        return [
            {
                "agent_id": one.agent_id,
                "agent": agents[one.agent_id].name if one.agent_id in agents else None,
                "conversation_id": one.conversation_id,
                "program": one.program,
                "pid": one.pid,
                "since": _time(one.since),
                "until": _time(one.until),
                "ahead": one.ahead,
            }
            for one in self.warm.all
        ]

    async def hello(self) -> Hello:
        marks = self.spool.marks
        return Hello(
            protocol=list(SUPPORTED),
            daemon_version=DISTRIBUTION,
            instance_id=self.instance_id,
            profile=self.settings.profile,
            os=sys.platform,
            hostname=socket.gethostname(),
            runtimes=self.runtimes,
            epoch=marks.epoch,
            last_seq=marks.accepted,
            unfinished=await self.spool.held(),
            running=self.live.all(),
            holds=self._holds(),
            draining=self.queue.draining,
            capabilities=list(Capability),
        )

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(running=self.live.all(), holds=self._holds(), draining=self.queue.draining)

    def _holds(self) -> list[Hold]:
        """Why nothing is started here at the moment, for the backend."""
        held = [Hold(reason=guard.state, detail=guard.detail) for guard in self.guards.refusing]
        return [*self.installation.holds, *held, *self.pauses()][:MAX_HOLDS]

    def pauses(self) -> list[Hold]:
        """Agents of which nothing is started: after crashes, or for the limit of their account."""
        crashed = [_hold_of(one) for one in self.queue.breaker.paused()]
        limited = self.queue.limits.limited().items()
        lacking = self.queue.missing.all().items()
        return [
            *crashed,
            *(Hold(reason=_LACKS, detail=repair, agent_id=one) for one, repair in lacking),
            *(_hold_for(agent_id, limit) for agent_id, limit in limited),
        ]

    def standing_text(self, *, draining: bool) -> str:
        standing, connection = self.client.standing, self.client.connection
        return standing_text(
            "draining" if draining else standing.state,
            standing.detail,
            self.settings.server_url,
            connection.welcome.host_id if connection else None,
            len(self.queue.working),
        )


def _hold_of(pause: Pause) -> Hold:
    return Hold(
        reason="crash_loop", detail=pause.detail, agent_id=pause.agent_id, until=pause.until_at
    )


def _hold_for(agent_id: AgentId, limit: Limit) -> Hold:
    return Hold(
        reason=Reason.RATE_LIMIT.value, detail=limit.detail, agent_id=agent_id, until=limit.until
    )


def _status(hold: Hold | None, *, working: bool, waiting: bool) -> str:
    if waiting:
        return "waiting"
    if working or hold is None:
        return "working" if working else "idle"
    statuses = {Reason.RATE_LIMIT.value: "waiting", _LACKS: _LACKS}
    return statuses.get(hold.reason, "crashed")


def _log_guard() -> dict[str, Any]:
    dropped = log.dropped()
    detail = f"{dropped} log line(s) could not be written" if dropped else ""
    state = "log_dropped" if dropped else "ok"
    return {"name": "log", "state": state, "value": dropped, "limit": 0, "detail": detail}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1_000, 1)


def _time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds is not None else None
