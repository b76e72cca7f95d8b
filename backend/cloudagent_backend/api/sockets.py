"""uvicorn's WebSocket, with an end to its patience, and for connections that stay for weeks.

A daemon's link is idle most of its life. As an ASGI application it would cost a task, a queue and a
dozen suspended calls, and two system calls for each message that comes (uvicorn stops reading until
the application has taken it). So a connection can be taken over once it is open: from then on a
`Listener` gets what comes, in the event loop itself, and the ASGI call returns. (docs/decisions/0013)
"""

import asyncio
import logging
import time
from typing import Any, Final, Protocol

from starlette.websockets import WebSocket
from typing_extensions import override
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

logger = logging.getLogger(__name__)

_EXTENSION: Final = "cloudagent.socket"
_CLOSE_TIMEOUT_S: Final = 1.0
#: What a reader must have taken between two looks at it.
_LEAST_READ: Final = 16_384
#: Bytes that a close frame's reason may have (RFC 6455 §5.5).
_MAX_REASON: Final = 120


class Listener(Protocol):
    """Whoever took a socket over. Called in the event loop; must not block and cannot wait."""

    def on_message(self, data: str | bytes) -> None:
        """A whole message came; text as `str`."""
        ...

    def on_writable(self) -> None:
        """The peer reads again; nothing is read from it before `go_on`."""
        ...

    def on_lost(self) -> None:
        """Nothing will come any more. May be said twice."""
        ...


class WriteDeadline(asyncio.Protocol):
    """Ends a connection whose other end has not read for a while."""

    write_deadline_s: float = 15.0
    transport: asyncio.Transport
    _write_timer: asyncio.TimerHandle | None = None

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """Slow lines get on, if slowly; who takes less is not reading."""
        later = asyncio.get_running_loop().call_later
        most = self.transport.get_write_buffer_size() - _LEAST_READ
        self._write_timer = later(self.write_deadline_s, self._look_at_reader, most)

    def _look_at_reader(self, most: int) -> None:
        if self.transport.get_write_buffer_size() > most:
            self.transport.abort()
        else:
            self._wait_for_reader()

    @override
    def resume_writing(self) -> None:
        self._write_timer = cancelled(self._write_timer)
        super().resume_writing()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._write_timer = cancelled(self._write_timer)
        super().connection_lost(exc)


def cancelled(timer: asyncio.TimerHandle | None) -> None:
    """Cancel the timer, if there is one; null, to be put in its place."""
    if timer is not None:
        timer.cancel()


class PatientWebSocket(WriteDeadline, WebSocketsSansIOProtocol):
    """A WebSocket for readers who read and peers who answer.

    uvicorn gives a peer 10 s to answer a close; one whose answer is lost on the way learns only then
    that it is cut off.
    """

    app: Any  # uvicorn's own type has unknown parts
    #: When the last bytes came in, monotonic seconds: a large frame takes its time on a slow line.
    heard_at: float = 0.0
    _listener: Listener | None = None

    # --- for whoever takes it over ---

    def take_over(self, listener: Listener) -> None:
        """From now on `listener` has the connection; at once it gets what has come meanwhile."""
        self._listener = listener
        while not self.queue.empty():
            message = self.queue.get_nowait()
            if message["type"] == "websocket.receive":
                text = message.get("text")
                listener.on_message(text if text is not None else message.get("bytes") or b"")
        if self.disconnected:
            listener.on_lost()
        self.go_on()

    @property
    def takes_more(self) -> bool:
        """Whether the peer reads what it was sent before. What is written all the same is kept."""
        return self.writable.is_set()

    def write(self, text: str) -> None:
        """Send a text message (RFC 6455 §5.2: one frame, not masked); nothing after a close."""
        if self.close_sent or self.transport.is_closing():
            return
        data = text.encode()
        size = len(data)
        if size < 126:
            head = bytes((0x81, size))
        elif size < 65_536:
            head = b"\x81\x7e" + size.to_bytes(2)
        else:
            head = b"\x81\x7f" + size.to_bytes(8)
        self.transport.write(head + data)

    def hold(self) -> None:
        """Read no more for now: TCP holds the peer back."""
        self.read_paused = True
        self.transport.pause_reading()

    def go_on(self) -> None:
        """Read again, unless the peer itself does not."""
        if self.takes_more:
            self.read_paused = False
            self.transport.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye, and cut the connection soon after, whatever the peer does."""
        if self.close_sent or self.transport.is_closing():
            return
        short = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        self.conn.send_close(code, short)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    # --- what uvicorn and the event loop call ---

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  as uvicorn has it
        self.close_timeout = _CLOSE_TIMEOUT_S
        super().connection_made(transport)

    @override
    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        super().data_received(data)

    @override
    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:  # not refused: the application sees its scope after this
            scope: Any = self.scope
            scope["extensions"][_EXTENSION] = {"socket": self}

    @override
    async def run_asgi(self) -> None:
        """As uvicorn's, but a connection that was taken over goes on without the application."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            logger.debug("closed from the other side", extra={"action": "websocket"})
        except Exception:
            logger.exception("a socket failed", extra={"action": "websocket"})
            self.send_500_response()
        if self._listener is not None:
            del self.scope, self.request, self.response
        elif self.close_timer is None:
            self.transport.close()

    @override
    def send_receive_event_to_app(self) -> None:
        listener = self._listener
        if listener is None:
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        try:
            listener.on_message(data.decode() if self.curr_msg_data_type == "text" else data)
        except UnicodeDecodeError:
            self.conn.send_close(1007)
            self.handle_parser_exception()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._listener is not None:
            self.hold()  # who does not read is not heard: answers to it would pile up

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._listener is not None:
            self._listener.on_writable()

    @override
    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        if self._listener is not None:
            self._listener.on_lost()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._listener is not None:
            self._listener.on_lost()


def socket_of(websocket: WebSocket) -> PatientWebSocket:
    """The connection under an accepted WebSocket."""
    socket: PatientWebSocket = websocket.scope["extensions"][_EXTENSION]["socket"]
    return socket
