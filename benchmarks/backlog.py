"""A host comes back to a backlog: deliveries a second until it has them all.

As in real life its window is 32, so it ends each delivery (a report) to be given the next. The
reference appends the same number of rows to bare SQLite, as many a commit as the window has.
"""

import asyncio
import sqlite3
import tempfile
import time
from pathlib import Path

from typing_extensions import override

from benchmarks.delivery import commits
from benchmarks.measure import Figure, figure, rate
from benchmarks.servers import WINDOW, Server, provision, running_on, settled_rss
from benchmarks.wire import Worker, connect_all
from cloudagent_backend.delivery import queueing
from cloudagent_backend.store import users
from cloudagent_backend.store.database import connect
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import Author

MESSAGES = 10_000
DEADLINE_S = 600
AT_ONCE = 500


def run(*, whole: bool = False) -> list[Figure]:
    number = 100_000 if whole else MESSAGES
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        database = folder / "backend.db"
        token, keys, agents = provision(database, 1)
        _queue(database, AgentId(agents[0]), number)
        with running_on(database, token, keys, agents, window=WINDOW) as server:
            before = server.rss_bytes
            ours = asyncio.run(_caught_up(server, number))
            grown = settled_rss(server) - before
        bare = commits(folder / "bare.db", WINDOW)
    return [
        rate(
            f"backlog of {number:,} to one host",
            f"SQLite, {WINDOW} rows a commit",
            [(ours, bare)],
            goal=">= 0.2x",
            min_ratio=0.2,
        ),
        figure(
            "  memory that it took",
            "64 MB",
            [(grown, 64_000_000)],
            goal="<= 64 MB",
            unit="MB",
            scale=1 / 1_000_000,
            max_ratio=1,
        ),
    ]


def _queue(database: Path, agent_id: AgentId, number: int) -> None:
    """Messages for a host that is not here."""
    connection = connect(database)
    user = users.by_email(connection, "ana@example.com")
    assert user
    author = Author(type="user", id=user.id, name=user.name)
    for start in range(0, number, AT_ONCE):
        connection.execute("BEGIN IMMEDIATE")
        for i in range(start, min(number, start + AT_ONCE)):
            _submit(connection, queueing.Submission(user.id, author, f"message {i}", agent_id))
        connection.execute("COMMIT")
    connection.close()


def _submit(connection: sqlite3.Connection, submission: queueing.Submission) -> None:
    queueing.submit(connection, submission, 1_000_000)


class _Worker(Worker):
    def __init__(self, host: str, key: str, number: int) -> None:
        super().__init__(host, key)
        self._number = number
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @override
    def on_ack(self, seq: int) -> None:
        if seq >= self._number and not self.done.done():
            self.done.set_result(None)  # the last report is on the backend's disk

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.done.done():
            self.done.set_exception(ConnectionError("the backend closed the host's connection"))


async def _caught_up(server: Server, number: int) -> float:
    [key] = server.keys
    began = time.perf_counter()
    [host] = await connect_all(server.url, [lambda netloc: _Worker(netloc, key, number)])
    async with asyncio.timeout(DEADLINE_S):
        await host.done
    seconds = time.perf_counter() - began
    host.transport.abort()
    return number / seconds
