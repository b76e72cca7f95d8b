"""What folders take on the disk, and whether they may be removed. Nothing in them is run or followed.

In particular no git: `git status` runs what a repository's configuration says (filters, fsmonitor), and
that an agent may have written. So a folder that holds a repository counts as one with work in it.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: After so long a look at a folder gives up, and its size is known as "at least".
LOOK_S: Final = 3.0
#: Names of folders that make their parent a repository, or a work tree.
_GIT: Final = ".git"


@dataclass(frozen=True)
class Size:
    """Bytes on the disk; hard links count once."""

    size_bytes: int
    #: Whether all of it was seen in time.
    complete: bool = True

    @property
    def shown(self) -> str:
        """`1.2 GB`, or `> 1.2 GB`."""
        return f"{'' if self.complete else '> '}{words(self.size_bytes)}"


def size_of(folder: Path, look_s: float = LOOK_S) -> Size:
    """What a folder takes, with all that is in it."""
    end = time.monotonic() + look_s
    total = 0
    seen: set[tuple[int, int]] = set()
    for entry in _walk(folder):
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        total += info.st_blocks * 512
        if time.monotonic() > end:
            return Size(total, complete=False)
    return Size(total)


def why_kept(folder: Path) -> str | None:
    """Why a folder must not be removed as a whole; null if it may be."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder of its own"
    device = folder.stat().st_dev
    if (folder / _GIT).exists():
        return f"{folder} is a git work tree, which may hold work that is nowhere else"
    for entry in _walk(folder):
        if entry.name == _GIT:
            where = Path(entry.path).parent
            return f"{where} is a git work tree, which may hold work that is nowhere else"
        try:
            if entry.stat(follow_symlinks=False).st_dev != device:
                return f"{entry.path} is on another disk"
        except OSError as error:
            return f"{entry.path} cannot be looked at: {error.strerror}"
        if entry.is_dir(follow_symlinks=False) and not os.access(entry.path, os.R_OK | os.X_OK):
            return f"{entry.path} cannot be looked into"
    return None


def words(size: int) -> str:
    """`0 B`, `12 kB`, `1.2 GB`."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1_000
    return (
        f"{value:.1f} {unit}" if value < 9.95 and unit not in ("B", "kB") else f"{value:.0f} {unit}"
    )


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All entries below a folder; links are not followed, and what cannot be read is left out."""
    left = [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
