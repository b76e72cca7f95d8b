"""Memory of the backend per idle host, against uvicorn's bare connection."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, figure
from benchmarks.servers import Server, running_ours, running_reference, settled_rss
from benchmarks.wire import Host, Socket, connect_all


def run(*, whole: bool = False) -> list[Figure]:
    number = 5_000 if whole else 1_000
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        with running_ours(folder / "ours", number) as server:
            ours = asyncio.run(
                _bytes_each(server, [lambda host, key=key: Host(host, key) for key in server.keys])
            )
        with running_reference(folder / "bare", number) as server:
            bare = asyncio.run(
                _bytes_each(server, [lambda host: Socket(host, "/echo") for _ in server.keys])
            )
    return [
        figure(
            f"memory per idle host, {number:,} hosts",
            "uvicorn's bare connection",
            [(ours, bare)],
            goal="<= 1.5x",
            unit="kB",
            scale=1 / 1_000,
            max_ratio=1.5,
        )
    ]


async def _bytes_each(server: Server, makers: list[Callable[[str], Any]]) -> float:
    """What each further connection costs; the first tenth pays for what is made once."""
    few = len(makers) // 10
    sockets = await connect_all(server.url, makers[:few])
    before = await asyncio.to_thread(settled_rss, server)
    sockets += await connect_all(server.url, makers[few:])
    after = await asyncio.to_thread(settled_rss, server)
    for one in sockets:
        one.transport.abort()
    return (after - before) / (len(makers) - few)
