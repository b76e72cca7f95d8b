"""Child processes: each in its own session, and never outliving the scope that started it.

A coding agent's tools put themselves into sessions of their own, where a signal to its process
group does not reach them. So a process tree is found three ways: by walking from the process that
we started (before it is ended: afterwards its children belong to init), by the session that was
made for it, and by `CLOUDAGENT_LAUNCH_ID` in the environment, which everything it starts inherits.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
import psutil

logger = logging.getLogger(__name__)

LAUNCH_ID: Final = "CLOUDAGENT_LAUNCH_ID"
#: Bytes taken from a pipe at once; with asyncio's own buffer the bound of what a child may pile up.
CHUNK_BYTES: Final = 65_536
#: How long an ordinary end by SIGTERM may take before the tree is killed.
TERM_S: Final = 5.0
#: How long the killing itself may take; what survives SIGKILL for so long is stuck in the kernel.
KILL_S: Final = 5.0


class SpawnError(Exception):
    """The process could not be started; `str()` says why, for a person."""


class Child:
    """A running process; made by `spawn`, which also ends it."""

    def __init__(self, process: anyio.abc.Process, launch_id: str, started_at: float) -> None:
        self._process = process
        self.launch_id = launch_id
        #: When it was created, in Unix seconds as psutil tells it.
        self.started_at = started_at

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def feed(self, data: bytes) -> None:
        """Writes all of standard input and closes it; a child that does not read is no error."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            if data:
                await stdin.send(data)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await stdin.aclose()

    async def read_stdout(self) -> bytes:
        """The next piece of standard output; empty at its end."""
        return await _receive(self._process.stdout)

    async def read_stderr(self) -> bytes:
        """The next piece of standard error; empty at its end."""
        return await _receive(self._process.stderr)

    async def interrupt(self, sent: signal.Signals, wait_s: float) -> bool:
        """Sends one signal to the process itself; returns whether it ended in time."""
        with suppress(ProcessLookupError):
            self._process.send_signal(sent)
        with anyio.move_on_after(wait_s):
            await self._process.wait()
        return self.exit_code is not None

    async def end(self, *, term_s: float = TERM_S) -> int:
        """Ends the whole tree: TERM, a wait, then STOP and KILL until nothing is left.

        With the process already gone, or `term_s` 0, it starts at STOP and KILL. Safe to call more
        than once. A shield of the caller's protects it; it takes `term_s` + `KILL_S` at most.

        Returns:
            How many processes were killed.
        """
        if self.exit_code is None and term_s > 0:
            await anyio.to_thread.run_sync(_terminate, self._find)
            with anyio.move_on_after(term_s):
                await self._process.wait()
        killed = await anyio.to_thread.run_sync(_kill, self._find)
        if self.exit_code is None:
            with anyio.move_on_after(KILL_S):
                await self._process.wait()
        return killed

    def _find(self) -> list[psutil.Process]:
        return find_tree(self.pid, self.started_at, self.launch_id, session=True)


@asynccontextmanager
async def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, launch_id: str
) -> AsyncGenerator[Child]:
    """A child process with pipes on all three standard streams, ended with its whole tree on exit.

    It leads a session and process group of its own and carries the launch id in its environment.

    Raises:
        SpawnError: it could not be started.
    """
    try:
        process = await anyio.open_process(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**env, LAUNCH_ID: launch_id},
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SpawnError(await _why_not(argv[0], cwd, error)) from error
    try:
        started_at = await anyio.to_thread.run_sync(_created_at, process.pid)
        child = Child(process, launch_id, started_at)
    except BaseException:
        process.kill()
        raise
    try:
        yield child
    finally:
        with anyio.CancelScope(shield=True):
            await child.end(term_s=TERM_S)
            await process.aclose()


async def end_leftover(pid: int, started_at: float, launch_id: str) -> int:
    """Ends what is left of a process tree that an earlier life of the daemon started.

    Finds the process by (pid, creation time), its descendants, and every process that carries
    `CLOUDAGENT_LAUNCH_ID=<launch_id>` in its environment.

    Returns:
        How many processes were ended. Returns within about 5 s in any case.
    """

    def find() -> list[psutil.Process]:
        # No search by session: once its leader is gone, the session's number may be another's.
        return find_tree(pid, started_at, launch_id, session=False)

    return await anyio.to_thread.run_sync(_kill, find)


def find_tree(
    pid: int, started_at: float, launch_id: str, *, session: bool
) -> list[psutil.Process]:
    """The living processes of a launch, in no order; zombies are not living."""
    found: dict[int, psutil.Process] = {}
    mark = f"{LAUNCH_ID}={launch_id}".encode()
    for other in psutil.pids():
        if (session and _session_of(other) == pid) or _carries(other, mark):
            _add(found, other)
    root = _process(pid)
    if root is not None and abs(root.create_time() - started_at) < 1.0:
        _add(found, pid)
    for process in list(found.values()):
        with suppress(psutil.Error):
            for descendant in process.children(recursive=True):
                found.setdefault(descendant.pid, descendant)
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def _add(found: dict[int, psutil.Process], pid: int) -> None:
    process = _process(pid)
    if process is not None:
        found[pid] = process


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _carries(pid: int, mark: bytes) -> bool:
    """Whether `mark` is one of the process's environment variables."""
    if psutil.LINUX:
        try:
            # Read at once, not through psutil's parser: this runs over every process there is.
            return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        name, _, value = mark.decode().partition("=")
        return psutil.Process(pid).environ().get(name) == value
    except (psutil.Error, OSError):
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _terminate(find: Callable[[], list[psutil.Process]]) -> None:
    for process in find():
        with suppress(psutil.Error):
            process.terminate()


def _kill(find: Callable[[], list[psutil.Process]]) -> int:
    """Kills until nothing is found. Blocks; for a worker thread."""
    deadline = time.monotonic() + KILL_S
    killed: set[int] = set()
    while time.monotonic() < deadline:
        stopped = _freeze(find, deadline)
        if not stopped:
            return len(killed)
        for process in stopped.values():
            with suppress(psutil.Error):
                process.kill()
        killed |= stopped.keys()
        time.sleep(0.005)  # until the kernel has ended them; there is nothing to wait on
    logger.error("processes survived SIGKILL", extra={"action": "kill", "pids": sorted(killed)})
    return len(killed)


def _freeze(find: Callable[[], list[psutil.Process]], deadline: float) -> dict[int, psutil.Process]:
    """Stops everything that is found, again and again until a search brings nothing new.

    One snapshot would miss what is born between the search and the kill; a stopped process bears
    no children.
    """
    stopped: dict[int, psutil.Process] = {}
    while time.monotonic() < deadline:
        fresh = [process for process in find() if process.pid not in stopped]
        if not fresh:
            break
        for process in fresh:
            with suppress(psutil.Error):
                process.suspend()
            stopped[process.pid] = process
    return stopped


def _created_at(pid: int) -> float:
    process = _process(pid)
    return process.create_time() if process is not None else time.time()


async def _receive(stream: anyio.abc.ByteReceiveStream | None) -> bytes:
    assert stream is not None
    try:
        return await stream.receive(CHUNK_BYTES)
    except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return b""


async def _why_not(program: str, cwd: Path, error: Exception) -> str:
    # A missing folder and a missing program raise the same error: look at the folder first.
    if not await anyio.Path(cwd).is_dir():
        return f"The agent's folder {cwd} does not exist. Create it, or set another `cwd`."
    if isinstance(error, FileNotFoundError):
        return f"{program} does not exist. Install it, or correct the agent's command."
    if isinstance(error, PermissionError):
        return f"{program} may not be executed by this user."
    return f"{program} could not be started: {error}"
