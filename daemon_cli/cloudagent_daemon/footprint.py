"""How much memory a tree of processes takes, and how much it may: in bytes.

Asked every two seconds of each run, so on Linux it reads a few lines of /proc for each process of the
tree and no other. Resident memory counts what several processes share once for each of them, which may
be most of it in a tree that forked; so what looks like too much is looked at again, by shares (proc(5),
`Pss`). Where that cannot be had, the larger figure stands.
"""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from cloudagent_daemon.config import Limits

_MB = 1_000_000


def most(limits: Limits) -> int | None:
    """What the processes of one run may take together; null if nobody asks."""
    asked = [limits.run_memory_mb * _MB] if limits.run_memory_mb else []
    if limits.run_memory_percent:
        asked.append(int(_machine() * limits.run_memory_percent / 100))
    return min(asked, default=None)


def exceeds(root: int, limit: int) -> int | None:
    """What the living descendants of a process take, if that is more than `limit`; else null."""
    pids = descendants(root)
    if sum(_resident(pid) for pid in pids) <= limit:
        return None
    taken = sum(_share(pid) for pid in pids)
    return taken if taken > limit else None


def descendants(root: int) -> list[int]:
    """All processes below `root`, without itself."""
    if not psutil.LINUX:
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(root).children(recursive=True)]
        return []
    found = _children(root)
    for pid in found:  # grows
        found += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # gone
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - a Path for each costs more than the rest
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii")
            found += map(int, text.split())
    return found


def _resident(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0  # gone


def _share(pid: int) -> int:
    if psutil.LINUX:
        with suppress(OSError, ValueError, IndexError):
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
            [row] = [row for row in rows if row.startswith("Pss:")]
            return int(row.split()[1]) * 1_024
    return _resident(pid)


def _machine() -> int:
    """The memory of this machine, or of the control groups (v2) that hold this process."""
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
        [inner] = [line[4:] for line in lines if line.startswith("0::/")]
        folder = Path("/sys/fs/cgroup") / inner
        while folder != folder.parent and folder.name != "fs":
            with suppress(OSError, ValueError):  # `max`, or not the root's
                total = min(total, int((folder / "memory.max").read_text("ascii")))
            folder = folder.parent
    return total
