"""What must be kept is tried until the disk takes it."""

import errno
from dataclasses import dataclass, field

import anyio
import pytest

from cloudagent_daemon.disk import Keeper, NotKeptError


@dataclass
class Disk:
    """Refuses writes with `error` for as long as it is set."""

    error: Exception | None = None
    tried: anyio.Event = field(default_factory=anyio.Event)

    async def write(self) -> str:
        self.tried.set()
        if self.error:
            raise self.error
        return "kept"

    async def refused(self, times: int) -> None:
        for _ in range(times):
            self.tried = anyio.Event()
            with anyio.fail_after(5):
                await self.tried.wait()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        NotKeptError("database or disk is full"),
    ],
)
async def test_a_full_disk_is_waited_for_and_told_once(error: Exception) -> None:
    told: list[str | None] = []
    keeper, disk, kept = Keeper(told.append), Disk(error), list[str]()

    async def write() -> None:
        kept.append(await keeper.kept(disk.write, retry_s=0.001))

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(write)
        await disk.refused(5)
        assert kept == []
        assert told == [str(error)]
        disk.error = None
    assert kept == ["kept", "kept"]
    assert told == [str(error), None]


async def test_whoever_gives_up_does_not_leave_the_disk_full() -> None:
    told: list[str | None] = []
    keeper, disk = Keeper(told.append), Disk(OSError(errno.ENOSPC, "full"))
    with anyio.move_on_after(0.05):
        await keeper.kept(disk.write, retry_s=0.001)
    assert told[-1] is None


async def test_what_no_room_would_mend_is_raised() -> None:
    told: list[str | None] = []
    with pytest.raises(PermissionError):
        await Keeper(told.append).kept(Disk(PermissionError(errno.EACCES, "no")).write)
    assert told == []
