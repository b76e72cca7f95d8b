"""Delivery without sockets: a real database and service, and frames as a daemon would send them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudagent_backend.delivery import sending
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.groups import Applied, Reported
from cloudagent_backend.delivery.handshake import Greeting
from cloudagent_backend.delivery.hub import Hub, Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.queueing import Submission
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store import agents, deliveries, events, hosts, outbox, users
from cloudagent_backend.store.database import Database, open_database
from cloudagent_backend.store.events import EventRow
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.events import (
    Finished,
    Outcome,
    Ready,
    Reason,
    RunEvent,
    Started,
    Text,
)
from cloudagent_protocol.frames import Ack, Delta, Heartbeat, Hello, RunReport, Send, decode
from cloudagent_protocol.ids import (
    AgentId,
    DeliveryId,
    RunId,
    UserId,
    new_message_id,
    new_run_id,
)
from cloudagent_protocol.resources import (
    AgentCreate,
    Author,
    Driver,
    EphemeralHostCreate,
    HostMachineCreate,
    Message,
)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Run:
    """The reports of one run, numbered as a daemon numbers them."""

    message: Message
    id: RunId = field(default_factory=new_run_id)
    seq: int = 0

    @property
    def delivery_ids(self) -> list[DeliveryId]:
        return [one.id for one in self.message.deliveries]

    def report(self, event: RunEvent) -> RunReport:
        self.seq += 1
        event.seq = self.seq
        return RunReport(
            run_id=self.id,
            agent_id=self.message.deliveries[0].agent_id,
            conversation_id=self.message.conversation_id,
            delivery_ids=self.delivery_ids,
            event=event,
        )

    def started(self, attempt: int = 1) -> RunReport:
        return self.report(
            Started(at=now(), driver="claude_code", attempt=attempt, launch_id="la_1", pid=7)
        )

    def ready(self) -> RunReport:
        return self.report(Ready(at=now(), session_id="s-1"))

    def text(self, text: str, block: int = 0) -> RunReport:
        return self.report(Text(at=now(), block=block, text=text))

    def finished(self, outcome: Outcome = Outcome.REPLIED, **more: Any) -> RunReport:
        return self.report(Finished(at=now(), outcome=outcome, **more))

    def failed(self, reason: Reason, detail: str = "") -> RunReport:
        return self.finished(Outcome.FAILED, reason=reason, detail=detail)

    def send(self, text: str, **more: Any) -> Send:
        return Send(
            message_id=new_message_id(),
            agent_id=self.message.deliveries[0].agent_id,
            conversation_id=self.message.conversation_id,
            run_id=self.id,
            text=text,
            sent_at=now(),
            **more,
        )


@dataclass
class Desk:
    """One person, her host `mbp` and its agent `frontend`."""

    database: Database
    service: Service
    hub: Hub
    fanout: Fanout
    user_id: UserId
    machine: Machine
    agent_id: AgentId
    seq: int = 0

    @property
    def author(self) -> Author:
        return Author(type="user", id=self.user_id, name="ana")

    async def say(self, text: str = "fix the login test", **more: Any) -> Message:
        return await self.service.submit(self.submission(text, **more))

    def submission(self, text: str, **more: Any) -> Submission:
        """To the agent, if nobody else is named."""
        if not {"agent_id", "conversation_id"} & more.keys():
            more["agent_id"] = self.agent_id
        return Submission(self.user_id, self.author, text, **more)

    async def add_agent(self, name: str) -> AgentId:
        """Another agent on the same host."""
        host_id = self.machine.host_id
        return await self.database.write(lambda c: _agent(c, self.user_id, host_id, name))

    async def lease(self, window: int = 32) -> list[Any]:
        """Lease, and give the frames that lie in the outbox then."""
        host_id = self.machine.host_id
        await self.database.write(lambda c: sending.lease(c, ReadyHost(host_id), window))
        return await self.outbox()

    async def outbox(self) -> list[Any]:
        rows = await self.database.read(lambda c: outbox.after(c, self.machine.host_id, 0, 1_000))
        return [decode(row.frame) for row in rows]

    async def receive_all(self) -> None:
        """Lease what there is, and have it acknowledged."""
        if frames := await self.lease():
            await self.service.apply(self.machine, [Ack(seq=frames[-1].seq)])

    async def report(self, *frames: Reported) -> Applied:
        for frame in frames:
            if not isinstance(frame, Ack | Delta | Heartbeat):
                self.seq += 1
                frame.seq = self.seq
        return await self.service.apply(self.machine, frames)

    async def rungs(self, message: Message) -> list[str]:
        [row] = await self.rows(message)
        trace = deliveries.trace(row)
        return [rung.rung for rung in trace.rungs]

    async def rows(self, message: Message) -> list[deliveries.DeliveryRow]:
        return await self.database.read(
            lambda c: deliveries.of_message(c, self.user_id, message.id)
        )

    async def state(self, message: Message) -> str:
        [row] = await self.rows(message)
        return row.state.value

    async def agent_status(self) -> str:
        agent = await self.database.read(lambda c: agents.load(c, self.user_id, self.agent_id))
        assert agent is not None
        return agent.status.value

    async def log(self, after: int = 0) -> list[EventRow]:
        return await self.database.read(lambda c: events.after(c, self.user_id, after, 10_000))

    async def greet(self, **fields: Any) -> Greeting:
        return await self.service.greet(self.machine, hello(**fields))


class Helper:
    """An ephemeral host of the desk's `mbp`, and the reports of its daemon."""

    def __init__(self, desk: Desk, host: HostRow) -> None:
        self.desk = desk
        self.host = host
        self.machine = Machine.of(host)
        self.seq = 0

    async def connect(self) -> Session:
        """As its daemon does: it is greeted, and takes what there is for it."""
        session = Session(self.host.id, f"in_{self.host.id}", self.host.parent_id)
        self.desk.hub.attach(session)
        await self.desk.service.greet(self.machine, hello(instance_id=session.instance_id))
        session.ready = True
        await self.desk.service.lease([ReadyHost(self.host.id)])
        return session

    async def leave(self, session: Session) -> None:
        self.desk.hub.detach(session)
        await self.desk.service.leave(self.machine)

    async def frames(self) -> list[Any]:
        rows = await self.desk.database.read(lambda c: outbox.after(c, self.host.id, 0, 1_000))
        return [decode(row.frame) for row in rows]

    async def delivered(self) -> list[str]:
        return [frame.message.text for frame in await self.frames() if frame.type == "deliver"]

    async def receive_all(self) -> None:
        last = (await self.frames())[-1].seq
        await self.desk.service.apply(self.machine, [Ack(seq=last)])

    async def report(self, *frames: Reported) -> Applied:
        for frame in frames:
            if not isinstance(frame, Ack | Delta | Heartbeat):
                self.seq += 1
                frame.seq = self.seq
        return await self.desk.service.apply(self.machine, frames)


async def add_helper(
    desk: Desk, name: str = "job-1", *, serves: AgentId | None = None, takes: int = 1
) -> Helper:
    def work(c: Any) -> HostRow:
        parent = hosts.load(c, desk.user_id, desk.machine.host_id)
        assert parent is not None
        body = EphemeralHostCreate(name=name, takes=takes)
        made = hosts.create_ephemeral(c, parent, body, serves)
        row = hosts.load(c, desk.user_id, made.id)
        assert row is not None
        return row

    return Helper(desk, await desk.database.write(work))


def hello(**fields: Any) -> Hello:
    usual: dict[str, Any] = {
        "protocol": [1],
        "daemon_version": "0.3.0",
        "instance_id": "in_1",
        "profile": "default",
        "os": "linux",
        "hostname": "mbp-ana",
    }
    return Hello.model_validate(usual | fields)


@asynccontextmanager
async def open_desk(
    directory: Path, *, backlog_cap: int = 1_000, limits: Limits | None = None
) -> AsyncGenerator[Desk]:
    async with open_database(directory / "desk.db") as database:
        hub, fanout = Hub(), Fanout(database, coalesce_s=0.04, ping_s=15.0)
        service = Service(
            database, hub, fanout, window=32, backlog_cap=backlog_cap, limits=limits or Limits()
        )
        user = await database.write(lambda c: users.create(c, "ana@example.com", name="ana"))
        machine, agent_id = await add_host(database, user.id, "mbp", "frontend")
        yield Desk(database, service, hub, fanout, user.id, machine, agent_id)


async def add_host(
    database: Database, user_id: UserId, host_name: str, agent_name: str
) -> tuple[Machine, AgentId]:
    host = await database.write(
        lambda c: hosts.create(c, user_id, HostMachineCreate(name=host_name))
    )
    agent = await database.write(lambda c: _agent(c, user_id, host.id, agent_name))
    return Machine(host.id, user_id, host_name), agent


def _agent(c: Any, user_id: UserId, host_id: Any, name: str) -> AgentId:
    body = AgentCreate(name=name, driver=Driver.CLAUDE_CODE, host_machine_id=host_id)
    return agents.create(c, user_id, body).id
