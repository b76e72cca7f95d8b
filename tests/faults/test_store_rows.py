"""Rows of the fault matrix in which a store is at fault: locked, full, or from yesterday."""

import contextlib
import resource
import shutil
import sqlite3
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from faults.disk import small_disk
from faults.history import Reply, Spawned
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, FULL, MARKS, MESSAGES, SLACK_S, seeded

pytestmark = MARKS
#: How long the other process keeps the lock.
LOCKED_S = 10 if FULL else 4


@contextlib.contextmanager
def locked(database: Path) -> Generator[None]:
    """Another process's write transaction, for so long and no longer."""
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(LOCKED_S, other.execute, ["ROLLBACK"])
        timer.start()
        try:
            yield
        finally:
            timer.join()


@seeded
def test_row21_a_database_locked_by_another_process_delays_and_fails_nothing(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon():
        place.post(MESSAGES // 2)
        with locked(place.backend.database):
            # Each waits for the lock as long as it takes; two of them are enough to show it.
            place.post(2)
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert {answer.status_code for answer in place.answers} == {201}
        assert count(history, Spawned) == count(history, Reply) == MESSAGES


@contextlib.contextmanager
def no_room(place: Site, mounted: bool) -> Generator[None]:
    """Not one more byte for the backend: ENOSPC, or EFBIG where there is no disk of our own."""
    if mounted:
        filler = place.backend.database.parent / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4_096):
                pass
        try:
            yield
        finally:
            filler.unlink()
        return
    pid = place.backend.process.popen.pid
    files = place.backend.database.parent.glob("cloudagent.db*")
    largest = max(file.stat().st_size for file in files)
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@seeded
@pytest.mark.parametrize("own_disk", [True, False] if FULL else [True])
def test_row22_a_full_disk_is_said_and_nothing_is_taken_until_there_is_room(
    tmp_path: Path, seed: int, own_disk: bool
) -> None:
    with (
        small_disk(tmp_path / "server") if own_disk else contextlib.nullcontext(False) as mounted,
        site(tmp_path, AGENTS) as place,
        place.daemon() as daemon,
    ):
        place.post(MESSAGES // 2)
        with no_room(place, bool(mounted)):
            before = len(place.recorder.posts)
            # What has room already may still be written: the log of changes is used again and again.
            while place.recorder.posts[-1].message and len(place.recorder.posts) < before + 100:
                place.post(1, f"@@answer over {before} #1", "x" * 50_000, acked=False)
            refused = place.answers[-1]
            assert refused.status_code in {503, 507}
            assert not mounted or "full" in refused.json()["detail"]
            # A small one may fit where a large one did not; what is acknowledged is judged as all are.
            place.post(1, acked=False)
            assert place.answers[-1].status_code in {201, 503, 507}
            # It lives, and answers what needs no room.
            assert place.backend.call("GET", "/v1/conversations")["data"]
        place.post_again()
        place.settle(deadline_s=DEADLINE_S * 2)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == len(place.recorder.posts)
        assert daemon.popen.poll() is None


def copy_of(database: Path, into: Path) -> Path:
    """A backup, as docs/operations.md makes one: of a backend that runs."""
    with (
        contextlib.closing(sqlite3.connect(database)) as source,
        contextlib.closing(sqlite3.connect(into)) as target,
    ):
        source.backup(target)
    return into


def restore(backup: Path, database: Path) -> None:
    for part in database.parent.glob(f"{database.name}*"):
        part.unlink()
    shutil.copyfile(backup, database)


@seeded
def test_row23_a_backend_restored_from_a_backup_says_so_and_does_nothing_twice(
    tmp_path: Path, seed: int
) -> None:
    share = MESSAGES // 4
    with site(tmp_path, AGENTS) as place:
        with place.daemon():
            place.post(share)
            place.settle(deadline_s=DEADLINE_S)
        place.post(share)
        backup = copy_of(place.backend.database, tmp_path / "backup.db")
        with place.daemon() as daemon:
            place.settle(deadline_s=DEADLINE_S)
            place.post(share)
            place.settle(deadline_s=DEADLINE_S)
            # What was taken after the backup is gone with what the backend knew.
            known, gone = place.recorder.posts[:-share], place.recorder.posts[-share:]
            place.recorder.posts = [*known, *(replace(post, message=None) for post in gone)]
            with place.backend.follow() as events:
                cursor = events.seen[0]["id"]
            place.backend.process.kill()
            restore(backup, place.backend.database)
            place.backend.start_again()
            place.backend.process.wait_for_line("the history of mbp does not fit", 60 + SLACK_S)
            daemon.wait_for_line("Connected")
            with place.backend.follow(after=cursor) as events:
                assert events.seen[0]["type"] == "resync"
            place.post(MESSAGES - len(place.recorder.posts))
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == MESSAGES
        assert count(history, Reply) == MESSAGES - share


@seeded
def test_row44_above_the_cap_messages_are_refused_and_told_so_and_below_it_none_is_lost(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS, CLOUDAGENT_BACKEND_BACKLOG_CAP=str(MESSAGES)) as place:
        place.post(MESSAGES)
        for _ in range(3):
            refused = place.backend.http.post(
                f"/v1/conversations/{place.places[0].conversation}/messages", json={"text": "more"}
            )
            assert refused.status_code == 429
            problem = refused.json()
            assert problem["code"] == "backlog_full"
            assert f"{MESSAGES:,} messages already wait for mbp" in problem["detail"]
            assert "Start the daemon on mbp" in problem["next"]
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S)
            # There is room again.
            place.post(AGENTS)
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES + AGENTS
