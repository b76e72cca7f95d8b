"""The daemon's end of the bridge: a Unix socket, at which every run's agent finds its own tools.

Three checks stand before the first word of MCP: the peer is the same user, it knows the token of a
run that is alive, and it descends from that run's process; a token that another agent of the same
user has read does not help it.
"""

import hashlib
import hmac
import importlib
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.abc
import anyio.to_thread
import psutil
from anyio.streams.buffered import BufferedByteReceiveStream

from cloudagent_daemon.bridge import shim
from cloudagent_daemon.bridge.tools import ToolAnswer, Toolbox
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.listening import serve
from cloudagent_daemon.sockets import clear, peer_of, place

logger = logging.getLogger(__name__)

#: How long a peer may take to present its token.
TOKEN_S: Final = 5.0
#: How long the end of a run waits for tool calls that are under way.
CLOSE_S: Final = 30.0
#: Connections at once, of one run and of all: each is a descriptor, of which the daemon has about a
#: thousand, and without any left it could not even accept the next connection to refuse it.
MAX_OF_RUN: Final = 32
MAX_OF_ALL: Final = 256
_NO_TURN: Final = "Nothing was done: no message is being worked on. Wait for the next one."


class Session:
    """One process's place at the bridge; its calls are those of the run that it works on."""

    def __init__(self, toolbox: Toolbox | None, socket_path: Path, token_file: Path) -> None:
        self._toolbox = toolbox
        #: Set once the process has asked which tools there are.
        self.listed = anyio.Event()
        #: Who is connected, by process number.
        self.peers: dict[anyio.CancelScope, int] = {}
        self.socket_path = socket_path
        self.token_file = token_file
        #: Names of tools that the process's program keeps for its own.
        self.reserved: frozenset[str] = frozenset()
        self._pids: set[int] = set()
        self._admitting = anyio.Event()
        self.connections: set[anyio.CancelScope] = set()

    @property
    def command(self) -> tuple[str, ...]:
        """What an agent starts as its MCP server on stdio."""
        here = (str(self.socket_path), str(self.token_file))
        return (sys.executable, "-I", "-S", str(Path(shim.__file__)), *here)

    def admit(self, pid: int) -> None:
        """From now on this process and its descendants may connect."""
        self._pids.add(pid)
        self._admitting.set()

    async def admits(self, pid: int) -> bool:
        # A quick agent may connect before its start has been noted.
        with anyio.move_on_after(TOKEN_S):
            await self._admitting.wait()
        return await anyio.to_thread.run_sync(_descends, pid, frozenset(self._pids))

    def open(self, toolbox: Toolbox) -> None:
        """From now on the process works on the run that these tools are of."""
        self._toolbox = toolbox

    async def shut(self) -> bool:
        """It works on no run any more; what is called under way may finish.

        Returns whether all of it did in time. Each call stays with the run that it was begun in.
        """
        toolbox, self._toolbox = self._toolbox, None
        with anyio.move_on_after(CLOSE_S) as scope:
            if toolbox:
                await toolbox.idle()
        return not scope.cancelled_caught

    async def call(self, name: str, arguments: dict[str, Any], key: str) -> ToolAnswer:
        """Does a call for the run that is worked on now."""
        if self._toolbox is None:
            return ToolAnswer(_NO_TURN, is_error=True)
        return await self._toolbox.call(name, arguments, key)

    def heard(self, key: str) -> None:
        """The answer to this call has reached the agent."""
        if self._toolbox:
            self._toolbox.heard(key)

    async def close(self) -> None:
        """Lets calls under way finish, then cuts the connections."""
        await self.shut()
        for scope in self.connections:
            scope.cancel()


class Bridge:
    """The socket and the runs that are alive behind it.

    Args:
        state_dir: where people look for `bridge.sock`; None in one-shot mode.
        runtime_dir: a private folder with a short path, for when that one is too long.
    """

    def __init__(
        self, state_dir: Path | None, runtime_dir: Path, keeper: Keeper | None = None
    ) -> None:
        self._keeper = keeper or Keeper()
        self._state_dir = state_dir
        self._runtime_dir = runtime_dir
        self._path: Path | None = None
        self._sessions: dict[bytes, Session] = {}
        self._connections = 0
        self._open = 0

    async def serve(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listens until cancelled; ready once the socket is there."""
        path, pointer = await anyio.to_thread.run_sync(
            place, "bridge.sock", self._state_dir, self._runtime_dir
        )
        try:
            async with await anyio.create_unix_listener(path, mode=0o600) as listener:
                self._path = path
                task_status.started()
                await serve(listener, self._connected)
        finally:
            self._path = None
            clear(path, pointer, self._state_dir, self._runtime_dir)

    async def warm_up(self) -> None:
        """Imports `mcp`, which takes most of a second, in a thread; at once if that is done."""
        await anyio.to_thread.run_sync(importlib.import_module, "cloudagent_daemon.bridge.rpc")

    @asynccontextmanager
    async def session(self, toolbox: Toolbox | None, folder: Path) -> AsyncGenerator[Session]:
        """A place for a process, with a token of its own in `folder`; on exit the token is dead."""
        if self._path is None:
            raise RuntimeError("the bridge is not serving")
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).digest()
        token_file = folder / "bridge.token"
        await self._keeper.in_thread(_write_token, token_file, token)
        session = Session(toolbox, self._path, token_file)
        self._sessions[digest] = session
        try:
            yield session
        finally:
            del self._sessions[digest]
            with anyio.CancelScope(shield=True):
                await session.close()

    async def _connected(self, stream: anyio.abc.SocketStream) -> None:
        self._open += 1
        try:
            async with stream:
                if self._open > MAX_OF_ALL:
                    _refuse("there are too many", None)
                else:
                    await self._serve(stream)
        finally:
            self._open -= 1

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        buffered = BufferedByteReceiveStream(stream)
        session = await self._authenticated(stream, buffered)
        if session is None:
            return
        if len(session.connections) >= MAX_OF_RUN:
            _refuse("its run has too many", None)
            return
        self._connections += 1
        name = f"c{self._connections}"
        with anyio.CancelScope() as scope:
            session.connections.add(scope)
            if (pid := peer_of(stream.extra(anyio.abc.SocketAttribute.raw_socket))[0]) is not None:  # noqa: S610 (no Django here)
                session.peers[scope] = pid
            try:
                await self.warm_up()
                from cloudagent_daemon.bridge.rpc import converse

                sock = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 (no Django here)
                await converse(stream, buffered, session, name, lambda: _is_read(sock))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                logger.debug("an agent left the bridge", extra={"action": "bridge"})
            finally:
                session.connections.discard(scope)
                session.peers.pop(scope, None)

    async def _authenticated(
        self, stream: anyio.abc.SocketStream, buffered: BufferedByteReceiveStream
    ) -> Session | None:
        pid, uid = peer_of(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 (no Django here)
        if uid != os.getuid():
            return _refuse("another user", pid)
        session = self._holder_of(await _read_token(buffered))
        if session is None:
            return _refuse("no run that is alive has this token", pid)
        if pid is not None and not await session.admits(pid):
            return _refuse("the token belongs to another process's run", pid)
        return session

    def _holder_of(self, token: str) -> Session | None:
        presented = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        for digest, session in self._sessions.items():
            if hmac.compare_digest(digest, presented):
                return session
        return None


async def _read_token(buffered: BufferedByteReceiveStream) -> str:
    """The token that the peer presents; empty if it presents none in time."""
    try:
        with anyio.fail_after(TOKEN_S):
            line = await buffered.receive_until(b"\n", 1_024)
        value: Any = json.loads(line)
    except (TimeoutError, ValueError, anyio.IncompleteRead, anyio.DelimiterNotFound, OSError):
        return ""
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return ""
    token = cast("dict[str, Any]", value).get("token") if isinstance(value, dict) else None
    return token if isinstance(token, str) else ""


def _refuse(why: str, pid: int | None) -> None:
    logger.warning("bridge: connection refused: %s", why, extra={"action": "bridge", "pid": pid})


def _is_read(sock: socket.socket) -> bool:
    """Whether the peer could still read: it may have shut down its writing, or be gone altogether."""
    try:
        sock.send(b"")  # carries nothing, and fails (EPIPE) where nobody reads
    except OSError:
        return False
    return True


def _descends(pid: int, ancestors: frozenset[int]) -> bool:
    if pid in ancestors:
        return True
    try:
        return any(parent.pid in ancestors for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _write_token(path: Path, token: str) -> None:
    path.unlink(missing_ok=True)  # a half one, from a disk that was full
    with open(
        path, "x", encoding="ascii", opener=lambda p, flags: os.open(p, flags, 0o400)
    ) as file:
        file.write(token)
