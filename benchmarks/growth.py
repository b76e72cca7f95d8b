"""What a message costs when there is ten times as much of everything: hosts, and messages of before.

Each message goes all the way: POST, frame, ack, the report that ends it. Then all hosts leave at
once, as when a network fails, and come back. Both backends run at once and are loaded in turn, so
that the machine disturbs both alike; what counts is CPU, of a message and of a host that leaves.
"""

import asyncio
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.load import Load, Slice
from benchmarks.measure import Figure, figure
from benchmarks.servers import WINDOW, Server, provision, running_on
from benchmarks.wire import Worker
from cloudagent_backend.delivery import queueing, reports, sending
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import agents, hosts, users
from cloudagent_backend.store.database import connect
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import Ack, RunReport
from cloudagent_protocol.ids import AgentId, new_run_id
from cloudagent_protocol.resources import Author, Message

HOSTS = 100
HISTORY = 600
TIMES = 10
CLIENTS = 32
ROUNDS = 5
SLICE_S = 1.5
LEAVING_ROUNDS = 3
#: A server whose CPU time has not changed for so long has nothing to do.
QUIET_S = 0.5
AT_ONCE = 500
_CAP = 1_000_000
_RELAY = Relay(Limits(), _CAP)


def run() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="ca-") as name,
        _grown(Path(name) / "small", 1) as small,
        _grown(Path(name) / "large", TIMES) as large,
    ):
        slices = asyncio.run(_measure(large, small))
        leaving = asyncio.run(_leave(large)), asyncio.run(_leave(small))
    return [
        figure(
            f"CPU of a message: {TIMES * HOSTS:,} hosts, {TIMES * HISTORY:,} messages before",
            f"{HOSTS} hosts, {HISTORY} before",
            [(a.cpu_s, b.cpu_s) for a, b in slices],
            goal="<= 1.3x",
            unit="us",
            scale=1_000_000,
            max_ratio=1.3,
        ),
        figure("  POST to frame, p50", "the same", [(a.at(0.5), b.at(0.5)) for a, b in slices]),
        figure(
            f"CPU of a host that leaves, of {TIMES * HOSTS:,} at once",
            f"of {HOSTS}",
            [leaving],
            goal="<= 2x",
            unit="us",
            scale=1_000_000,
            max_ratio=2,
        ),
    ]


@contextmanager
def _grown(folder: Path, times: int) -> Generator[Server]:
    folder.mkdir()
    database = folder / "backend.db"
    token, keys, names = provision(database, HOSTS * times)
    _live_through(database, [AgentId(one) for one in names], HISTORY * times)
    with running_on(database, token, keys, names, window=WINDOW) as server:
        yield server


def _live_through(database: Path, agent_ids: list[AgentId], number: int) -> None:
    """Messages that were sent, and ended, before: with their runs and all lines of the event log."""
    connection = connect(database)
    user = users.by_email(connection, "ana@example.com")
    assert user
    author = Author(type="user", id=user.id, name=user.name)
    for start in range(0, number, AT_ONCE):
        connection.execute("BEGIN IMMEDIATE")
        for i in range(start, min(number, start + AT_ONCE)):
            agent_id = agent_ids[i % len(agent_ids)]
            submission = queueing.Submission(user.id, author, f"message {i}", agent_id)
            message = queueing.submit(connection, submission, _CAP).message
            _end(connection, message, agent_id, i // len(agent_ids) + 1)
        connection.execute("COMMIT")
    connection.close()


def _end(c: sqlite3.Connection, message: Message, agent_id: AgentId, seq: int) -> None:
    agent = agents.load_any(c, agent_id)
    host = hosts.load_any(c, agent.host_machine_id) if agent else None
    assert host
    machine = Machine.of(host)
    sending.lease(c, ReadyHost(host.id), WINDOW)
    finished = Finished(seq=1, at=datetime.now(UTC), outcome=Outcome.SILENT)
    report = RunReport(
        seq=seq,
        run_id=new_run_id(),
        agent_id=agent_id,
        conversation_id=message.conversation_id,
        delivery_ids=[one.id for one in message.deliveries],
        event=finished,
    )
    applied = reports.apply(c, machine, [Ack(seq=seq), report], _RELAY)
    assert applied.count == 2, applied.error


async def _measure(large: Server, small: Server) -> list[tuple[Slice, Slice]]:
    loads = Load(large, Worker), Load(small, Worker)
    try:
        for load in loads:
            await load.open(CLIENTS)
            await load.run(SLICE_S)
        return [(await loads[0].run(SLICE_S), await loads[1].run(SLICE_S)) for _ in range(ROUNDS)]
    finally:
        for load in loads:
            load.close()


async def _leave(server: Server) -> float:
    """CPU seconds of a host's leaving, all leaving at once and coming back, a few times over."""
    spent = 0.0
    for _ in range(LEAVING_ROUNDS):
        load = Load(server, Worker)
        await load.open(0)
        before = await _quiet(server)
        load.close()
        spent += await _quiet(server) - before
    return spent / LEAVING_ROUNDS / len(server.keys)


async def _quiet(server: Server) -> float:
    """The server's CPU seconds, once it has nothing left to do."""
    before = -1.0
    while (now := server.cpu_s) - before > 0.01:  # a tick of the clock that it is read by
        before = now
        await asyncio.sleep(QUIET_S)
    return now
