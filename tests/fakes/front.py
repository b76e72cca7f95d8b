"""What may stand before a backend: TLS, a proxy, a network's login page. It notes all that it hears."""

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio

_Streams = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Front:
    """A listener on loopback; `heard` is all that its clients said, decrypted where it can be."""

    port: int = 0
    heard: bytearray = field(default_factory=bytearray)
    #: Connections whose TLS handshake was completed, or that need none.
    connections: int = 0
    #: Of a proxy: where it was asked to connect to, and with which credentials.
    targets: list[str] = field(default_factory=list[str])
    credentials: list[str] = field(default_factory=list[str])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def tls_front(
    context: ssl.SSLContext, backend_port: int, *, port: int = 0
) -> AsyncGenerator[Front]:
    """Ends TLS before a backend, as a reverse proxy does, or as somebody in the middle."""
    front = Front(port)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front.connections += 1
        await _relay(front, reader, writer, "127.0.0.1", backend_port)

    async with _listening(front, serve, context):
        yield front


@asynccontextmanager
async def page_front(
    page: str, context: ssl.SSLContext | None = None, *, status: str = "200 OK", more: str = ""
) -> AsyncGenerator[Front]:
    """Answers everything with a web page, as a network that wants a login does."""
    front = Front()
    body = page.encode()
    kind = f"Content-Type: text/html\r\nContent-Length: {len(body)}"
    head = f"HTTP/1.1 {status}\r\n{more}{kind}\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front.connections += 1
        front.heard += await _head(reader)
        writer.write(head.encode() + body)

    async with _listening(front, serve, context):
        yield front


@asynccontextmanager
async def connect_proxy(
    *,
    user: str | None = None,
    password: str = "",
    detour: int | None = None,
    refusal: str | None = None,
) -> AsyncGenerator[Front]:
    """A proxy that takes CONNECT (RFC 9110 §9.3.6).

    Args:
        user, password: what it wants to be told; 407 without.
        detour: where it really connects to, a port on loopback; None: where it is asked to.
        refusal: a status line's end that it answers everything with.
    """
    front = Front()
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front.connections += 1
        head = await _head(reader)
        front.heard += head
        method, target, *_ = [*head.decode("latin-1").split(" "), "", ""]
        front.targets.append(target)
        told = _header(head, "proxy-authorization")
        front.credentials.append(told)
        if refusal or method != "CONNECT":
            writer.write(f"HTTP/1.1 {refusal or '405 No'}\r\nContent-Length: 0\r\n\r\n".encode())
        elif user is not None and told != wanted:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
            )
        else:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            host, _, port = target.rpartition(":")
            there = ("127.0.0.1", detour) if detour else (host, int(port))
            await _relay(front, reader, writer, *there)

    async with _listening(front, serve, None):
        yield front


@asynccontextmanager
async def _listening(
    front: Front, serve: _Streams, context: ssl.SSLContext | None
) -> AsyncGenerator[None]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await serve(reader, writer)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(guarded, "127.0.0.1", front.port, ssl=context)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()


async def _relay(
    front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
) -> None:
    there_reader, there_writer = await asyncio.open_connection(host, port)
    async with anyio.create_task_group() as tasks:

        async def up() -> None:
            while data := await reader.read(65_536):
                front.heard += data
                there_writer.write(data)
                await there_writer.drain()
            tasks.cancel_scope.cancel()

        async def down() -> None:
            while data := await there_reader.read(65_536):
                writer.write(data)
                await writer.drain()
            tasks.cancel_scope.cancel()

        tasks.start_soon(_quietly, up)
        tasks.start_soon(_quietly, down)
    there_writer.close()


async def _quietly(work: Callable[[], Awaitable[None]]) -> None:
    with suppress(OSError):
        await work()


async def _head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def _header(head: bytes, name: str) -> str:
    for line in head.decode("latin-1").split("\r\n")[1:]:
        field_name, _, value = line.partition(":")
        if field_name.lower() == name:
            return value.strip()
    return ""
