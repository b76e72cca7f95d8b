"""The daemon's end of a guardian (guardian.py): one per child process that is started."""

import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Final

import anyio
import anyio.abc

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("guardian.py")
#: How long a guardian may take to start its child, on a machine that is very busy.
START_S: Final = 30.0
#: How long it may take to leave once its tree is gone; then it is killed.
LEAVE_S: Final = 2.0
_READ_BYTES: Final = 256
#: What the guardian says by `unmasked N`.
_UNMASKED: Final = {
    1: "this system does not allow user and mount namespaces",
    2: "a mount was refused",
    3: "its folder is one of them",
}


@dataclass(frozen=True)
class Mask:
    """What a child must not see, and what of it remains: absolute paths, of folders or files.

    A path that does not exist is passed over.
    """

    hidden: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()

    @property
    def words(self) -> list[str]:
        """As the guardian's command line has it."""
        counts = (len(self.hidden), len(self.kept))
        return [str(word) for word in (*counts, *self.hidden, *self.kept)]


NO_MASK: Final = Mask()


class MaskError(Exception):
    """The mask could not be put on, and so nothing was started; `str()` says why, for a person."""


class GuardianError(Exception):
    """The guardian itself did not start; `str()` says why, for a person."""


class Leash:
    """What a guardian told of its child. When this end is closed, the guardian ends the tree."""

    def __init__(self, control: socket.socket, process: anyio.abc.Process) -> None:
        self._control = control
        self._one_reader = anyio.Lock()
        self._told = b""
        self._eof = False
        self._dismissed = False
        #: The guardian's; its standard streams are those of the child.
        self.process = process
        self.pid = 0
        self._errno = 0
        self._unmasked = 0
        self._exit_code: int | None = None

    @property
    def guardian(self) -> int | None:
        """The guardian's pid while it is surely its own."""
        return self.process.pid if self.process.returncode is None else None

    @property
    def exit_code(self) -> int | None:
        """The child's; negative for a signal; None while it runs."""
        if not self._one_reader.locked():
            self._look()  # not beside a reader, who would wait on for what was taken from it
        if self._exit_code is None and self._eof:
            # Somebody killed the guardian. How the child ended nobody knows, if it did.
            logger.error("a guardian was killed", extra={"action": "guard", "pid": self.pid})
            self._exit_code = -signal.SIGKILL
        return self._exit_code

    async def started(self) -> int:
        """The child's pid.

        Raises:
            OSError: the child could not be started.
            MaskError: it would have seen what it must not.
            GuardianError: the guardian could not be started.
        """
        with anyio.move_on_after(START_S):
            await self._until(lambda: bool(self.pid or self._errno or self._unmasked or self._eof))
        if self._unmasked:
            raise MaskError(_UNMASKED.get(self._unmasked, "for an unknown reason"))
        if self._errno:
            raise OSError(self._errno, os.strerror(self._errno))
        if not self.pid:
            raise GuardianError(await self._why())
        return self.pid

    async def wait(self) -> int:
        """The child's exit code, at its end."""
        await self._until(lambda: self.exit_code is not None)
        assert self._exit_code is not None
        return self._exit_code

    async def dismiss(self, *, cleaned_up: bool) -> None:
        """Has the guardian end what is left, and itself; one that hangs is killed.

        Args:
            cleaned_up: the tree was ended, as far as it could be found.
        """
        if not self._dismissed:
            self._dismissed = True
            if cleaned_up:
                with suppress(OSError):
                    self._control.send(b".")
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
        with anyio.move_on_after(LEAVE_S):
            await self._until(lambda: self._eof)
        if not self._eof:
            pid = self.process.pid
            logger.error("a guardian hung; killed", extra={"action": "guard", "pid": pid})
            with suppress(ProcessLookupError):
                self.process.kill()
            with anyio.move_on_after(LEAVE_S):
                await self._until(lambda: self._eof)

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._one_reader:
            self._look()
            while not reached():
                await anyio.wait_readable(self._control)
                self._look()

    def _look(self) -> None:
        """Takes what was said since the last look; does not wait."""
        try:
            while not self._eof:
                data = self._control.recv(_READ_BYTES)
                self._told += data
                self._eof = not data
        except BlockingIOError:
            pass
        except OSError:  # reset, or closed by us
            self._eof = True
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            word, number = line.split()
            if word == b"pid":
                self.pid = int(number)
            elif word == b"errno":
                self._errno = int(number)
            elif word == b"unmasked":
                self._unmasked = int(number)
            else:
                self._exit_code = int(number)

    async def _why(self) -> str:
        said = b""
        with anyio.move_on_after(LEAVE_S), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            assert self.process.stderr is not None
            said = await self.process.stderr.receive(_READ_BYTES * 16)
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return (
            f"The daemon's guardian process did not start: {last or 'it was killed, or too slow'}."
        )


@asynccontextmanager
async def leash(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, launch_id: str, mask: Mask = NO_MASK
) -> AsyncGenerator[Leash]:
    """A guardian that has been asked to start `argv`; ask `started` whether it did.

    Raises:
        OSError, ValueError: what was asked for is impossible.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            command = [sys.executable, "-I", "-S", str(PROGRAM), str(theirs.fileno())]
            process = await anyio.open_process(
                [*command, launch_id, env.get("LC_CTYPE", ""), *mask.words, *argv],
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=env,
                cwd=cwd,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        held = Leash(ours, process)
        try:
            yield held
        finally:
            with anyio.CancelScope(shield=True):
                await held.dismiss(cleaned_up=False)
                await process.aclose()
