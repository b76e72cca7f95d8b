"""A scripted daemon: a real WebSocket to the backend, and frames as the test wants them."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cloudagent_protocol.frames import Ack, Deliver, Heartbeat, Welcome, decode
from fakes.desk import hello

T = TypeVar("T")


class ScriptedDaemon:
    """One connection, after its handshake."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: Welcome | None = None
        #: The last own number, and what the backend has acknowledged.
        self.seq = 0
        self.acked = 0

    async def greet(self, **fields: Any) -> Welcome:
        await self.socket.send(hello(**fields).model_dump_json())
        self.welcome = await self.expect(Welcome)
        self.seq = self.acked = self.welcome.last_seq
        return self.welcome

    async def receive(self) -> Any:
        """The next frame but heartbeats; acks are noted as they pass."""
        with anyio.fail_after(5):
            while True:
                frame = decode(await self.socket.recv())
                if isinstance(frame, Ack):
                    self.acked = frame.seq
                if not isinstance(frame, Heartbeat):
                    return frame

    async def expect(self, kind: type[T]) -> T:
        """The next frame of this kind; acks before it are noted."""
        while True:
            frame = await self.receive()
            if isinstance(frame, kind):
                return frame
            assert isinstance(frame, Ack), f"expected {kind.__name__}, got {frame}"

    async def deliver(self) -> Deliver:
        """The next delivery, acknowledged."""
        frame = await self.expect(Deliver)
        await self.socket.send(Ack(seq=frame.seq).model_dump_json())
        return frame

    async def send(self, *frames: BaseModel) -> None:
        """Passing frames as they are, numbered ones with the next number."""
        for frame in frames:
            if "seq" in type(frame).model_fields and not isinstance(frame, Ack):
                self.seq += 1
                frame = frame.model_copy(update={"seq": self.seq})
            await self.socket.send(frame.model_dump_json())

    async def settle(self) -> None:
        """Until everything sent is acknowledged."""
        while self.acked < self.seq:
            await self.expect(Ack)

    async def send_raw(self, data: Any) -> None:
        text = data if isinstance(data, str | bytes) else json.dumps(data)
        await self.socket.send(text)

    async def closed(self) -> int:
        """The code with which the backend closes; acks before it are noted."""
        with anyio.fail_after(5):
            while True:
                try:
                    if isinstance(frame := decode(await self.socket.recv()), Ack):
                        self.acked = frame.seq
                except ConnectionClosed as error:
                    return error.rcvd.code if error.rcvd else 1006


@asynccontextmanager
async def connection(socket_url: str, key: str, **more: Any) -> AsyncGenerator[ScriptedDaemon]:
    headers = {"Authorization": f"Bearer {key}"} | more.pop("headers", {})
    async with connect(
        f"{socket_url}/v1/daemon/ws",
        additional_headers=headers,
        compression=None,
        max_size=None,
        close_timeout=1,
        **more,
    ) as socket:
        yield ScriptedDaemon(socket)
