"""The two servers that a load is put on, each a process of its own, with as many hosts as wanted."""

import sqlite3
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cloudagent_backend.store import agents, hosts, tokens, users
from cloudagent_backend.store.database import connect, migrate
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import AgentCreate, Driver, HostMachineCreate
from e2e.harness import Process, clean_environment

ROOT = Path(__file__).parent.parent
WINDOW = 32


@dataclass
class Server:
    """A server that runs, and what its clients need.

    Attributes:
        keys: one per host.
        agents: the agent of each host.
    """

    url: str
    token: str
    keys: list[str]
    agents: list[str]
    process: Process

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.process.popen.pid).cpu_times()
        return times.user + times.system

    @property
    def rss_bytes(self) -> int:
        return psutil.Process(self.process.popen.pid).memory_info().rss


@contextmanager
def running(module: str, folder: Path, *args: str) -> Generator[tuple[str, Process]]:
    """A server's process and its URL; ended by its pid."""
    argv = [sys.executable, "-m", f"benchmarks.{module}", *args]
    env = clean_environment(folder, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore")
    process = Process(argv, env=env, cwd=folder)
    try:
        yield process.wait_for_line("Listening on ").rpartition(" ")[2], process
    finally:
        process.kill()


@contextmanager
def running_model(folder: Path) -> Generator[str]:
    """The scripted model: its URL. Beside us it would wait for the interpreter whenever we read what came."""
    argv = [sys.executable, "-m", "fakes.model"]
    env = clean_environment(folder, PYTHONPATH=str(ROOT / "tests"))
    process = Process(argv, env=env, cwd=folder)
    try:
        yield process.wait_for_line("http://")
    finally:
        process.kill()


@contextmanager
def running_reference(folder: Path, number: int) -> Generator[Server]:
    """The bare prototype; anybody may come."""
    names = [f"host{i}" for i in range(number)]
    folder.mkdir()
    with running("reference_server", folder, str(folder / "reference.db")) as (url, process):
        yield Server(url, "anyone", names, names, process)


@contextmanager
def running_ours(folder: Path, number: int) -> Generator[Server]:
    """The backend, with one person who has so many hosts, whose windows are never full."""
    folder.mkdir()
    database = folder / "backend.db"
    with running_on(database, *provision(database, number), window=1_000_000) as server:
        yield server


@contextmanager
def running_on(
    database: Path, token: str, keys: list[str], agents: list[str], *, window: int
) -> Generator[Server]:
    """The backend on a database that was provisioned."""
    args = str(database), str(window)
    with running("backend_server", database.parent, *args) as (url, process):
        yield Server(url, token, keys, agents, process)


def provision(database: Path, number: int) -> tuple[str, list[str], list[str]]:
    """A person with hosts, an agent on each: the token, the keys, the agents."""
    migrate(database)
    connection = connect(database)
    connection.execute("BEGIN IMMEDIATE")
    user = users.create(connection, "ana@example.com", name="ana")
    token = tokens.create(connection, user.id, "bench").raw_token or ""
    made = [_host(connection, user.id, i) for i in range(number)]
    connection.execute("COMMIT")
    connection.close()
    return token, [key for key, _ in made], [agent for _, agent in made]


def _host(connection: sqlite3.Connection, user_id: UserId, number: int) -> tuple[str, str]:
    host = hosts.create(connection, user_id, HostMachineCreate(name=f"host{number}"))
    body = AgentCreate(name=f"agent{number}", driver=Driver.CLAUDE_CODE, host_machine_id=host.id)
    return host.raw_key, agents.create(connection, user_id, body).id


def settled_rss(server: Server) -> int:
    """Its memory once it has stopped to change by more than 1 % in half a second."""
    before = server.rss_bytes
    while True:
        time.sleep(0.5)
        now = server.rss_bytes
        if abs(now - before) < before / 100:
            return now
        before = now
