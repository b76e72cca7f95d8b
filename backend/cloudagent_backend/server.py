"""The application on a socket: uvicorn, with our limits, our signals and our last words."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Generator
from typing import Final

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from cloudagent_backend.api.limits import PatientHTTP
from cloudagent_backend.api.sockets import PatientWebSocket
from cloudagent_backend.api.world import World
from cloudagent_backend.app import create_app, end_streams
from cloudagent_backend.config import Settings
from cloudagent_backend.store import users
from cloudagent_protocol.frames import MAX_FRAME_BYTES

#: With these, runs of the collector's oldest generation are rare: each walks every connection,
#: which is what the slowest answers wait for.
_GC_THRESHOLDS: Final = (10_000, 20, 100)
_SETUP_LINK_S: Final = 86_400
#: An idle connection is closed after it; longer than clients keep theirs, so that none is surprised.
_KEEP_ALIVE_S: Final = 75


class Server(uvicorn.Server):
    """One backend that serves.

    Args:
        say: takes the lines that an operator reads at the start.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self.app = create_app(settings)
        #: What ended it, if it was a signal.
        self.signal: int | None = None
        super().__init__(uvicorn_config(settings, self.app))

    @property
    def world(self) -> World:
        """Once it has started."""
        world: World = self.app.state.world
        return world

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        url = _url(self._settings, self.servers[0].sockets[0].getsockname()[1])
        if not await self.world.database.read(users.any_user):
            key = await self.world.database.write(
                lambda c: users.new_link(c, "setup", None, _SETUP_LINK_S)
            )
            self._say("Nobody has an account here yet. Make the first one (works once, for a day):")
            self._say(f"  {url}/setup?k={key}")
        self._say(f"Listening on {url}")

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First of all: uvicorn waits for open requests, and these never end by themselves.
        end_streams(self.world)
        await super().shutdown(sockets)

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """As uvicorn's, but without sending the signal to ourselves again: the end is orderly."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        self.signal = number
        self.handle_exit(number, None)


def spare_the_collector() -> None:
    """Leave what was loaded until now out of every later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def uvicorn_config(settings: Settings, application: FastAPI) -> uvicorn.Config:
    class HTTP(PatientHTTP):
        head_deadline_s = settings.head_deadline_s
        write_deadline_s = settings.write_deadline_s

    class WebSocket(PatientWebSocket):
        write_deadline_s = settings.write_deadline_s

    return uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        http=HTTP,
        ws=WebSocket,
        ws_max_size=MAX_FRAME_BYTES,
        # The link has heartbeats of its own; deflate would let bombs in.
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.stop_grace_s,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
    )


def _url(settings: Settings, port: int) -> str:
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"
