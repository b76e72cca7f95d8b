"""A server that gives prepared answers, one per request: for what no well-behaved service does."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream


@dataclass
class Canned:
    """An answer; `cut` hangs up in the middle of the body."""

    body: str | bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut: bool = False


def sse(*payloads: Any, **how: Any) -> Canned:
    """A stream of events; a `str` goes as it is."""
    body = "".join(f"data: {p if isinstance(p, str) else json.dumps(p)}\n\n" for p in payloads)
    return Canned(body, headers={"content-type": "text/event-stream"}, **how)


def refusal(status: int, error: Any, **headers: str) -> Canned:
    return Canned(json.dumps({"error": error}), status, headers)


@dataclass
class CannedServer:
    url: str
    answers: list[Canned]
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            buffered = BufferedByteReceiveStream(stream)
            head = (await buffered.receive_until(b"\r\n\r\n", 65_536)).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
            body = await buffered.receive_exactly(int(headers["content-length"]))
            path = head[0].split()[1]
            self.requests.append({"path": path, "headers": headers, "body": json.loads(body)})
            answer = self.answers.pop(0)
            content = answer.body.encode() if isinstance(answer.body, str) else answer.body
            length = len(content) + (1_000 if answer.cut else 0)
            lines = {"content-length": str(length), "connection": "close", **answer.headers}
            start = f"HTTP/1.1 {answer.status} X\r\n"
            start += "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in lines.items())
            await stream.send(start.encode() + b"\r\n" + content)


@asynccontextmanager
async def canned_server(*answers: Canned) -> AsyncGenerator[CannedServer]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    server = CannedServer(f"http://127.0.0.1:{port}", list(answers))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()
