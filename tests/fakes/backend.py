"""A scripted backend: real HTTP and WebSocket on loopback, and the far end of the link.

It keeps what a backend keeps (an epoch, an outbox, what the daemon reported) across connections,
and does to the connection whatever a test asks::

    async with scripted_backend() as backend:
        backend.deliver(text="hello")
        connection = await backend.connected()
        report = await backend.reported(RunReport)
        await connection.close(4409)

By hand: `python tests/fakes/backend.py` prints a URL and a key, delivers each line of its standard
input to an agent with the driver `scripted`, and prints what the daemon says.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import (
    MAX_FRAME_BYTES,
    Ack,
    Answer,
    Deliver,
    DeliveredMessage,
    Frame,
    Heartbeat,
    Hello,
    Interrupt,
    Numbered,
    Query,
    Welcome,
    decode,
    encode,
)
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    DeliveryId,
    new_conversation_id,
    new_delivery_id,
    new_epoch,
    new_host_id,
    new_message_id,
)
from cloudagent_protocol.link import Fresh, Link, resume
from cloudagent_protocol.resources import AgentRef, AgentSpec, Author

KEY = "sk_machine_" + "k" * 40 + "000000"
WAIT_S = 30.0
F = TypeVar("F")


class HostConnection:
    """One connection of the daemon, from its welcome on."""

    def __init__(self, websocket: ServerConnection, hello: Hello, link: Link) -> None:
        self.websocket = websocket
        self.hello = hello
        self.link = link
        self.close_code: int | None = None
        self.closed = anyio.Event()

    async def close(self, code: int, reason: str = "") -> None:
        await self.websocket.close(code, reason)

    def cut(self) -> None:
        """As when a cable is pulled: no close frame."""
        self.websocket.transport.abort()

    async def say(self, text: str) -> None:
        """Sends any text, however wrong."""
        await self.websocket.send(text)


#: What needs no key.
_OPEN: dict[str, dict[str, Any]] = {
    "/healthz": {"status": "ok"},
    "/v1/version": {"version": "0", "protocol": [1], "minimum_daemon_version": "0"},
}


class ScriptedBackend:
    def __init__(self) -> None:
        self.url = ""
        #: The machine key that it accepts.
        self.key = KEY
        self.host_id = new_host_id()
        self.epoch = new_epoch()
        self.agent = AgentSpec(id=AgentId("agent_1"), name="Ada", driver="scripted")
        self.heartbeat_s, self.silence_s, self.lease_s = 15.0, 25.0, 30.0
        #: The code of the problem that another key gets.
        self.rejection = "unauthorized"
        #: Answers instead of an upgrade: status, content type, body.
        self.refusal: tuple[int, str, str] | None = None
        #: Changes the welcome before it is sent.
        self.edit_welcome: Callable[[Welcome], Welcome] = lambda welcome: welcome
        #: Whether numbered frames of the daemon are acknowledged, and frames sent at all.
        self.acks = True
        self.silent = False
        self.outbox: list[Numbered] = []
        self.acked = 0
        self.accepted = 0
        #: What the daemon said, numbered frames once, in order of arrival.
        self.frames: list[Frame] = []
        #: Numbered frames that came again.
        self.repeats = 0
        self.connections: list[HostConnection] = []
        self.attempts = 0
        self.headers: list[dict[str, str]] = []
        self.messages: list[dict[str, Any]] = []
        self._delivery_seq = 0
        self._news = anyio.Event()

    # --- what tests do ---

    def deliver(
        self,
        text: str = "hello",
        *,
        conversation: ConversationId | None = None,
        agent: AgentSpec | None = None,
        delivery_id: DeliveryId | None = None,
    ) -> Deliver:
        self._delivery_seq += 1
        message = DeliveredMessage(
            id=new_message_id(),
            conversation_id=conversation or new_conversation_id(),
            author=Author(type="user", id="usr_1", name="Ana"),
            text=text,
            created_at=datetime.now(UTC),
        )
        frame = Deliver(
            delivery_id=delivery_id or new_delivery_id(),
            delivery_seq=self._delivery_seq,
            agent=agent or self.agent,
            message=message,
        )
        self.put(frame)
        return frame

    def interrupt(self, delivery: Deliver, actor: str = "Ana") -> None:
        self.put(Interrupt(delivery_id=delivery.delivery_id, actor=actor))

    def put(self, frame: Numbered) -> None:
        frame.seq = len(self.outbox) + 1
        self.outbox.append(frame)
        self._notify()

    def restore_from_backup(self) -> None:
        """Another epoch: nothing of the old numbers counts."""
        self.epoch = new_epoch()
        self.outbox, self.acked, self.accepted = [], 0, 0

    async def connected(self, number: int = 1) -> HostConnection:
        """The daemon's connection of that number, counted from 1."""
        await self.until(lambda: len(self.connections) >= number)
        return self.connections[number - 1]

    async def reported(self, kind: type[F], count: int = 1) -> F:
        """The frame of this type that came as number `count`."""
        await self.until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    def all(self, kind: type[F]) -> list[F]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(WAIT_S):
            while not holds():
                await self._news.wait()

    # --- the wire ---

    async def serve(self, websocket: ServerConnection) -> None:
        try:
            connection = await self._welcome(websocket)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, connection)
                tasks.start_soon(self._beat, connection)
                await self._read(connection)
                tasks.cancel_scope.cancel()
        except* ConnectionClosed:
            pass
        finally:
            for connection in self.connections:
                if connection.websocket is websocket:
                    connection.close_code = websocket.close_code
                    connection.closed.set()
            self._notify()

    def answer_http(self, websocket: ServerConnection, request: Request) -> Response | None:
        self.attempts += 1
        self.headers.append(dict(request.headers.raw_items()))
        self._notify()
        if self.refusal:
            return _response(websocket, *self.refusal)
        if request.path in _OPEN:
            return _response(websocket, 200, "application/json", json.dumps(_OPEN[request.path]))
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            body = json.dumps({"detail": "no such key", "code": self.rejection})
            return _response(websocket, 401, "application/problem+json", body)
        if request.path == "/v1/daemon/host":
            body = json.dumps({"id": self.host_id, "name": "mbp", "state": "offline"})
            return _response(websocket, 200, "application/json", body)
        return None

    async def _welcome(self, websocket: ServerConnection) -> HostConnection:
        hello = decode(await websocket.recv())
        assert isinstance(hello, Hello), hello
        if hello.epoch != self.epoch:
            self._begin_anew(hello)
        try:
            self.acked = resume(
                outbox_acked=self.acked, outbox_last=len(self.outbox), peer_has=hello.last_seq
            )
        except ProtocolError:
            self._begin_anew(hello)
        welcome = self.edit_welcome(
            Welcome(
                protocol=1,
                session_id="s1",
                epoch=self.epoch,
                host_id=self.host_id,
                heartbeat_s=self.heartbeat_s,
                silence_s=self.silence_s,
                lease_s=self.lease_s,
                last_seq=self.accepted,
                window=32,
                agents=[AgentRef.model_validate(self.agent.model_dump())],
            )
        )
        await websocket.send(encode(welcome))
        link = Link(
            accepted=self.accepted,
            acked=self.acked,
            now=time.monotonic(),
            heartbeat_s=self.heartbeat_s,
            silence_s=self.silence_s,
        )
        connection = HostConnection(websocket, hello, link)
        self.connections.append(connection)
        self._notify()
        return connection

    def _begin_anew(self, hello: Hello) -> None:
        self.epoch = new_epoch()
        self.acked = self.accepted = 0
        held = set(hello.unfinished)
        kept = [f for f in self.outbox if isinstance(f, Deliver) and f.delivery_id not in held]
        self.outbox = []
        for frame in kept:
            self.put(frame)

    async def _send(self, connection: HostConnection) -> None:
        while True:
            news = self._news
            while not self.silent and connection.link.sent < len(self.outbox):
                frame = self.outbox[connection.link.sent]
                connection.link.stamp(frame.seq, time.monotonic())
                await connection.websocket.send(encode(frame))
            await news.wait()

    async def _beat(self, connection: HostConnection) -> None:
        while True:
            await anyio.sleep(self.heartbeat_s)
            if not self.silent:
                await connection.websocket.send(encode(Heartbeat()))

    async def _read(self, connection: HostConnection) -> None:
        while True:
            frame = decode(await connection.websocket.recv())
            connection.link.heard(time.monotonic())
            match frame:
                case Ack(seq=seq):
                    connection.link.on_ack(seq)
                    self.acked = max(self.acked, seq)
                case Numbered(seq=seq):
                    await self._accept(connection, frame, seq)
                case Query():
                    data = {"messages": self.messages}
                    await connection.websocket.send(encode(Answer(id=frame.id, data=data)))
                case _:
                    self.frames.append(frame)
            self._notify()

    async def _accept(self, connection: HostConnection, frame: Frame, seq: int) -> None:
        match connection.link.receive(seq):
            case Fresh():
                self.frames.append(frame)
            case _:
                self.repeats += 1
        if self.acks:
            self.accepted = connection.link.accept(seq)
            await connection.websocket.send(encode(Ack(seq=self.accepted)))

    def _notify(self) -> None:
        self._news.set()
        self._news = anyio.Event()


@asynccontextmanager
async def scripted_backend(
    backend: ScriptedBackend | None = None, port: int = 0
) -> AsyncGenerator[ScriptedBackend]:
    backend = backend or ScriptedBackend()
    async with serve(
        backend.serve,
        "127.0.0.1",
        port,
        process_request=backend.answer_http,
        compression=None,
        max_size=MAX_FRAME_BYTES,
        ping_interval=None,
        close_timeout=1,
    ) as server:
        backend.url = f"http://127.0.0.1:{_port(server)}"
        yield backend


def _port(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def _response(websocket: ServerConnection, status: int, kind: str, body: str) -> Response:
    response = websocket.respond(HTTPStatus(status), body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


async def _by_hand() -> None:
    async with scripted_backend() as backend:
        print(f"cloudagent-daemon start --server-url {backend.url} --api-key {KEY}", flush=True)
        conversation = new_conversation_id()
        seen = 0
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        async with anyio.create_task_group() as tasks:

            async def deliver() -> None:
                while line := await reader.readline():
                    backend.deliver(line.decode().rstrip("\n"), conversation=conversation)

            tasks.start_soon(deliver)
            while True:
                news = backend._news
                for frame in backend.frames[seen:]:
                    print(frame.model_dump_json(exclude_none=True), flush=True)
                seen = len(backend.frames)
                await news.wait()


if __name__ == "__main__":
    anyio.run(_by_hand)
