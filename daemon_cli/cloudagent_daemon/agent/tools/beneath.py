"""Opens files for reading inside one folder, and nothing else, whatever a path tries.

On Linux the kernel does it in one step: `openat2` with RESOLVE_BENEATH, which also follows links
that stay inside and cannot be raced by a rename. Elsewhere every component is opened from its
parent without following links. Either way the check is made on what was opened, not on a name.
"""

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from pathlib import Path, PurePosixPath
from typing import Final

#: openat2(2); one number on all architectures that Linux numbers alike (not alpha).
_SYS_OPENAT2: Final = 437
_RESOLVE: Final = 0x02 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH, <linux/openat2.h>
#: NONBLOCK: a pipe without a writer must not hold us until it is refused.
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: A rename on the way makes the kernel give up; it asks us to try again.
_TRIES: Final = 100


class RefusedError(Exception):
    """The path cannot be read; `str()` says why."""


class Folder:
    """A folder that is held open; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def open(self, path: str) -> int:
        """A descriptor of a regular file or a folder, to be closed by the caller.

        Args:
            path: relative to the folder, or absolute and below it.

        Raises:
            RefusedError: there is none, it lies outside, or it is something else.
        """
        relative = self.relative(path)
        try:
            descriptor = _open_beneath(self._fd, relative)
        except OSError as error:
            raise RefusedError(f"{path}: {_why(error)}") from error
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            os.close(descriptor)
            raise RefusedError(f"{path}: neither a file nor a folder")
        return descriptor

    def relative(self, path: str) -> str:
        """The path as seen from the folder; says nothing yet of where links lead.

        Raises:
            RefusedError: it lies elsewhere by its very name.
        """
        if "\0" in path:
            raise RefusedError("a path has no NUL character")
        pure = PurePosixPath(path or ".")
        if not pure.is_absolute():
            return str(pure)
        try:
            return str(pure.relative_to(self.root))
        except ValueError:
            raise RefusedError(f"{path}: outside of {self.root}") from None


def _open_beneath(folder: int, relative: str) -> int:
    if sys.platform == "linux" and platform.machine() != "alpha":
        try:
            return _openat2(folder, relative)
        except OSError as error:
            # Before Linux 5.6 there is no such call, and some sandboxes forbid it.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    return _walk(folder, relative)


def _openat2(folder: int, relative: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("=QQQ", _READ, 0, _RESOLVE)  # struct open_how
    number = errno.EAGAIN
    for _ in range(_TRIES):
        descriptor: int = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), folder, os.fsencode(relative), how, ctypes.c_size_t(24)
        )
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


def _walk(folder: int, relative: str) -> int:
    """As `_openat2`, but no link is followed and `..` is not understood."""
    parts = [part for part in PurePosixPath(relative).parts if part != "."]
    if ".." in parts:
        raise OSError(errno.EXDEV, "")
    current = os.dup(folder)
    try:
        for index, part in enumerate(parts):
            kind = os.O_DIRECTORY if index < len(parts) - 1 else 0
            opened = os.open(part, _READ | os.O_NOFOLLOW | kind, dir_fd=current)
            os.close(current)
            current = opened
    except BaseException:
        os.close(current)
        raise
    return current


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EXDEV:
            return "leads out of the folder"
        case errno.ELOOP:
            return "a link that may not be followed"
        case errno.ENXIO | errno.ENODEV:
            return "neither a file nor a folder"
        case _:
            return os.strerror(error.errno or 0)
