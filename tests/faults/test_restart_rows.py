"""Row 20 of the fault matrix: the backend is restarted under many machines, with the daemon's own link."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskStatus
from anyio.to_thread import run_sync

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
from e2e.harness import Backend, database_of, running_backend
from faults.site import sign_up
from faults.sizes import FULL, MARKS, seeded

pytestmark = [*MARKS, pytest.mark.timeout(900)]
MACHINES = 1_000 if FULL else 30
#: After each the attempts of the next one come more rarely: none is stable for a minute in between.
RESTARTS = 3 if FULL else 1
#: The row's promise: from the new backend's start until the last machine is connected.
BACK_S = 120.0


@dataclass
class Machine:
    """A daemon's link and memory; what is delivered is over at once, without a word."""

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


async def all_of(machines: list[Machine], *, connected: bool, within_s: float) -> None:
    with anyio.fail_after(within_s):
        for machine in machines:
            await machine.until(connected=connected)


def state_of(backend: Backend, message_id: str) -> str:
    [delivery] = backend.call("GET", f"/v1/messages/{message_id}/trace")["deliveries"]
    return delivery["state"]


@seeded
async def test_row20_after_restarts_of_the_backend_all_machines_are_back_and_nothing_is_lost(
    tmp_path: Path, seed: int
) -> None:
    home = tmp_path / "server"
    token = sign_up(home)
    machines = make_machines(database_of(home), MACHINES)
    sent: list[str] = []
    rounds = RESTARTS + 1

    with running_backend(home, token=token) as backend:

        def post_to_all() -> None:
            sent.extend(backend.send(machine.agent, "hello")["id"] for machine in machines)

        async with anyio.create_task_group() as tasks:
            for machine in machines:
                await tasks.start(machine.run, backend.url)
            await all_of(machines, connected=True, within_s=BACK_S)
            for _ in range(RESTARTS):
                # Some of these are delivered, some begun, some neither when it is told to end.
                await run_sync(post_to_all)
                await run_sync(backend.process.stop)
                await all_of(machines, connected=False, within_s=BACK_S)
                began = time.monotonic()
                await run_sync(backend.start_again)
                await all_of(machines, connected=True, within_s=BACK_S - (time.monotonic() - began))
            await run_sync(post_to_all)
            with anyio.fail_after(BACK_S):
                for machine in machines:
                    await machine.until_all_is_told(rounds)
            tasks.cancel_scope.cancel()
        states = await run_sync(lambda: {state_of(backend, message) for message in sent})
    assert states == {"done"}
    # None twice, and none to another machine.
    handled = [delivery for machine in machines for delivery in machine.handled]
    assert len(set(handled)) == len(handled) == len(sent) == MACHINES * rounds
    assert all(len(machine.handled) == rounds for machine in machines)
