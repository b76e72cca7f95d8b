"""The load's ends of the wire, lean enough not to be what is measured: HTTP/1.1 and RFC 6455 by hand.

Only what our servers send is understood: answers with a Content-Length, unfragmented text frames.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import override

from cloudagent_protocol.ids import new_run_id

Json = dict[str, Any]
DEADLINE_S = 60.0


class Poster(asyncio.Protocol):
    """One connection of a client, one request at a time."""

    def __init__(self, host: str, token: str) -> None:
        self._head = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"
        self._buffer = b""
        self._answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and not self._answer.done():
            self._buffer = b""
            self._answer.set_result(int(head[9:12]))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed a client's connection"))

    async def post(self, path: str, body: Json) -> None:
        """Raises AssertionError if it is not made."""
        data = json.dumps(body)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n{data}".encode()
        )
        status = await self._answer
        assert status == 201, status


class Socket(asyncio.Protocol):
    """A WebSocket of a client's; what comes in goes to `on_text`, after the upgrade to `on_open`."""

    def __init__(self, host: str, path: str, key: str = "") -> None:
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Authorization: Bearer {key}\r\n\r\n"
        ).encode()
        self._buffer = b""
        self._open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_open(self) -> None:
        self.ready.set_result(None)

    def on_text(self, text: bytes) -> None: ...

    def on_batch(self) -> None:
        """All frames of what was read at once were given to `on_text`."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                self.transport.abort()
                self.ready.set_exception(ConnectionError(head.decode()))
                return
            self._buffer, self._open = rest, True
            self.on_open()
        at = 0
        while (frame := _frame(self._buffer, at)) is not None:
            opcode, text, at = frame
            if opcode == 1:
                self.on_text(text)
        self._buffer = self._buffer[at:]
        self.on_batch()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed before it was ready"))

    def send(self, text: str) -> None:
        data = text.encode()
        # Masked with zeros: a valid mask, and no work.
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
        self.transport.write(b"\x81" + size + b"\0\0\0\0" + data)


def _frame(buffer: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Opcode and payload of the frame at an offset, and where the next begins; null: incomplete."""
    if len(buffer) < at + 2:
        return None
    size, start = buffer[at + 1], at + 2
    if size >= 126:
        start += 2 if size == 126 else 8
        size = int.from_bytes(buffer[at + 2 : start])
    if len(buffer) < start + size:
        return None
    return buffer[at] & 15, buffer[start : start + size], start + size


class Host(Socket):
    """A fake host: says hello, acknowledges what comes, gives it to `received`; runs nothing."""

    def __init__(self, host: str, key: str, received: Callable[[Json], None] | None = None) -> None:
        super().__init__(host, "/v1/daemon/ws", key)
        self._received = received
        self._unacked = 0
        #: What a daemon keeps on its disk.
        self.epoch: str | None = None
        self.last_seq = 0

    @override
    def on_open(self) -> None:
        hello: Json = {
            "type": "hello",
            "protocol": [1],
            "daemon_version": "0",
            "instance_id": "in_1",
            "profile": "bench",
            "os": "linux",
            "hostname": "bench",
            "epoch": self.epoch,
            "last_seq": self.last_seq,
        }
        self.send(json.dumps(hello))

    @override
    def on_text(self, text: bytes) -> None:
        frame: Json = json.loads(text)
        if frame["type"] == "deliver":
            self._unacked = self.last_seq = frame["seq"]
            self.on_deliver(frame)
        elif frame["type"] == "ack":
            self.on_ack(frame["seq"])
        elif frame["type"] == "heartbeat":  # a host that is silent for 26 s is given up
            self.send('{"type": "heartbeat"}')
        elif frame["type"] == "welcome":
            self.epoch = frame["epoch"]
            self.ready.set_result(None)

    def on_deliver(self, frame: Json) -> None:
        if self._received:
            self._received(frame)

    def on_ack(self, seq: int) -> None:
        """The server has our frames up to this number on its disk."""

    @override
    def on_batch(self) -> None:
        if self._unacked:
            self.send(f'{{"type": "ack", "seq": {self._unacked}}}')
            self._unacked = 0


class Worker(Host):
    """A fake host that ends each delivery as soon as it has it, without a word."""

    def __init__(self, host: str, key: str, received: Callable[[Json], None] | None = None) -> None:
        super().__init__(host, key, received)
        self._reported = 0

    @override
    def on_deliver(self, frame: Json) -> None:
        super().on_deliver(frame)
        self._reported += 1
        finished = {
            "type": "finished",
            "seq": 1,
            "at": datetime.now(UTC).isoformat(),
            "outcome": "silent",
        }
        report = {
            "type": "run_report",
            "seq": self._reported,
            "run_id": new_run_id(),
            "agent_id": frame["agent"]["id"],
            "conversation_id": frame["message"]["conversation_id"],
            "delivery_ids": [frame["delivery_id"]],
            "event": finished,
        }
        self.send(json.dumps(report))


async def connect(url: str, make: Callable[[str], Any]) -> Any:
    """A connection with the protocol that `make` makes of the server's `host:port`."""
    netloc = urlsplit(url).netloc
    host, _, port = netloc.rpartition(":")
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: make(netloc), host, int(port))
    return protocol


async def connect_all(url: str, makers: list[Callable[[str], Any]], at_once: int = 64) -> list[Any]:
    """All of them, ready; so many handshakes at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(make: Callable[[str], Any]) -> Any:
        async with gate:
            protocol = await connect(url, make)
            await protocol.ready
            return protocol

    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*(one(make) for make in makers))
