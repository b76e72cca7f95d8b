"""What one life of the daemon does beside its work."""

import time
from pathlib import Path

import anyio

from cloudagent_daemon import daemon
from cloudagent_daemon.paths import Paths


async def test_a_daemon_that_drains_does_not_spin(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "default")
    paths.lock.parent.mkdir(parents=True)
    paths.lock.touch()
    ending = daemon.Ending()
    ending.request(0)
    before = time.process_time()
    with anyio.move_on_after(0.5):
        await daemon._guard_lock(paths, paths.lock.stat().st_ino, ending)
    assert time.process_time() - before < 0.2
    assert not ending.at_once.is_set()


async def test_a_lock_that_was_deleted_ends_the_daemon_for_a_restart(tmp_path: Path) -> None:
    ending = daemon.Ending()
    await daemon._guard_lock(Paths(tmp_path, "default"), 1, ending)
    assert ending.code == daemon.RESTART_ME
