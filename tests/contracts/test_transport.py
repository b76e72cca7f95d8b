"""What every `Transport` promises; run for each implementation."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import anyio
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response

from cloudagent_daemon.link.transport import KeyRejectedError, LinkClosedError, Transport
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_protocol.errors import ProtocolError
from fakes.memory_transport import MemoryTransport


class FarEnd(Protocol):
    async def send(self, text: str | bytes) -> None: ...
    async def receive(self) -> str: ...
    async def close(self, code: int, reason: str) -> None: ...


@dataclass
class World:
    transport: Transport
    accept: Callable[[], Any]
    refuse: Callable[[], None]


class _WebSocketEnd:
    def __init__(self, websocket: ServerConnection) -> None:
        self._websocket = websocket

    async def send(self, text: str | bytes) -> None:
        await self._websocket.send(text)

    async def receive(self) -> str:
        try:
            return str(await self._websocket.recv())
        except ConnectionClosed as error:
            close = self._websocket.protocol.close_rcvd
            raise LinkClosedError(
                close.code if close else 1006, close.reason if close else ""
            ) from error

    async def close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)


@asynccontextmanager
async def over_websocket() -> AsyncGenerator[World]:
    put, take = anyio.create_memory_object_stream[FarEnd](10)
    refusing = anyio.Event()

    async def serve_one(websocket: ServerConnection) -> None:
        await put.send(_WebSocketEnd(websocket))
        await websocket.wait_closed()

    def check(websocket: ServerConnection, _: Any) -> Any:
        return _refusal(websocket) if refusing.is_set() else None

    with put, take:
        async with serve(
            serve_one, "127.0.0.1", 0, process_request=check, compression=None
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            transport = WebSocketTransport(Way(f"http://127.0.0.1:{port}"), always("sk_machine_x"))
            yield World(transport, take.receive, refusing.set)


def _refusal(websocket: ServerConnection) -> Response:
    response = websocket.respond(HTTPStatus.UNAUTHORIZED, '{"detail": "no"}')
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/problem+json"
    return response


@asynccontextmanager
async def in_memory() -> AsyncGenerator[World]:
    transport = MemoryTransport()

    def refuse() -> None:
        transport.refusal = KeyRejectedError("401")

    try:
        yield World(transport, transport.accept, refuse)
    finally:
        transport.close()


@pytest.fixture(params=[over_websocket, in_memory])
def world(request: pytest.FixtureRequest) -> Callable[[], AbstractAsyncContextManager[World]]:
    return request.param


Worlds = Callable[[], AbstractAsyncContextManager[World]]


async def test_texts_arrive_whole_and_in_order_both_ways(world: Worlds) -> None:
    async with world() as w, w.transport.connect() as near:
        far: FarEnd = await w.accept()
        with anyio.fail_after(5):
            await near.send("one")
            await near.send("zwei ✓")
            assert [await far.receive(), await far.receive()] == ["one", "zwei ✓"]
            await far.send("back")
            assert await near.receive() == "back"


async def test_the_other_ends_close_is_told_with_its_code_and_reason(world: Worlds) -> None:
    async with world() as w, w.transport.connect() as near:
        far: FarEnd = await w.accept()
        with anyio.fail_after(5):
            await far.close(4409, "superseded")
            with pytest.raises(LinkClosedError) as closed:
                await near.receive()
            assert (closed.value.code, closed.value.reason) == (4409, "superseded")
            with pytest.raises(LinkClosedError):
                await near.send("too late")


async def test_our_close_is_told_to_the_other_end(world: Worlds) -> None:
    async with world() as w, w.transport.connect() as near:
        far: FarEnd = await w.accept()
        with anyio.fail_after(5):
            await near.close(4400, "bad frame")
            with pytest.raises(LinkClosedError) as closed:
                await far.receive()
            assert (closed.value.code, closed.value.reason) == (4400, "bad frame")


async def test_leaving_the_context_ends_the_connection(world: Worlds) -> None:
    async with world() as w:
        async with w.transport.connect():
            far: FarEnd = await w.accept()
        with anyio.fail_after(5), pytest.raises(LinkClosedError) as closed:
            await far.receive()
        assert closed.value.code == 1001


async def test_a_binary_message_breaks_the_protocol(world: Worlds) -> None:
    async with world() as w, w.transport.connect() as near:
        far: FarEnd = await w.accept()
        with anyio.fail_after(5):
            await far.send(b"\x00")
            with pytest.raises(ProtocolError, match="binary"):
                await near.receive()


async def test_a_refused_key_is_told_apart(world: Worlds) -> None:
    async with world() as w:
        w.refuse()
        with anyio.fail_after(5), pytest.raises(KeyRejectedError):
            async with w.transport.connect():
                pass
