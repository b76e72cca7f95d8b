"""1,000 hosts come back after the backend was killed, without jitter: with key, hello, resume.

The reference takes the same WebSocket handshakes and answers them, and does nothing else.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.measure import Figure, rate
from benchmarks.servers import WINDOW, provision, running
from benchmarks.wire import Host, connect_all
from e2e.harness import Process

HOSTS = 1_000
ROUNDS = 3
Start = Callable[[], AbstractContextManager[tuple[str, Process]]]


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        database = folder / "backend.db"
        _, keys, _ = provision(database, HOSTS)
        pairs = [
            (
                _back(keys, lambda: running("backend_server", folder, str(database), str(WINDOW))),
                _back(keys, lambda: running("reference_server", folder, str(folder / "bare.db"))),
            )
            for _ in range(ROUNDS)
        ]
    return [
        rate(
            "hosts back after a restart", "bare handshakes", pairs, goal=">= 0.25x", min_ratio=0.25
        )
    ]


def _back(keys: list[str], start: Start) -> float:
    """Hosts a second that are back, from the moment when the server listens again."""
    with start() as (url, _):
        histories = asyncio.run(_connected(url, keys, {}))[1]
    with start() as (url, _):  # the first one was killed
        seconds, after = asyncio.run(_connected(url, keys, histories))
    assert after == histories, "a history was begun anew"
    return len(keys) / seconds


async def _connected(
    url: str, keys: list[str], histories: dict[str, str | None]
) -> tuple[float, dict[str, str | None]]:
    """Seconds until all have their welcome; and the epochs that they know then."""

    def maker(key: str) -> Callable[[str], Host]:
        def make(netloc: str) -> Host:
            host = Host(netloc, key)
            host.epoch = histories.get(key)
            return host

        return make

    began = time.perf_counter()
    hosts: list[Host] = await connect_all(url, [maker(key) for key in keys], at_once=len(keys))
    seconds = time.perf_counter() - began
    return seconds, {key: host.epoch for key, host in zip(keys, hosts, strict=True)}
