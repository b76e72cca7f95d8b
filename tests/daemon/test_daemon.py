"""What one life of the daemon does beside its work."""

import fcntl
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon import life, lock
from cloudagent_daemon.ending import Ending
from cloudagent_daemon.paths import Paths
from cloudagent_daemon.rounds import Rounds


async def test_a_deleted_lock_is_taken_anew_and_the_daemon_goes_on(tmp_path: Path) -> None:
    """Row 36 of the fault matrix, where nobody was quicker."""
    paths, ending = Paths(tmp_path, "default"), Ending()
    with lock.hold(paths.lock, paths.pid) as held:
        paths.lock.unlink()
        rounds = Rounds(0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rounds.run)
            tasks.start_soon(life.guard_lock, held, ending, rounds)
            with anyio.fail_after(10):
                while not held.is_whole():  # noqa: ASYNC110 - a file tells nobody
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert lock.holder(paths.lock, paths.pid)
    assert not ending.wanted.is_set()


async def test_a_lock_that_another_daemon_has_taken_ends_this_one_at_once(tmp_path: Path) -> None:
    """Row 36, where a second start was quicker: its memory on the disk is the same."""
    paths, ending = Paths(tmp_path, "default"), Ending()
    with lock.hold(paths.lock, paths.pid) as held:
        paths.lock.unlink()
        rounds = Rounds(0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rounds.run)
            with paths.lock.open("w") as other, anyio.fail_after(10):
                fcntl.flock(other, fcntl.LOCK_EX)
                await life.guard_lock(held, ending, rounds)
            tasks.cancel_scope.cancel()
    assert ending.code == life.TAKEN_OVER
    assert ending.at_once.is_set()


async def test_a_request_takes_the_place_of_a_restart_and_a_second_one_means_now() -> None:
    ending = Ending()
    assert ending.restart("version 9 is installed", 300)
    assert not ending.restart("ana asked for it", 60)
    assert (ending.code, ending.why) == (75, "version 9 is installed")
    assert not ending.requested.is_set()
    ending.request(0)
    assert (ending.code, ending.why) == (0, "")
    assert not ending.at_once.is_set()
    ending.request(130)
    assert ending.code == 0
    assert ending.at_once.is_set()
    assert not ending.restart("too late", 60)


def test_an_end_that_hangs_is_an_end_all_the_same() -> None:
    hung = "import time; from cloudagent_daemon.ending import Ending; it = Ending(); it.code = 7"
    for last, code in (("time.sleep(60)", 7), ("it.over(); time.sleep(0.3)", 0)):
        script = f"{hung}; it.at_the_latest(0.1); {last}"
        done = subprocess.run([sys.executable, "-c", script], check=False, timeout=30)
        assert done.returncode == code


#: A job whose backend cannot be reached; `HANG` stands for a fault in its end.
JOB = """
import sys, time, anyio
from pathlib import Path
from cloudagent_daemon import daemon, life, profile
from cloudagent_daemon.ending import INTERRUPTED, Ending
from cloudagent_daemon.runs.once import OneMessage

SIGNALLED, HANGS = (word == "yes" for word in sys.argv[1:])

class Job(OneMessage):
    def __setattr__(self, name, value):
        if HANGS and name == "unsent" and value:
            time.sleep(600)
        super().__setattr__(name, value)

# The time of the one that it is not is long.
daemon.FLUSH_S, daemon.JOB_FLUSH_S = (0.1, 600) if SIGNALLED else (600, 0.1)
daemon.longest_s = lambda stop_s, term_s, flush_s: flush_s + (0.4 if HANGS else 600)
ending = Ending()
job = Job(print, cwd=Path("/"), idle_exit_s=None, connect_s=600 if SIGNALLED else 0.1)

async def main(settings):
    connecting = anyio.Event()  # said when there is something that would have to be sent

    def say(line):
        print(line)
        if line.startswith("Connecting"):
            connecting.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.live, settings, say, ending, job)
        if SIGNALLED:
            await connecting.wait()
            ending.request(INTERRUPTED)

with profile.one_shot("default", "http://127.0.0.1:9", "key", {}) as settings:
    settings.agents_dir.mkdir()
    settings.runtime_dir.mkdir()
    anyio.run(main, settings)
sys.exit(50 + bool(job.unsent))
"""


@pytest.mark.parametrize(("signalled", "hangs", "code"), [("yes", "no", 51), ("no", "yes", 1)])
def test_a_jobs_end_has_its_time_and_no_more(signalled: str, hangs: str, code: int) -> None:
    argv = [sys.executable, "-c", JOB, signalled, hangs]
    done = subprocess.run(argv, check=False, timeout=30, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
