"""Child processes: each in its own session, and never outliving the scope that started it.

Each has a guardian (guardian.py) for a parent, which ends the whole tree when the daemon dies. While
the daemon lives it does so itself, and better: it asks first, and knows what to look for.

A coding agent's tools put themselves into sessions of their own, where a signal to its process
group does not reach them. So a process tree is found three ways: by walking from the guardian,
which on Linux adopts the orphans; by the session that was made for it; and by
`CLOUDAGENT_LAUNCH_ID` in the environment, which everything it starts inherits.
"""

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
import psutil

from cloudagent_daemon.leash import NO_MASK, GuardianError, Leash, Mask, MaskError, leash

logger = logging.getLogger(__name__)

LAUNCH_ID: Final = "CLOUDAGENT_LAUNCH_ID"
#: Bytes taken from a pipe at once; with asyncio's own buffer the bound of what a child may pile up.
CHUNK_BYTES: Final = 65_536
#: How long an ordinary end by SIGTERM may take before the tree is killed (security.md D-5).
TERM_S: Final = 9.0
#: How long the killing itself may take; what survives SIGKILL for so long is stuck in the kernel.
KILL_S: Final = 5.0
_QUIET_SEARCHES: Final = 3
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_PAUSE_S: Final = 0.05


class SpawnError(Exception):
    """The process could not be started; `str()` says why, for a person."""


@dataclass
class Ladder:
    """How a tree is ended: TERM, a wait, KILL."""

    term_s: float = TERM_S
    #: Once set, nobody waits any more.
    hurry: anyio.Event = field(default_factory=anyio.Event)


class Child:
    """A running process; made by `spawn`, which also ends it."""

    def __init__(self, held: Leash, launch_id: str, started_at: float, ladder: Ladder) -> None:
        self._leash = held
        self._ladder = ladder
        self._streams = held.process
        self.pid = held.pid
        self.launch_id = launch_id
        #: When it was created, in Unix seconds as psutil tells it.
        self.started_at = started_at
        #: Set when its end is not waited for any more: it is killed.
        self.hurry = anyio.Event()

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._leash.exit_code

    async def wait(self) -> int:
        return await self._leash.wait()

    async def feed(self, data: bytes) -> None:
        """Writes all of standard input and closes it; a child that does not read is no error."""
        await self.write(data)
        await self.close_stdin()

    async def write(self, data: bytes) -> None:
        """Writes to standard input and leaves it open; a child that does not read is no error."""
        stdin = self._streams.stdin
        assert stdin is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            if data:
                await stdin.send(data)

    async def close_stdin(self) -> None:
        stdin = self._streams.stdin
        assert stdin is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await stdin.aclose()

    @property
    def root(self) -> int:
        """Of whom all that it started is a descendant: on Linux its guardian, orphans included."""
        return self._leash.guardian or self.pid

    async def read_stdout(self) -> bytes:
        """The next piece of standard output; empty at its end."""
        return await _receive(self._streams.stdout)

    async def read_stderr(self) -> bytes:
        """The next piece of standard error; empty at its end."""
        return await _receive(self._streams.stderr)

    async def interrupt(self, sent: signal.Signals, wait_s: float) -> bool:
        """Sends one signal to the process itself; returns whether it ended in time."""
        if self.exit_code is None and _is(self.pid, self.started_at):
            with suppress(OSError):
                os.kill(self.pid, sent)
        with anyio.move_on_after(wait_s):
            await self.wait()
        return self.exit_code is not None

    async def end(self, *, at_once: bool = False, asked_s: float = 0.0) -> int:
        """Ends the whole tree: TERM, the ladder's wait, then STOP and KILL until nothing is left.

        With the process already gone, or `at_once`, it starts at STOP and KILL. Safe to call more
        than once. A shield of the caller's protects it; it takes the ladder's `term_s` + `KILL_S` at
        most, and `2 * LEAVE_S` more with a guardian that hangs.

        Args:
            at_once: without the TERM.
            asked_s: how long it was asked to end before, in some other way: of the ladder's wait.

        Returns:
            How many processes were killed.
        """
        term_s = self._ladder.term_s - asked_s
        hurried = self.hurry.is_set() or self._ladder.hurry.is_set()
        if self.exit_code is None and term_s > 0 and not at_once and not hurried:
            await anyio.to_thread.run_sync(_terminate, self._find)
            with anyio.move_on_after(term_s):
                await self.unless_hurried(self.wait)
        killed = await anyio.to_thread.run_sync(_kill, self._find)
        await self._leash.dismiss(cleaned_up=True)
        return killed

    async def sweep(self, spared: Collection[int]) -> int:
        """Kills what it has started, but for `spared` and what these come from; it lives on itself.

        Returns:
            How many processes were killed. Takes `KILL_S` at most.
        """
        return await anyio.to_thread.run_sync(_sweep, self._find, self.pid, frozenset(spared))

    async def unless_hurried(self, work: Callable[[], Awaitable[object]]) -> None:
        """Waits for `work`, unless nobody waits any more, for this child or for any."""
        async with anyio.create_task_group() as tasks:

            async def watch(hurry: anyio.Event) -> None:
                await hurry.wait()
                tasks.cancel_scope.cancel()

            for hurry in (self.hurry, self._ladder.hurry):
                tasks.start_soon(watch, hurry)
            await work()
            tasks.cancel_scope.cancel()

    def _find(self, freeze: bool) -> list[psutil.Process]:
        return find_tree(
            self.pid,
            self.started_at,
            self.launch_id,
            guardian=self._leash.guardian,
            session=True,
            freeze=freeze,
        )


@asynccontextmanager
async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    launch_id: str,
    mask: Mask = NO_MASK,
    ladder: Ladder | None = None,
) -> AsyncGenerator[Child]:
    """A child process with pipes on all three standard streams, ended with its whole tree on exit.

    It leads a session and process group of its own, carries the launch id in its environment, and
    does not see what the mask hides.

    Raises:
        SpawnError: it could not be started.
    """
    async with AsyncExitStack() as stack:
        try:
            held = await stack.enter_async_context(
                leash(argv, env=env, cwd=cwd, launch_id=launch_id, mask=mask)
            )
        except (OSError, ValueError) as error:
            mine = isinstance(error, FileNotFoundError)  # it was not looked for the program yet
            program = sys.executable if mine else argv[0]
            raise SpawnError(await _why_not(program, cwd, error)) from error
        try:
            pid = await held.started()
        except OSError as error:
            raise SpawnError(await _why_not(argv[0], cwd, error)) from error
        except MaskError as error:
            raise SpawnError(
                f"The daemon's own files could not be hidden from it: {error}. It was not started; "
                "see `cloudagent-daemon doctor`."
            ) from error
        except GuardianError as error:
            raise SpawnError(str(error)) from error
        started_at = await anyio.to_thread.run_sync(_created_at, pid)
        child = Child(held, launch_id, started_at, ladder or Ladder())
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                await child.end()


async def end_leftover(pid: int, started_at: float, launch_id: str) -> int:
    """Ends what is left of a process tree that an earlier life of the daemon started.

    Finds the process by (pid, creation time), its descendants, and every process that carries
    `CLOUDAGENT_LAUNCH_ID=<launch_id>` in its environment.

    Returns:
        How many processes were ended. Returns within about 5 s in any case.
    """

    def find(freeze: bool) -> list[psutil.Process]:
        # No search by session: once its leader is gone, the session's number may be another's.
        return find_tree(pid, started_at, launch_id, session=False, freeze=freeze)

    return await anyio.to_thread.run_sync(_kill, find)


def find_tree(
    pid: int,
    started_at: float,
    launch_id: str,
    *,
    session: bool,
    guardian: int | None = None,
    freeze: bool = False,
) -> list[psutil.Process]:
    """The living processes of a launch, in no order; zombies are not living.

    With `freeze` each is stopped in the moment it is found.
    """
    found: dict[int, psutil.Process] = {}
    mark = f"{LAUNCH_ID}={launch_id}".encode()
    # The newest first: what lives briefly is most likely among them, and still there.
    for other in reversed(psutil.pids()):
        if (session and _session_of(other) == pid) or _carries(other, mark):
            _add(found, other, freeze)
    if _is(pid, started_at):
        _add(found, pid, freeze)
    _add_descendants(found, guardian, freeze)
    return [process for process in found.values() if _lives(process)]


def _add_descendants(found: dict[int, psutil.Process], guardian: int | None, freeze: bool) -> None:
    """What is stopped bears no more children, so the look that sees nobody new is the last one.

    Each look is one over all processes and goes down by a generation: one for each parent takes seconds.
    """
    seen = {*found} if guardian is None else {*found, guardian}
    while seen and (fresh := {pid for pid in psutil.pids() if _parent_of(pid) in seen} - seen):
        seen |= fresh
        for pid in fresh:
            _add(found, pid, freeze)


def _parent_of(pid: int) -> int:
    """0 if it is gone."""
    try:
        if psutil.LINUX:
            # After the name, which may hold anything: state, parent (proc_pid_stat(5)). As in `_carries`.
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            return int(stat[stat.rindex(b")") + 1 :].split()[1])
        return psutil.Process(pid).ppid()
    except (psutil.Error, OSError):
        return 0


def _add(found: dict[int, psutil.Process], pid: int, freeze: bool) -> None:
    if pid == os.getpid():
        return
    if freeze:
        with suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
    process = _process(pid)
    if process is not None:
        found[pid] = process


def _is(pid: int, started_at: float) -> bool:
    """Whether the process of this number is still the one that was created then."""
    try:
        process = _process(pid)
        return process is not None and abs(process.create_time() - started_at) < 1.0
    except (psutil.Error, OSError):
        return False


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


def _terminate(find: Callable[[bool], list[psutil.Process]]) -> None:
    for process in _found(find, freeze=False):
        with suppress(psutil.Error):
            process.terminate()


def _found(find: Callable[[bool], list[psutil.Process]], *, freeze: bool) -> list[psutil.Process]:
    """What `find` finds, as soon as there is a descriptor to look with, for `KILL_S` at most."""
    deadline = time.monotonic() + KILL_S
    while True:
        try:
            return find(freeze)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                raise
            if time.monotonic() > deadline:
                logger.error("no descriptor to look for processes", extra={"action": "kill"})  # noqa: TRY400 - the trace tells nothing more
                return []
            time.sleep(_PAUSE_S)


def _kill(find: Callable[[bool], list[psutil.Process]]) -> int:
    """Stops and kills until nothing is found. Blocks; for a worker thread.

    One search would miss what is born while it goes on; what is stopped bears no children. A few
    searches that find nothing stand for certainty: a process may fork and leave between two.
    """
    deadline = time.monotonic() + KILL_S
    killed: set[int] = set()
    quiet = 0
    while quiet < _QUIET_SEARCHES:
        if time.monotonic() > deadline:
            pids = sorted(killed)
            logger.error("processes survived SIGKILL", extra={"action": "kill", "pids": pids})
            break
        stopped = _found(find, freeze=True)
        quiet = 0 if stopped else quiet + 1
        for process in stopped:
            with suppress(psutil.Error):
                process.kill()
        killed |= {process.pid for process in stopped}
    return len(killed)


def _sweep(find: Callable[[bool], list[psutil.Process]], root: int, spared: frozenset[int]) -> int:
    """Kills what is found, but for `root`, `spared` and who stands between them. Blocks."""
    deadline = time.monotonic() + KILL_S
    stays = {root, *spared, *(pid for one in spared for pid in _ancestors(one))}
    killed: set[int] = set()
    while found := [one for one in _found(find, freeze=False) if one.pid not in stays]:
        if time.monotonic() > deadline:
            pids = sorted(one.pid for one in found)
            logger.error("processes survived SIGKILL", extra={"action": "sweep", "pids": pids})
            break
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        killed |= {process.pid for process in found}
    return len(killed)


def _ancestors(pid: int) -> list[int]:
    try:
        return [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.Error:
        return []


def _created_at(pid: int) -> float:
    try:
        process = _process(pid)
        return process.create_time() if process is not None else time.time()
    except (psutil.Error, OSError):
        return time.time()


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
