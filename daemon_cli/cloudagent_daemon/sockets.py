"""Unix sockets of the daemon: where they are, and who is at the other end. Standard library only."""

import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

#: Bytes that a Unix socket's path may have (sun_path, less its closing NUL).
MAX_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107


def place(name: str, state_dir: Path | None, runtime_dir: Path) -> tuple[Path, Path | None]:
    """Where a socket goes, and the pointer file that names it if it is not where people look.

    Args:
        name: of the socket's file.
        state_dir: where people look; None in one-shot mode.
        runtime_dir: a private folder with a short path, for when that one is too long.
    """
    folders = [folder for folder in (state_dir, runtime_dir) if folder is not None]
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = next((folder / name for folder in folders if _fits(folder / name)), None)
    if path is None:
        import tempfile

        path = Path(tempfile.mkdtemp(prefix="cloudagent-", dir="/tmp")) / name
    if state_dir is None:
        return path, None
    pointer = _pointer(name, state_dir)
    if path.parent == state_dir:
        pointer.unlink(missing_ok=True)  # of a life that was killed
        return path, None
    pointer.write_text(f"{path}\n", encoding="utf-8")
    return path, pointer


def find(name: str, state_dir: Path) -> Path:
    """Where the socket of that name is, if there is one."""
    try:
        return Path(_pointer(name, state_dir).read_text("utf-8").rstrip("\n"))
    except (OSError, ValueError):  # none, or no path: then nobody answers there, which is said
        return state_dir / name


def clear(path: Path, pointer: Path | None, *keep: Path | None) -> None:
    """Takes away what `place` has made, and its folder unless it is one of `keep`."""
    for file in filter(None, (path, pointer)):
        file.unlink(missing_ok=True)
    if path.parent not in keep:
        path.parent.rmdir()


def peer_of(sock: socket.socket) -> tuple[int | None, int]:
    """Process id (None where the system does not tell) and user id at the other end."""
    if sys.platform == "darwin":
        # <sys/un.h>: SOL_LOCAL 0, LOCAL_PEERCRED 1 (struct xucred: version, uid, ...), PEERPID 2.
        _, uid = struct.unpack("=Ii", sock.getsockopt(0, 1, 76)[:8])
        return sock.getsockopt(0, 2), uid
    pid, uid, _ = struct.unpack("=3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


def _pointer(name: str, state_dir: Path) -> Path:
    return state_dir / f"{name}.path"
