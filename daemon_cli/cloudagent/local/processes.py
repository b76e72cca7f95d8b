"""The child processes of `up`: started in sessions of their own, ended for certain."""

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import anyio
import psutil
from anyio.abc import Process

from cloudagent import config
from cloudagent.errors import CloudAgentError, ConfigurationError

#: How often a child that starts is looked at.
POLL_S: Final = 0.05
#: For a clean end after each SIGTERM. The daemon drains on the first and cancels on the second.
_LADDER_S: Final = (2.0, 3.0)


class ChildDiedError(CloudAgentError):
    """A process that should live has ended."""


@dataclass
class Child:
    name: str
    process: Process
    log: Path
    #: Where this life's lines begin in the log.
    log_start: int

    @property
    def identity(self) -> tuple[int, float]:
        """What tells it from a later process with the same pid."""
        try:
            return self.process.pid, psutil.Process(self.process.pid).create_time()
        except psutil.NoSuchProcess:
            return self.process.pid, 0.0

    def death(self, what: str = "has ended") -> ChildDiedError:
        """The error that tells of its end, with the last lines of its log."""
        code = self.process.returncode
        ended = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit {code})"
        tail = "".join(f"\n        {line}" for line in self.tail())
        return ChildDiedError(
            f"the {self.name} {what}{ended}",
            why=f"the end of its log says:{tail}" if tail else "its log is empty",
            next_step=f"less {self.log}",
        )

    async def wait_for_line(self, wanted: str) -> str:
        """The first whole line of its log that contains `wanted`.

        Raises:
            ChildDiedError: it ended before.
        """
        while True:
            ended = self.process.returncode is not None  # before the look: its last words count
            for line in self._lines():
                if wanted in line and line.endswith("\n"):
                    return line.strip()
            if ended:
                raise self.death("could not be started")
            await anyio.sleep(POLL_S)

    def tail(self, count: int = 12) -> list[str]:
        return [line.rstrip("\n") for line in deque(self._lines(), maxlen=count)]

    def _lines(self) -> list[str]:
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace").splitlines(keepends=True)


def script(name: str) -> str:
    """Our own command, from the installation that this interpreter belongs to.

    Raises:
        ConfigurationError: it is not there.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigurationError(
            f"{name} is not installed",
            why=f"neither beside {sys.executable} nor on PATH",
            next_step="uv tool install 'cloudagent-daemon[backend]'",
        )
    return found


async def run_once(argv: Sequence[str], stdin: bytes = b"") -> bytes:
    """The standard output of a command that ends by itself.

    Raises:
        ChildDiedError: it failed.
    """
    with anyio.fail_after(30):
        done = await anyio.run_process(
            argv, input=stdin, check=False, env=config.child_environment()
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise ChildDiedError(
            f"`{Path(argv[0]).name} {argv[1]}` failed (exit {done.returncode})",
            why=said or "it said nothing",
            next_step=f"{Path(argv[0]).name} {argv[1]} --help",
        )
    return done.stdout


def _open_log(path: Path) -> BinaryIO:
    """A log to append to, for its owner's eyes."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


@asynccontextmanager
async def child(name: str, argv: Sequence[str], log: Path) -> AsyncGenerator[Child]:
    """A running child that writes into a log file; ended when the block is left."""
    with _open_log(log) as file:
        start = file.tell()
        # Its own session: Ctrl-C in the terminal reaches us only, and we end things in order.
        process = await anyio.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=config.child_environment(),
            start_new_session=True,
        )
    try:
        yield Child(name, process, log, start)
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def first_to_end(*children: Child) -> Child:
    """Wait until one of several children has ended."""
    ended: list[Child] = []

    async def wait(child: Child, scope: anyio.CancelScope) -> None:
        await child.process.wait()
        ended.append(child)
        scope.cancel()

    async with anyio.create_task_group() as tg:
        for one in children:
            tg.start_soon(wait, one, tg.cancel_scope)
    return ended[0]


async def _end(process: Process) -> None:
    family = _family(process.pid)
    for patience_s in _LADDER_S:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(patience_s):
                await process.wait()
    if process.returncode is None:
        kill([*_family(process.pid), *family])
        await process.wait()


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that descends from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # checks the create time: never a later process of that pid


def end_leftovers(identities: Iterable[tuple[int, float]]) -> int:
    """End what an `up` that was killed left behind; how many processes that were."""
    left: list[psutil.Process] = []
    for pid, born in identities:
        family = _family(pid)
        if family and abs(family[0].create_time() - born) < 1:
            left += family
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=3)
    kill(alive)
    psutil.wait_procs(alive, timeout=3)
    return len(left)
