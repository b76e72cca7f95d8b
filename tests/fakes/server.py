"""The backend behind a real socket on a free port, in this process's event loop."""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import uvicorn
from typing_extensions import override

from cloudagent_backend.api.world import World
from cloudagent_backend.app import create_app, end_streams
from cloudagent_backend.config import Settings
from cloudagent_backend.server import uvicorn_config
from cloudagent_backend.store import agents, hosts, tokens, users
from cloudagent_backend.store.database import Database
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import (
    Agent,
    AgentCreate,
    Driver,
    HostMachineCreate,
    HostMachineWithKey,
    Message,
)


@dataclass
class Person:
    """Somebody with a token, a host and an agent on it."""

    user_id: UserId
    token: str
    host: HostMachineWithKey
    agent: Agent

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class Backend:
    url: str
    world: World
    ana: Person

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def client(self, person: Person | None = None) -> httpx2.AsyncClient:
        headers = (person or self.ana).bearer
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=10)

    async def post(self, text: str = "fix it", person: Person | None = None) -> Message:
        """Send a message to the person's agent."""
        who = person or self.ana
        async with self.client(who) as client:
            answer = await client.post(f"/v1/agents/{who.agent.id}/messages", json={"text": text})
            assert answer.status_code == 201, answer.text
            return Message.model_validate_json(answer.content)

    async def person(self, name: str) -> Person:
        return await make_person(self.world.database, name)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = anyio.Event()
        self.down = anyio.Event()

    async def run_until_down(self, listener: socket.socket) -> None:
        await self._serve([listener])
        self.down.set()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


async def make_person(database: Database, name: str) -> Person:
    user = await database.write(lambda c: users.create(c, f"{name}@example.com", name=name))
    token = await database.write(lambda c: tokens.create(c, user.id, "test"))
    body = HostMachineCreate(name=f"{name}-mbp")
    host = await database.write(lambda c: hosts.create(c, user.id, body))
    wanted = AgentCreate(name="frontend", driver=Driver.CLAUDE_CODE, host_machine_id=host.id)
    row = await database.write(lambda c: agents.create(c, user.id, wanted))
    agent = await database.read(lambda c: agents.resource(c, row))
    assert token.raw_token is not None
    return Person(user.id, token.raw_token, host, agent)


@asynccontextmanager
async def running_backend(directory: Path, **changes: Any) -> AsyncGenerator[Backend]:
    """A backend that serves, with one person; `changes` go over the default settings."""
    settings = replace(Settings(database_url=f"sqlite:///{directory / 'backend.db'}"), **changes)
    app = create_app(settings)
    server = _Server(uvicorn_config(settings, app))
    # Named as TCP, or asyncio leaves Nagle's algorithm on, and each answer waits 40 ms for an ack.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    async with anyio.create_task_group() as tg:
        tg.start_soon(server.run_until_down, listener)
        with anyio.fail_after(5):
            await server.up.wait()
        world: World = app.state.world
        port = listener.getsockname()[1]
        ana = await make_person(world.database, "ana")
        try:
            yield Backend(f"http://127.0.0.1:{port}", world, ana)
        finally:
            end_streams(world)
            server.should_exit = True
            # A test that failed cancels; the server must still close its sockets in order.
            with anyio.move_on_after(5, shield=True):
                await server.down.wait()
