"""One daemon per profile: a file lock that is held for life. The pid file is for people.

The folder that the file lies in is locked too, where the file system can: people delete lock files,
and a second daemon beside the first would work with the same memory on the disk.

`holder` is for commands that must be quick: it needs the standard library only.
"""

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from filelock import FileLock

#: A `status` that looks at the same moment holds the lock for some microseconds.
_PATIENCE_S: Final = 0.5
_POLL_S: Final = 0.01
_TAKEN: Final = (errno.EWOULDBLOCK, errno.EACCES)


class AlreadyRunningError(Exception):
    """Another process has the lock."""


class Held:
    """The lock while it is ours; made by `hold`."""

    def __init__(self, file: Path, pid_file: Path, lock: "FileLock", folder: int | None) -> None:
        self.file = file
        self._folder = folder
        self._pid_file = pid_file
        self._lock = lock
        self._inode = file.stat().st_ino
        self._say_pid()

    def is_whole(self) -> bool:
        """Whether the path still leads to the locked file; if not, another daemon could lock anew."""
        try:
            return self.file.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def take_anew(self) -> bool:
        """Locks the file that is there now, or a new one; False if another daemon has it.

        Raises:
            OSError: it cannot be made; it may be tried again.
        """
        from filelock import Timeout

        lock = _lock(self.file)
        try:
            lock.acquire()
        except Timeout:
            return False
        inode = self.file.stat().st_ino
        self._lock.release(force=True)
        self._lock, self._inode = lock, inode
        self._say_pid()
        return True

    def release(self) -> None:
        """Unless another daemon has taken it: then the files are that one's."""
        if self.is_whole():
            self._pid_file.unlink(missing_ok=True)
        self._lock.release()
        if self._folder is not None:
            os.close(self._folder)

    def _say_pid(self) -> None:
        self._pid_file.write_text(f"{os.getpid()}\n", "utf-8")


@contextmanager
def hold(lock_file: Path, pid_file: Path) -> Generator[Held]:
    """Holds the lock, and the pid file with it.

    Raises:
        AlreadyRunningError: another daemon has it.
    """
    from filelock import Timeout

    lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_file.parent.chmod(0o700)
    folder = _lock_folder(lock_file.parent)
    lock = _lock(lock_file)
    try:
        lock.acquire()
    except Timeout as error:
        if folder is not None:
            os.close(folder)
        raise AlreadyRunningError from error
    held = Held(lock_file, pid_file, lock, folder)
    try:
        yield held
    finally:
        held.release()


def _lock(file: Path) -> "FileLock":
    from filelock import FileLock

    # Not of one thread only: it is taken anew in another one than it was taken in.
    return FileLock(file, timeout=_PATIENCE_S, mode=0o600, thread_local=False)


def _lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where this file system has no such locks.

    Raises:
        AlreadyRunningError: another daemon has it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = error.errno in _TAKEN
            if taken and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            os.close(handle)
            if taken:
                raise AlreadyRunningError from error
            return None
        return handle


def holder(lock_file: Path, pid_file: Path) -> int | None:
    """The pid of the daemon that is running, or None. 0 if it runs but has not said its pid yet."""
    if _is_taken(lock_file) or _is_taken(lock_file.parent):
        return _pid(pid_file)
    return None


def _is_taken(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return True
        if path.is_dir():
            return False  # a file system without such locks
        raise
    finally:
        os.close(handle)
    return False


def _pid(pid_file: Path) -> int:
    try:
        return int(pid_file.read_text("utf-8"))
    except (OSError, ValueError):  # not there yet, or no number: the lock alone is the truth
        return 0
