"""Whether this machine has room to start anything: memory, disk, file descriptors.

`judge` is the rule and looks at numbers only. `Guards` looks at the machine in each round, and once
more before each start; what is refused waits, and goes on by itself when there is room again.
"""

import errno
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
import psutil
from anyio.to_thread import run_sync

from cloudagent_daemon.config import Limits
from cloudagent_daemon.rounds import EVERY_S, Rounds

#: Descriptors that stay free for the daemon itself, and the share that may be in use.
SPARE_DESCRIPTORS: Final = 64
BUSY_PERCENT: Final = 80
#: What a run opens at most: its pipes, its guardian's socket, its agent's connections to the bridge.
RUN_DESCRIPTORS: Final = 16
#: Of a large disk no more than this is asked for: 2 % of 4 TB would be 80 GB, and no danger.
MOST_DISK_MB: Final = 5_000
#: What was too little must be exceeded by this before it counts as enough: no flapping at the edge.
_MARGIN: Final = 1.1
_MB: Final = 1_000_000

Name: TypeAlias = Literal["memory", "disk", "descriptors"]


@dataclass(frozen=True)
class Disk:
    """The file system that holds `path`; sizes in bytes."""

    path: str
    free: int
    total: int


@dataclass(frozen=True)
class Gauges:
    """What was seen of the machine and of this process."""

    #: Bytes that could be had without swapping.
    memory: int
    disks: tuple[Disk, ...]
    descriptors: int
    descriptors_limit: int


@dataclass(frozen=True)
class Guard:
    """How one thing stands against its limit; `value` and `limit` in bytes, or in descriptors."""

    name: Name
    #: `ok`, or why nothing is started: `memory_low`, `disk_low`, `descriptors_low`.
    state: str
    value: int
    limit: int
    #: For a person; empty if all is well.
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.state == "ok"


def judge(
    gauges: Gauges,
    limits: Limits,
    before: Sequence[Guard] = (),
    starting: int = 0,
    trouble: str | None = None,
) -> tuple[Guard, ...]:
    """One guard each for memory, disk and descriptors.

    What was too little `before` needs a margin now. `starting` are runs that were let in and may not
    have opened anything yet. `trouble` is why a disk takes nothing at all.
    """
    low = {guard.name for guard in before if not guard.ok}
    return (
        _memory(gauges.memory, limits, _MARGIN if "memory" in low else 1.0),
        _disk(gauges.disks, limits, _MARGIN if "disk" in low else 1.0, trouble),
        _descriptors(gauges, starting, SPARE_DESCRIPTORS // 8 if "descriptors" in low else 0),
    )


def _memory(available: int, limits: Limits, margin: float) -> Guard:
    limit = int(limits.min_memory_mb * _MB * margin)
    if available >= limit:
        return Guard("memory", "ok", available, limit)
    detail = f"{_mb(available)} of memory are available, {_mb(limit)} are needed to start an agent"
    return Guard("memory", "memory_low", available, limit, detail)


def _disk(disks: Sequence[Disk], limits: Limits, margin: float, trouble: str | None) -> Guard:
    guards = [_one_disk(disk, limits, margin) for disk in disks]
    # The one with the least to spare stands for all.
    least = min(guards, key=lambda guard: guard.value - guard.limit, default=_NO_DISK)
    if trouble and least.ok:
        return replace(least, state="disk_low", detail=f"nothing can be written: {trouble}"[:400])
    return least


_NO_DISK: Final = Guard("disk", "ok", 0, 0)


def _one_disk(disk: Disk, limits: Limits, margin: float) -> Guard:
    share = min(disk.total * limits.min_disk_percent / 100, MOST_DISK_MB * _MB)
    limit = int(max(limits.min_disk_mb * _MB, share) * margin)
    if disk.free >= limit:
        return Guard("disk", "ok", disk.free, limit)
    detail = f"{_mb(disk.free)} are free on the disk of {disk.path}, {_mb(limit)} are needed"
    return Guard("disk", "disk_low", disk.free, limit, detail)


def _descriptors(gauges: Gauges, starting: int, margin: int) -> Guard:
    most = gauges.descriptors_limit
    limit = max(0, min(most * BUSY_PERCENT // 100, most - SPARE_DESCRIPTORS) - margin)
    used = gauges.descriptors + starting * RUN_DESCRIPTORS
    if used + RUN_DESCRIPTORS <= limit:
        return Guard("descriptors", "ok", used, limit)
    detail = f"{used} files are open of {most} that the system allows; an agent needs some too"
    return Guard("descriptors", "descriptors_low", used, limit, detail)


def _mb(size: int) -> str:
    return f"{size / _MB:,.0f} MB"


class Guards:
    """The guards of one daemon.

    Args:
        folders: where it and its agents write.
        look_own: memory and descriptors; quick, and asked in the event loop too.
        look_disks: the disks of folders; may block.
        rounds: when to look.
    """

    def __init__(
        self,
        limits: Limits,
        folders: Sequence[Path],
        *,
        look_own: "Callable[[], Own] | None" = None,
        look_disks: "Callable[[Sequence[Path]], tuple[Disk, ...]] | None" = None,
        rounds: Rounds,
    ) -> None:
        self._limits = limits
        self._folders = folders
        self._look_own = look_own or own
        self._look_disks = look_disks or disks
        self._rounds = rounds
        self._disks: tuple[Disk, ...] = ()
        #: When runs were let in that may not have opened yet what they need; monotonic seconds.
        self._let_in: list[float] = []
        self._trouble: str | None = None
        self.all: tuple[Guard, ...] = ()
        #: Set, and replaced, when a guard begins or ceases to refuse.
        self.changed = anyio.Event()

    @property
    def refusing(self) -> list[Guard]:
        """Why nothing is started at the moment; empty if something may be."""
        return [guard for guard in self.all if not guard.ok]

    def admit(self) -> bool:
        """Whether one more run may start now; it then counts as starting."""
        self._judge()
        if self.refusing:
            return False
        self._let_in.append(time.monotonic())
        return True

    def trouble(self, why: str | None) -> None:
        """What was to be written is refused by a disk, or no more; whatever its free space says."""
        self._trouble = why
        self._judge()

    async def watch(self) -> None:
        """Looks at the machine for ever."""
        self._disks = await run_sync(self._look_disks, self._folders)
        while True:
            self._let_in.clear()
            self._judge()
            await self._rounds.until(self._differs)

    def report(self) -> list[dict[str, Any]]:
        """For `status`: `{name, state, value, limit, detail}` each."""
        self._judge()
        return [asdict(guard) for guard in self.all]

    def _differs(self) -> bool:
        """Looks anew, in a thread; whether another guard refuses than before."""
        self._disks = self._look_disks(self._folders)
        return _states(self._judged(starting=0)) != _states(self.all)

    def _judge(self) -> None:
        since = time.monotonic() - EVERY_S
        self._let_in = [at for at in self._let_in if at > since]
        before, self.all = self.all, self._judged(len(self._let_in))
        if _states(before) != _states(self.all):
            self.changed.set()
            self.changed = anyio.Event()

    def _judged(self, starting: int) -> tuple[Guard, ...]:
        memory, descriptors, limit = self._look_own()
        gauges = Gauges(memory, self._disks, descriptors, limit)
        return judge(gauges, self._limits, self.all, starting, self._trouble)


def _states(guards: Sequence[Guard]) -> list[str]:
    return [guard.state for guard in guards]


#: Available memory in bytes, open descriptors, and how many may be open.
Own: TypeAlias = tuple[int, int, int]


def own() -> Own:
    """What the kernel says of memory and of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    try:
        return _available_memory(), psutil.Process().num_fds(), limit
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return sys.maxsize, limit, limit  # not even a descriptor to look with


def disks(folders: Sequence[Path]) -> tuple[Disk, ...]:
    """The disks that hold the folders, each once; one that cannot be asked is left out."""
    found: dict[int, Disk] = {}
    for folder in folders:
        with suppress(OSError):
            space = os.statvfs(folder)
            free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
            found.setdefault(folder.stat().st_dev, Disk(str(folder), free, total))
    return tuple(found.values())


def _available_memory() -> int:
    available = psutil.virtual_memory().available
    return min([available, *_left_in_cgroups()])


def _left_in_cgroups() -> list[int]:
    """What the limits of this process's control groups (v2) leave, in a container or a slice."""
    left: list[int] = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
        [inner] = [line[4:] for line in lines if line.startswith("0::/")]
        folder = Path("/sys/fs/cgroup") / inner
        while folder != folder.parent and folder.name != "fs":
            left += _left_in(folder)
            folder = folder.parent
    return left


def _left_in(cgroup: Path) -> list[int]:
    with suppress(OSError, ValueError):
        most = (cgroup / "memory.max").read_text("utf-8").strip()
        if most == "max":
            return []
        used = int((cgroup / "memory.current").read_text("utf-8"))
        stat = dict(
            line.split() for line in (cgroup / "memory.stat").read_text("utf-8").splitlines()
        )
        # As the kernel would: file pages that nobody used lately are given back first.
        return [max(0, int(most) - used + int(stat.get("inactive_file", 0)))]
    return []
