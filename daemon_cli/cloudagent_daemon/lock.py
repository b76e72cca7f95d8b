"""One daemon per profile: a file lock that is held for life. The pid file is for people.

`holder` is for commands that must be quick: it needs the standard library only.
"""

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: A `status` that looks at the same moment holds the lock for some microseconds.
_PATIENCE_S: Final = 0.5


class AlreadyRunningError(Exception):
    """Another process has the lock."""


@contextmanager
def hold(lock_file: Path, pid_file: Path) -> Generator[int]:
    """Holds the lock, and the pid file with it; gives the lock file's inode.

    Raises:
        AlreadyRunningError: another daemon has it.
    """
    from filelock import FileLock, Timeout

    lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_file.parent.chmod(0o700)
    lock = FileLock(lock_file, timeout=_PATIENCE_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise AlreadyRunningError from error
    try:
        pid_file.write_text(f"{os.getpid()}\n", "utf-8")
        yield lock_file.stat().st_ino
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def holder(lock_file: Path, pid_file: Path) -> int | None:
    """The pid of the daemon that is running, or None. 0 if it runs but has not said its pid yet."""
    try:
        handle = os.open(lock_file, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return _pid(pid_file)
    else:
        return None
    finally:
        os.close(handle)


def still_ours(lock_file: Path, inode: int) -> bool:
    """Whether the path still leads to the locked file; if not, another daemon could lock anew."""
    try:
        return lock_file.stat().st_ino == inode
    except FileNotFoundError:
        return False


def _pid(pid_file: Path) -> int:
    try:
        return int(pid_file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return 0
