"""An SSH tunnel that lives as long as the daemon: started again whenever it ends.

Its near end is a Unix socket (0600) in a private folder: no port that others could take or use.
"""

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import ssh
from cloudagent_daemon.config import Settings
from cloudagent_daemon.link.backoff import Backoff
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.link.way import TUNNEL
from cloudagent_daemon.process import Child, SpawnError, spawn
from cloudagent_daemon.sockets import place

logger = logging.getLogger(__name__)

#: How long an attempt to connect waits for the tunnel.
READY_S: Final = 15.0
_LOOK_S: Final = 0.05
_STDERR_BYTES: Final = 2_000

State: TypeAlias = Literal["starting", "up", "down"]


@dataclass(frozen=True)
class Standing:
    state: State
    #: What ssh said last, or why it could not be started.
    detail: str = ""
    #: How often it was started anew.
    restarts: int = 0
    pid: int | None = None


class Tunnel:
    """One tunnel; `run` keeps it open.

    Args:
        target: where ssh goes.
        server_url: of the server, as the far machine reaches it.
        near_end: a path that a Unix socket may have, in a private folder.
        environment: for ssh: its agent, its configuration's home.
    """

    def __init__(
        self,
        target: ssh.Target,
        server_url: str,
        near_end: Path,
        environment: Mapping[str, str],
        *,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._target = target
        self._server_url = server_url
        self._environment = environment
        self._backoff = backoff()
        self.socket = near_end
        self.standing = Standing("starting")
        #: Set, and replaced, when `standing` changes.
        self.changed = anyio.Event()

    async def run(self) -> None:
        """Never returns. Cancelled, it ends ssh; killed, the guardian does."""
        try:
            while True:
                began = time.monotonic()
                why = await self._once()
                lived_s = time.monotonic() - began
                delay = self._backoff.delay(UnreachableError(why), lived_s)
                logger.warning(
                    "the SSH tunnel is down (next in %.1f s): %s",
                    delay,
                    why,
                    extra={"action": "tunnel_down"},
                )
                self._show("down", why)
                await anyio.sleep(delay)  # nothing tells when the far machine can be reached again
                restarts = self.standing.restarts + 1
                self._set(Standing("starting", why, restarts))
        finally:
            self.socket.unlink(missing_ok=True)

    async def ready(self) -> None:
        """Returns when the tunnel is open.

        Raises:
            UnreachableError: it is not, for a while.
        """
        with anyio.move_on_after(READY_S):
            while self.standing.state != "up":
                if self.standing.state == "down":
                    break
                await self.changed.wait()
        if self.standing.state != "up":
            why = self.standing.detail or f"not open within {READY_S:.0f} s"
            raise UnreachableError(f"the SSH tunnel to {self._target.shown}: {why}")

    def report(self) -> dict[str, Any]:
        """For `status`."""
        standing = self.standing
        return {
            "target": self._target.shown,
            "state": standing.state,
            "detail": standing.detail or None,
            "restarts": standing.restarts,
            "pid": standing.pid,
        }

    async def _once(self) -> str:
        """One life of ssh; returns why it ended."""
        command = ssh.argv(self._target, self.socket, self._server_url)
        launch = f"tunnel_{secrets.token_hex(8)}"
        await run_sync(_unlink, self.socket)
        try:
            async with spawn(
                command, env=self._environment, cwd=Path("/"), launch_id=launch
            ) as child:
                await child.feed(b"")
                return await self._until_its_end(child)
        except SpawnError as error:
            return f"ssh could not be started: {error}"

    async def _until_its_end(self, child: Child) -> str:
        said, code, all_said = bytearray(), 0, anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                while piece := await child.read_stderr():
                    said.extend(piece)
                    del said[:-_STDERR_BYTES]
                all_said.set()

            async def drop() -> None:
                while await child.read_stdout():
                    pass

            tasks.start_soon(listen)
            tasks.start_soon(drop)
            tasks.start_soon(self._notice_the_opening, child)
            code = await child.wait()
            with anyio.move_on_after(1.0):  # its last words are on their way
                await all_said.wait()
            tasks.cancel_scope.cancel()
        return _last_words(bytes(said)) or f"ssh ended with {code}"

    async def _notice_the_opening(self, child: Child) -> None:
        """The command says nothing when it is ready; its end of the socket is there then."""
        while True:
            if await run_sync(_is_open, self.socket):
                break
            await anyio.sleep(_LOOK_S)  # no event tells of it
        logger.info("the SSH tunnel is open", extra={"action": "tunnel_up"})
        self._set(Standing("up", "", self.standing.restarts, child.pid))

    def _show(self, state: State, detail: str) -> None:
        self._set(Standing(state, detail, self.standing.restarts))

    def _set(self, standing: Standing) -> None:
        self.standing = standing
        self.changed.set()
        self.changed = anyio.Event()


def tunnel_of(settings: Settings) -> Tunnel | None:
    """The tunnel of a daemon with these settings, where its way begins."""
    if settings.ssh_tunnel is None:
        return None
    target = ssh.parse(settings.ssh_tunnel)
    folder = settings.state_dir or settings.runtime_dir
    near_end, _ = place(TUNNEL, folder, settings.runtime_dir)
    return Tunnel(target, settings.server_url, near_end, settings.environment)


@asynccontextmanager
async def open_tunnel(
    target: ssh.Target, server_url: str, near_end: Path, environment: Mapping[str, str]
) -> AsyncGenerator[Tunnel]:
    """A tunnel for the length of a command; ask it whether it is `ready`."""
    tunnel = Tunnel(target, server_url, near_end, environment)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tunnel.run)
        yield tunnel
        tasks.cancel_scope.cancel()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _is_open(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _last_words(said: bytes) -> str:
    """The last line that says something; ssh's first ones are often greetings and warnings."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    told = [line for line in lines if line]
    return told[-1][:300] if told else ""
