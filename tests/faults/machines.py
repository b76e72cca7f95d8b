"""Machines that are no more than the daemon's own link and memory: as many as a row wants, and no agents.

What is delivered to one is over at once, without a word.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from cloudagent_backend.store import agents, hosts, users
from cloudagent_backend.store.database import connect
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import Deliver, Heartbeat, Hello, RunReport
from cloudagent_protocol.ids import DeliveryId, new_run_id
from cloudagent_protocol.resources import AgentCreate, Driver, HostMachineCreate


@dataclass
class Machine:
    """Handles what it is given, in the order in which it says so."""

    key: str
    agent: str
    handled: list[DeliveryId] = field(default_factory=list[DeliveryId])
    spool: Spool = field(init=False)
    client: LinkClient = field(init=False)

    async def run(self, url: str, *, task_status: TaskStatus[None]) -> None:
        transport = WebSocketTransport(Way(url), always(self.key))
        async with open_spool(None) as self.spool, anyio.create_task_group() as tasks:
            self.client = LinkClient(transport, self.spool, self._hello, Heartbeat)
            tasks.start_soon(self.client.run)
            tasks.start_soon(self._work)
            task_status.started()

    async def until(self, *, connected: bool) -> None:
        while (self.client.standing.state == "connected") != connected:
            await self.client.changed.wait()

    async def until_all_is_told(self, count: int) -> None:
        """So many were handled, and the backend has their ends."""
        while len(self.handled) < count:
            await self.spool.committed.wait()
        await self.client.flush()

    async def _hello(self) -> Hello:
        marks = self.spool.marks
        return Hello(
            protocol=[1],
            daemon_version="0",
            instance_id=self.agent,
            profile="default",
            os="linux",
            hostname="mbp",
            epoch=marks.epoch,
            last_seq=marks.accepted,
            unfinished=await self.spool.held(),
        )

    async def _work(self) -> None:
        number = 0
        while True:
            await self.spool.changed_beyond(number)
            for change in await self.spool.changes_after(number):
                number = change.number
                if change.waiting is not None:
                    await self.spool.finish(_silent(change.waiting.deliver))
                    self.handled.append(change.delivery_id)


def _silent(deliver: Deliver) -> RunReport:
    return RunReport(
        run_id=new_run_id(),
        agent_id=deliver.agent.id,
        conversation_id=deliver.message.conversation_id,
        delivery_ids=[deliver.delivery_id],
        event=Finished(seq=1, at=datetime.now(UTC), outcome=Outcome.SILENT, detail="heard"),
    )


def make_machines(database: Path, count: int) -> list[Machine]:
    """In the database, which no backend has open: by requests it takes longer than the row."""
    connection = connect(database)
    connection.execute("BEGIN IMMEDIATE")
    user = users.by_email(connection, "ana@example.com")
    assert user
    made: list[Machine] = []
    for number in range(count):
        host = hosts.create(connection, user.id, HostMachineCreate(name=f"host{number}"))
        body = AgentCreate(
            name=f"agent{number}", driver=Driver.CLAUDE_CODE, host_machine_id=host.id
        )
        made.append(Machine(host.raw_key, agents.create(connection, user.id, body).id))
    connection.execute("COMMIT")
    connection.close()
    return made
