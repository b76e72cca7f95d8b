"""The transport over WebSocket (RFC 6455), as docs/protocol.md §1 wants it."""

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio
from typing_extensions import override
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)

from cloudagent_daemon.link.transport import (
    KeyRejectedError,
    LinkClosedError,
    LinkError,
    UnreachableError,
)
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import MAX_FRAME_BYTES
from cloudagent_protocol.version import DISTRIBUTION

PATH: Final = "/v1/daemon/ws"
OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0


def tls_context(server_url: str, ca_file: Path | None, *, insecure: bool) -> ssl.SSLContext | None:
    """How to check the server's certificate; None for plain http."""
    if not server_url.startswith("https:"):
        return None
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class WebSocketTransport:
    """Connections to the daemon's endpoint of `server_url`."""

    def __init__(
        self, server_url: str, machine_key: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._server_url = server_url
        self._url = server_url.replace("http", "ws", 1) + PATH
        self._headers = {"Authorization": f"Bearer {machine_key}"}
        self._tls = tls

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator["WebSocketStream"]:
        try:
            connection = await _Connect(
                self._url,
                additional_headers=self._headers,
                user_agent_header=f"cloudagent-daemon/{DISTRIBUTION}",
                compression=None,
                max_size=MAX_FRAME_BYTES,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                # The link has its own heartbeat, which both ends judge by the same rules.
                ping_interval=None,
                ssl=self._tls,
            )
        except InvalidStatus as error:
            raise _refusal(self._server_url, error) from error
        except InvalidMessage as error:
            raise UnreachableError(f"{self._server_url} does not speak HTTP: {error}") from error
        except (InvalidHandshake, InvalidURI) as error:
            raise UnreachableError(f"{self._server_url} refuses a WebSocket: {error}") from error
        except TimeoutError as error:
            raise UnreachableError(
                f"{self._server_url} does not answer within {OPEN_TIMEOUT_S:.0f} s"
            ) from error
        except ssl.SSLError as error:
            raise UnreachableError(f"{self._server_url} cannot be trusted: {error}") from error
        except OSError as error:
            raise UnreachableError(
                f"{self._server_url} cannot be reached: {error.strerror or error}"
            ) from error
        stream = WebSocketStream(connection)
        try:
            yield stream
        finally:
            await stream.close(1001, "")


class WebSocketStream:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

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
    if response.status_code in (401, 403):
        return KeyRejectedError(
            f"{response.status_code}: {_detail(response.body) or 'key rejected'}"
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
        f"{server_url} answers {response.status_code} {response.reason_phrase}"
        f" {_detail(response.body)}".rstrip(),
        float(after) if after.isdigit() else None,
    )


def _detail(body: bytes | bytearray) -> str:
    try:
        problem: Any = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(problem, dict):
        return ""
    return str(cast("dict[str, Any]", problem).get("detail", ""))
