"""The transport over WebSocket (RFC 6455), as docs/protocol.md §1 wants it."""

import json
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, cast

import anyio
from typing_extensions import override
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    ProxyError,
)

from cloudagent_daemon.link.failures import is_offline, proxy_refusal, why_not
from cloudagent_daemon.link.transport import (
    KeyRejectedError,
    LinkClosedError,
    LinkError,
    UnreachableError,
)
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.proxy import without_secret
from cloudagent_protocol.errors import ErrorCode, ProtocolError
from cloudagent_protocol.frames import MAX_FRAME_BYTES
from cloudagent_protocol.version import DISTRIBUTION

PATH: Final = "/v1/daemon/ws"
OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0


#: Asked anew for each connection: the key may have been replaced meanwhile.
KeySource: TypeAlias = Callable[[], Awaitable[str]]


def always(machine_key: str) -> KeySource:
    """The source of a key that does not change."""

    async def current() -> str:
        return machine_key

    return current


class WebSocketTransport:
    """Connections to the daemon's endpoint of a server.

    Args:
        way: how it is reached.
        key: asked for each connection.
        ready: waits until the way is there; it may raise `UnreachableError`.
    """

    def __init__(
        self, way: Way, key: KeySource, ready: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._way = way
        self._key = key
        self._ready = ready

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator["WebSocketStream"]:
        if self._ready:
            await self._ready()
        stream = WebSocketStream(await self._open(await self._key()))
        try:
            yield stream
        finally:
            await stream.close(1001, "")

    async def _open(self, machine_key: str) -> "_Heard":
        server = self._way.server_url
        try:
            return await _Connect(  # pyright: ignore[reportReturnType]  what create_connection names
                server.replace("http", "ws", 1) + PATH,
                additional_headers={"Authorization": f"Bearer {machine_key}"},
                user_agent_header=f"cloudagent-daemon/{DISTRIBUTION}",
                create_connection=_Heard,
                compression=None,
                max_size=MAX_FRAME_BYTES,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                # The link has its own heartbeat, which both ends judge by the same rules.
                ping_interval=None,
                **_way_options(self._way),
            )
        except InvalidStatus as error:
            raise _refusal(server, error) from error
        except InvalidMessage as error:
            raise UnreachableError(f"{server} does not speak HTTP: {error}") from error
        except InvalidProxyStatus as error:
            answer = error.response
            said = f"{answer.status_code} {answer.reason_phrase}".rstrip()
            raise UnreachableError(proxy_refusal(self._way, said)) from error
        except ProxyError as error:
            proxy = without_secret(self._way.proxy or "")
            raise UnreachableError(f"the proxy {proxy} does not let us through: {error}") from error
        except (InvalidHandshake, InvalidURI) as error:
            raise UnreachableError(f"{server} refuses a WebSocket: {error}") from error
        except TimeoutError as error:
            raise UnreachableError(
                f"{server} does not answer within {OPEN_TIMEOUT_S:.0f} s"
            ) from error
        except ssl.SSLError as error:
            why = why_not(error, self._way)
            raise UnreachableError(f"{server} cannot be trusted: {why}") from error
        except OSError as error:
            why = why_not(error, self._way)
            raise UnreachableError(
                f"{server} cannot be reached: {why}", offline=is_offline(error)
            ) from error


def _way_options(way: Way) -> dict[str, Any]:
    options: dict[str, Any] = {"ssl": way.tls, "proxy": way.proxy}
    if way.socket:
        options |= {"unix": True, "path": str(way.socket)}
    if way.proxy_tls:
        options["proxy_ssl"] = way.proxy_tls
    return options


class WebSocketStream:
    def __init__(self, connection: "_Heard") -> None:
        self._connection = connection

    @property
    def heard_at(self) -> float:
        return self._connection.heard_at

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def receive(self) -> str:
        try:
            data = await self._connection.recv()
        except ConnectionClosed as error:
            raise _closed(error) from error
        if isinstance(data, bytes):
            raise ProtocolError("binary frame; frames are JSON text")
        return data

    async def close(self, code: int, reason: str) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2 * CLOSE_TIMEOUT_S):
            # A control frame has 125 bytes, two of them for the code (RFC 6455 §5.5).
            await self._connection.close(code, reason.encode()[:120].decode(errors="ignore"))


class _Heard(ClientConnection):
    """A connection that knows when bytes came in last."""

    heard_at = 0.0

    @override
    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        super().data_received(data)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        # Lost before it was made, as where a proxy's TLS fails: the library then fails over what it has
        # not made yet, and a traceback is in the log at each attempt (python-websockets/websockets#1629).
        if hasattr(self, "recv_messages"):
            super().connection_lost(exc)


class _Connect(connect):
    """Without redirects: the key is for the server that the person named."""

    @override
    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _closed(error: ConnectionClosed) -> LinkClosedError:
    if error.rcvd:
        return LinkClosedError(error.rcvd.code, error.rcvd.reason)
    if error.sent:
        return LinkClosedError(error.sent.code, error.sent.reason)
    return LinkClosedError(1006, "the connection was cut")


def _refusal(server_url: str, error: InvalidStatus) -> LinkError:
    response = error.response
    kind = response.headers.get("Content-Type", "")
    problem = _problem(response.body)
    detail = str(problem.get("detail", ""))
    # Only a backend rejects a key: an HTML page with a 403 is something in between.
    if response.status_code in (401, 403) and "json" in kind:
        return KeyRejectedError(
            f"{response.status_code}: {detail or 'key rejected'}",
            revoked=problem.get("code") == ErrorCode.REVOKED,
        )
    if location := response.headers.get("Location"):
        return UnreachableError(
            f"{server_url} sends us on to {location}: name that address instead"
        )
    if "html" in kind:
        return UnreachableError(
            f"{server_url} answers with a web page ({response.status_code}), not as a cloudagent"
            " backend: a network's login page, or a wrong address"
        )
    after = response.headers.get("Retry-After", "")
    return UnreachableError(
        f"{server_url} answers {response.status_code} {response.reason_phrase} {detail}".rstrip(),
        float(after) if after.isdigit() else None,
    )


def _problem(body: bytes | bytearray) -> dict[str, Any]:
    try:
        problem: Any = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", problem) if isinstance(problem, dict) else {}
