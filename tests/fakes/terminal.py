"""A terminal that a command runs in, and what a person would have seen there."""

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import anyio
from anyio.to_thread import run_sync

_SGR = re.compile(r"\x1b\[[0-9;]*m")
WAIT_S = 30.0


class Started(Protocol):
    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


#: Starts argv with an environment in a folder, in the terminal of this handle; as a session of its own.
Start: TypeAlias = Callable[[list[str], dict[str, str], Path, int], Started]


def executed_in(argv: list[str], env: dict[str, str], cwd: Path, handle: int) -> Started:
    """Starts a command as a shell does; e2e/forks.py has a quicker way."""

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return subprocess.Popen(
        argv, env=env, cwd=cwd, stdin=handle, stdout=handle, stderr=handle, preexec_fn=own_terminal
    )


class Terminal:
    """One command in a terminal of 80 to 40 characters."""

    def __init__(self, process: Started, handle: int) -> None:
        self.process = process
        self._handle = handle
        self.raw = ""
        self._news = anyio.Event()

    @property
    def screen(self) -> str:
        """The lines as they stand in the end: what was written over is gone, and so are colours."""
        text = _SGR.sub("", self.raw.replace("\r\n", "\n"))
        lines = [line.rpartition("\r\x1b[K")[2].rstrip() for line in text.split("\n")]
        return "\n".join(lines).strip("\n") + "\n"

    async def until(self, text: str) -> None:
        with anyio.fail_after(WAIT_S):
            while text not in self.raw:
                await self._news.wait()

    async def ended(self) -> int:
        """The exit code, once all that it said is here."""
        with anyio.fail_after(WAIT_S):
            code = await run_sync(self.process.wait)
            while self._handle >= 0:
                await self._news.wait()
        return code

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def close(self) -> None:
        """As when a window is closed: the terminal is gone."""
        handle, self._handle = self._handle, -1
        anyio.notify_closing(handle)
        os.close(handle)

    async def read(self) -> None:
        while (handle := self._handle) >= 0:
            try:
                await anyio.wait_readable(handle)
                data = os.read(handle, 65_536) if handle == self._handle else b""
            except OSError as error:
                # The other end is closed, or this one.
                if error.errno not in (errno.EIO, errno.EBADF):
                    raise
                data = b""
            except anyio.ClosedResourceError:
                data = b""
            if not data and self._handle >= 0:
                os.close(self._handle)
                self._handle = -1
            self.raw += data.decode(errors="replace")
            self._news.set()
            self._news = anyio.Event()


@asynccontextmanager
async def terminal(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, start: Start = executed_in
) -> AsyncGenerator[Terminal]:
    """Runs the command in a terminal of its own; it is killed if it has not ended."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = start(list(argv), dict(env), cwd, there)
    os.close(there)
    running = Terminal(process, here)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.read)
        try:
            yield running
        finally:
            with anyio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                await run_sync(process.wait)
            tasks.cancel_scope.cancel()
