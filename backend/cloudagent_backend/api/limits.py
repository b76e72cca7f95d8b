"""What every request must keep to before a route sees it, and what every answer carries.

Two layers: `PatientHTTP` is the connection (slow heads, readers that do not read), `Gate` is the
request (whom it is addressed to, how large and how slow its body may be).
"""

import asyncio
import ipaddress
import logging
from functools import lru_cache
from typing import Any, Final, cast
from urllib.parse import urlsplit

import anyio
import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cloudagent_backend.api.errors import problem
from cloudagent_backend.api.sockets import WriteDeadline, cancelled
from cloudagent_backend.config import Settings
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import new_request_id

logger = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'"
)
_SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: How much of a body that is too large is read, and for how long, before it is refused.
_DRAIN_BYTES: Final = 16_777_216
_DRAIN_S: Final = 2.0
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: Whose body is a file: its route reads it as it comes, once it knows who sends it.
_FILES: Final = {"POST": "/v1/attachments", "PUT": "/v1/daemon/attachments/"}


def is_address(name: str) -> bool:
    """Whether it is an IP address or this machine's own name: nothing that DNS could redirect."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        #: A listener on this machine only answers to its own names (DNS rebinding).
        self._checks_host = is_loopback(settings.host)
        self._public_host = (urlsplit(settings.public_url or "").hostname or "").lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        headers = Headers(scope=scope)
        try:
            if _head_bytes(scope) > self._settings.max_header_bytes:
                await self._refuse(
                    scope,
                    answer,
                    ErrorCode.BAD_REQUEST,
                    f"The head is larger than {self._settings.max_header_bytes} bytes.",
                    "Send shorter headers and a shorter path.",
                )
            elif not self._is_for_us(headers):
                await self._refuse(
                    scope,
                    answer,
                    ErrorCode.FORBIDDEN,
                    "The Host header does not name this server.",
                    "Open it under its own address, or start it with --public-url.",
                )
            elif scope["type"] == "http" and scope["method"] in _WITH_BODY:
                if _is_file(scope):
                    await self._with_file(scope, headers, receive, answer)
                else:
                    await self._with_body(scope, headers, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception:
            logger.exception("a request failed", extra={"action": "serve", "id": request_id})
            if answer.started:
                raise
            await self._refuse(
                scope, answer, ErrorCode.INTERNAL, "The server could not do this.", None
            )

    def _is_for_us(self, headers: Headers) -> bool:
        if not self._checks_host:
            return True
        try:
            name = (urlsplit(f"//{headers.get('host', '')}").hostname or "").lower()
        except ValueError:
            return False
        return is_loopback(name) or (name != "" and name == self._public_host)

    async def _with_body(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        """Take the whole body in first: it is small, and its sender may be slow."""
        limit = self._settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            if "expect" not in headers:
                await _drain(receive)
            await self._too_large(scope, answer, limit)
            return
        body, more = bytearray(), True
        with anyio.move_on_after(self._settings.body_deadline_s) as deadline:
            while more and len(body) <= limit:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
        if deadline.cancelled_caught:
            waited = f"The body did not arrive within {self._settings.body_deadline_s:g} s."
            answer.close = True
            await self._refuse(scope, answer, ErrorCode.BAD_REQUEST, waited, "Send it faster.")
        elif len(body) > limit:
            if more:
                await _drain(receive)
            await self._too_large(scope, answer, limit)
        else:
            await self._app(scope, replay(bytes(body), receive), answer)

    async def _with_file(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        declared, limit = headers.get("content-length", "0"), self._settings.attachment_bytes
        if declared.isdecimal() and int(declared) > limit:
            if "expect" not in headers:
                await _drain(receive)
            await self._too_large(scope, answer, limit)
        else:
            await self._app(scope, receive, answer)

    async def _too_large(self, scope: Scope, answer: "_Answer", limit: int) -> None:
        answer.close = True
        await self._refuse(
            scope,
            answer,
            ErrorCode.TOO_LARGE,
            f"The body is larger than {limit} bytes.",
            "Send less at once.",
        )

    async def _refuse(
        self,
        scope: Scope,
        answer: "_Answer",
        code: ErrorCode,
        detail: str,
        next: str | None,  # noqa: A002  the problem's own field name
    ) -> None:
        response = problem(code, detail, next=next, request_id=scope["state"]["request_id"])
        await response(scope, _nothing, answer)


class _Answer:
    """The way out: adds what every answer carries."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False
        #: The rest of the request will not be read: the connection is of no more use.
        self.close = False

    async def __call__(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.http.response.start"}:
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if self.close:
                headers["Connection"] = "close"
        self.started = True
        await self._send(message)


async def _drain(receive: Receive) -> None:
    """Read on for a moment: who is still sending when we close would never see our answer."""
    dropped, more = 0, True
    with anyio.move_on_after(_DRAIN_S):
        while more and dropped < _DRAIN_BYTES:
            message = await receive()
            dropped += len(message.get("body", b""))
            more = message.get("more_body", False)


def _is_file(scope: Scope) -> bool:
    path, begins = scope["path"], _FILES.get(scope["method"])
    return path == begins or (scope["method"] == "PUT" and path.startswith(_FILES["PUT"]))


def _head_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then whatever comes (a disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class OneWrite(h11.Connection):
    """Gives the head of an answer whose length is known together with its body.

    uvicorn writes what it is given at once: apart, each is a call to the system, and a packet.
    """

    def __init__(self, most: int) -> None:
        super().__init__(h11.SERVER, most)
        self._head: list[bytes] = []

    @override
    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        data = super().send_with_data_passthrough(event)
        if data is None:
            return None
        if isinstance(event, h11.Response) and _has_length(event):
            self._head = data
            return []
        data, self._head = self._head + data, []
        return data


def _has_length(response: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in response.headers)


class PatientHTTP(WriteDeadline, H11Protocol):
    """uvicorn's connection, with an end to its patience.

    uvicorn waits for ever for the rest of a head (slow loris), and for a reader who does not read.
    The deadline of a head runs from when we begin to wait for it, and no byte of it puts it off.
    """

    head_deadline_s: float = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, *args: Any, **named: Any) -> None:
        super().__init__(config, *args, **named)
        most = config.h11_max_incomplete_event_size
        assert most is not None  # `uvicorn_config` sets it
        self.conn = OneWrite(most)

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # None until the first request, whatever uvicorn declares; gone to a WebSocket by now, maybe.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if (cycle is None or cycle.response_complete) and self.transport.get_protocol() is self:
            self._await_head()
        else:
            self._head_timer = cancelled(self._head_timer)

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Nothing came yet: then uvicorn's own, longer time for an idle connection counts.
        if self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY:
            self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer = cancelled(self._head_timer)
        super().connection_lost(exc)

    @override
    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has a head over the limit, gets a problem like any other error."""
        response = problem(ErrorCode.BAD_REQUEST, msg)
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        if self._head_timer is None:
            later = asyncio.get_running_loop().call_later
            self._head_timer = later(self.head_deadline_s, self.transport.abort)
