"""A closed loop of clients: POST, the 201, the frame at the host; then the next message."""

import asyncio
import itertools
import time
from dataclasses import dataclass

from benchmarks.servers import Server
from benchmarks.wire import DEADLINE_S, Host, Json, Poster, connect, connect_all


@dataclass(frozen=True)
class Slice:
    """What one stretch of load showed. `seconds` are of POST to frame, sorted."""

    rate: float
    cpu_s: float
    seconds: list[float]

    def at(self, share: float) -> float:
        """The time below which this share of the messages stayed."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


class Load:
    """The hosts and clients of one server. Leave it with `close`."""

    def __init__(self, server: Server, host: type[Host] = Host) -> None:
        self._server = server
        self._host = host
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._numbers = itertools.count()
        self.hosts: list[Host] = []
        self._posters: list[Poster] = []

    async def open(self, clients: int) -> None:
        self.hosts = await connect_all(
            self._server.url,
            [
                lambda netloc, key=key: self._host(netloc, key, self._received)
                for key in self._server.keys
            ],
        )
        self._posters = [
            await connect(self._server.url, lambda host: Poster(host, self._server.token))
            for _ in range(clients)
        ]

    def close(self) -> None:
        for one in (*self.hosts, *self._posters):
            one.transport.abort()

    async def run(self, seconds: float) -> Slice:
        """All clients at once, for so long."""
        taken: list[float] = []
        began, cpu = time.perf_counter(), self._server.cpu_s
        async with asyncio.timeout(seconds + DEADLINE_S), asyncio.TaskGroup() as group:
            for poster in self._posters:
                group.create_task(self._client(poster, began + seconds, taken))
        elapsed = time.perf_counter() - began
        return Slice(len(taken) / elapsed, (self._server.cpu_s - cpu) / len(taken), sorted(taken))

    async def one(self, poster: Poster | None = None) -> float:
        """Seconds from one POST to its frame at the host; returns after the 201 too."""
        number = next(self._numbers)
        name = f"m{number}"
        arrival = self._waiting[name] = asyncio.get_running_loop().create_future()
        agent = self._server.agents[number * 7919 % len(self._server.agents)]
        began = time.perf_counter()
        poster = poster or self._posters[0]
        await poster.post(f"/v1/agents/{agent}/messages", {"text": name})
        return await arrival - began

    async def _client(self, poster: Poster, until: float, taken: list[float]) -> None:
        while time.perf_counter() < until:
            taken.append(await self.one(poster))

    def _received(self, frame: Json) -> None:
        if future := self._waiting.pop(frame["message"]["text"], None):
            future.set_result(time.perf_counter())


async def open_loads(ours: Server, bare: Server, clients: int) -> tuple[Load, Load]:
    pair = Load(ours), Load(bare)
    for load in pair:
        await load.open(clients)
    return pair
