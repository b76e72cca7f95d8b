"""Durable POST → push → ack: messages a second, time from POST to frame, CPU of the server.

A closed loop: each client waits for its 201 and for the frame at the host before the next message.
The reference is the bare prototype under the very same load, in turn; beside it what the machine
gives at all: its disk, SQLite's group commit, a WebSocket echo.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import override

from benchmarks.load import Slice, open_loads
from benchmarks.measure import Figure, figure, rate
from benchmarks.reference_server import open_bare
from benchmarks.servers import Server, running, running_ours, running_reference
from benchmarks.wire import Socket, connect_all

HOSTS = (1, 64, 1_000)
CLIENTS = (1, 64)
GOAL_AT = "clients 64, hosts 1,000"
ROUNDS = 3
SLICE_S = 1.5
MACHINE_S = 1.0
ROW = b"x" * 300


def run() -> list[Figure]:
    figures: list[Figure] = []
    best = 0.0
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        for hosts in HOSTS:
            folder = Path(name) / str(hosts)
            folder.mkdir()
            with (
                running_ours(folder / "ours", hosts) as ours,
                running_reference(folder / "bare", hosts) as bare,
            ):
                for clients in CLIENTS:
                    slices = asyncio.run(_measure(ours, bare, clients))
                    best = sorted(one.rate for one, _ in slices)[ROUNDS // 2]
                    figures += _figures(f"clients {clients}, hosts {hosts:,}", slices)
        figures += _of_the_machine(Path(name), best)
    return figures


async def _measure(ours: Server, bare: Server, clients: int) -> list[tuple[Slice, Slice]]:
    loads = await open_loads(ours, bare, clients)
    try:
        for load in loads:
            await load.run(SLICE_S / 3)
        return [(await loads[0].run(SLICE_S), await loads[1].run(SLICE_S)) for _ in range(ROUNDS)]
    finally:
        for load in loads:
            load.close()


def _figures(what: str, slices: list[tuple[Slice, Slice]]) -> list[Figure]:
    def pairs(of: Callable[[Slice], float]) -> list[tuple[float, float]]:
        return [(of(a), of(b)) for a, b in slices]

    counts = what == GOAL_AT
    return [
        rate(
            f"delivery, {what}",
            "bare prototype",
            pairs(lambda one: one.rate),
            goal=">= 0.7x" if counts else "",
            min_ratio=0.7 if counts else None,
        ),
        figure("  POST to frame, p50", "bare prototype", pairs(lambda one: one.at(0.5))),
        figure("  POST to frame, p99", "bare prototype", pairs(lambda one: one.at(0.99))),
        figure(
            "  p99",
            "its own p50",
            [(one.at(0.99), one.at(0.5)) for one, _ in slices],
            goal="<= 4x" if counts else "",
            max_ratio=4 if counts else None,
        ),
        figure(
            "  CPU of a message",
            "bare prototype",
            pairs(lambda one: one.cpu_s),
            unit="us",
            scale=1_000_000,
        ),
    ]


# --- what the machine gives -----------------------------------------------------------


def _of_the_machine(folder: Path, ours: float) -> list[Figure]:
    with running("reference_server", folder, str(folder / "echo.db")) as (url, _):
        echoes = asyncio.run(_echoes(url))
    name = f"delivery, {GOAL_AT}"
    return [
        rate(name, "append + fdatasync", [(ours, _syncs(folder / "file"))]),
        rate(name, "SQLite, 64 rows a commit", [(ours, commits(folder / "rows.db", 64))]),
        rate(name, "uvicorn WebSocket echo", [(ours, echoes)]),
    ]


def _syncs(path: Path) -> float:
    """Appends of a row a second, each on the disk."""
    done, until = 0, time.perf_counter() + MACHINE_S
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    while time.perf_counter() < until:
        os.write(file, ROW)
        os.fdatasync(file)
        done += 1
    os.close(file)
    return done / MACHINE_S


def commits(path: Path, batch: int, row: str = ROW.decode()) -> float:
    """Rows a second that bare SQLite takes, so many a commit, each with this text."""
    connection = open_bare(str(path))
    done, until = 0, time.perf_counter() + MACHINE_S
    while time.perf_counter() < until:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(done, done + batch):
            connection.execute("INSERT INTO messages VALUES ('host', ?, ?)", (number, row))
        connection.execute("COMMIT")
        done += batch
    connection.close()
    return done / MACHINE_S


class _Echo(Socket):
    """Says something again as soon as it comes back."""

    def __init__(self, host: str) -> None:
        super().__init__(host, "/echo")
        self.echoes = 0
        self._text = json.dumps({"text": ROW.decode()})

    @override
    def on_open(self) -> None:
        super().on_open()
        self.send(self._text)

    @override
    def on_text(self, text: bytes) -> None:
        self.echoes += 1
        self.send(self._text)


async def _echoes(url: str) -> float:
    makers: list[Callable[[str], Any]] = [_Echo] * 64
    sockets: list[_Echo] = await connect_all(url, makers)
    before = sum(one.echoes for one in sockets)
    await asyncio.sleep(MACHINE_S)
    done = sum(one.echoes for one in sockets) - before
    for one in sockets:
        one.transport.abort()
    return done / MACHINE_S
