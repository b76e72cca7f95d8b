"""Rows of the fault matrix in which the machine has too little: descriptors, or room on its disk."""

import contextlib
import random
import resource
import sqlite3
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudagent_daemon import control
from cloudagent_daemon.config import read_file
from cloudagent_daemon.paths import Paths, spool_file
from e2e.harness import BIN, Follower, Process, clean_environment
from faults.disk import small_disk
from faults.history import Reply, Spawned, maybe_repeated
from faults.site import Site, count, site
from faults.sizes import AGENTS, CUTS, DEADLINE_S, FULL, MARKS, MESSAGES, ROUNDS, SLACK_S, seeded

pytestmark = MARKS


@contextlib.contextmanager
def limited(daemon: Process, kind: int, limit: int) -> Generator[None]:
    """The running daemon may have no more of this (a soft limit of setrlimit(2)) for a while."""
    process = psutil.Process(daemon.popen.pid)
    before = process.rlimit(kind)
    process.rlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was killed
            process.rlimit(kind, before)


def held_back(events: Follower, reason: str, deadline_s: float) -> None:
    """Waits until the host says that it starts nothing for this reason."""

    def says(event: dict[str, Any]) -> bool:
        holds = event["data"].get("holds") or []
        return event["type"] == "host.updated" and reason in [hold["reason"] for hold in holds]

    events.until(says, deadline_s)


@seeded
def test_row43_at_the_limit_of_descriptors_nothing_starts_and_all_goes_on_when_there_are_some(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon() as daemon:
        process = psutil.Process(daemon.popen.pid)
        place.post(1)
        place.settle(deadline_s=DEADLINE_S)
        for number in range(ROUNDS):
            # The first time not one may be opened, later a few.
            most = process.num_fds() + 5 * number if number else 3
            with place.backend.follow() as events:
                with limited(daemon, resource.RLIMIT_NOFILE, most):
                    # Somebody knocks, and cannot be let in.
                    asking = subprocess.Popen(
                        [str(BIN / "cloudagent-daemon"), "status"],
                        env=clean_environment(place.home / "laptop"),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                    held_back(events, "descriptors_low", 5)
                    place.post(MESSAGES // ROUNDS)
                    waiting = place.recorder.posts[-1].message
                    events.until(lambda e, w=waiting: _waits(e, w, "descriptors_low"))
                assert asking.wait(30) == 0
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == len(place.recorder.posts)


def _waits(event: dict[str, Any], message: str | None, reason: str) -> bool:
    data = event["data"]
    return (
        event["type"] == "delivery.updated"
        and data["message_id"] == message
        and (data["state"], data.get("reason")) == ("received", reason)
    )


@seeded
def test_row38_a_disk_that_takes_nothing_is_told_within_5_s_and_costs_nothing(
    tmp_path: Path, seed: int
) -> None:
    """It strikes wherever the daemon writes at that moment: inbox, outbox, turns, logs, status."""
    chance = random.Random(seed)
    with site(tmp_path, AGENTS) as place, place.daemon() as daemon:
        for _ in range(CUTS):
            with place.backend.follow() as events:
                place.post(MESSAGES // CUTS)
                wanted = chance.choice(["message.created", "run.started", "run.event"])
                events.until(lambda event, wanted=wanted: event["type"] == wanted)
                with limited(daemon, resource.RLIMIT_FSIZE, 0):
                    place.post(1)
                    held_back(events, "disk_low", 5)
                    assert "disk_low" in guards_of(place)
                place.settle(deadline_s=DEADLINE_S)
        place.judge()
    log = "".join(path.read_text() for path in (tmp_path / "laptop").rglob("daemon-*.log"))
    assert "Traceback" not in log + daemon.output


def until_there(file: Path, deadline_s: float) -> None:
    """A file tells nobody, so it is looked for."""
    end = time.monotonic() + deadline_s
    while not file.exists():
        assert time.monotonic() < end, f"no {file} within {deadline_s} s"
        time.sleep(0.02)


@contextlib.contextmanager
def filled(place: Site, daemon: Process, mounted: bool) -> Generator[None]:
    """The next message's agent takes all the room there is, and goes on when there is some again.

    Where the test has no disk of its own, what the agent writes fills none: then the daemon is limited.
    """
    state, name = place.home / "agents", f"fill{len(place.recorder.posts)}"
    answer = f"@@answer about m{len(place.recorder.posts)} #1"
    place.post(1, f"@@fill {name} 20", f"@@gate {name}", answer)
    until_there(state / f"{name}.filled", DEADLINE_S)
    [filler] = (place.home / "laptop").rglob(name)
    assert (filler.stat().st_size < 20 * 1_048_576) == mounted
    full = contextlib.nullcontext() if mounted else limited(daemon, resource.RLIMIT_FSIZE, 0)
    try:
        with full:
            yield
            filler.unlink()
    finally:
        (state / f"{name}.open").touch()


@seeded
@pytest.mark.parametrize("own_disk", [True, False] if FULL else [True])
def test_row13_an_agent_that_fills_the_disk_holds_the_machine_back_and_harms_no_state(
    tmp_path: Path, seed: int, own_disk: bool
) -> None:
    laptop = tmp_path / "laptop"
    paths = Paths(laptop / ".cloudagent", "default")
    with (
        small_disk(laptop) if own_disk else contextlib.nullcontext(False) as mounted,
        site(tmp_path, AGENTS) as place,
    ):
        with place.daemon(CLOUDAGENT_MIN_DISK_MB="2") as daemon:
            place.post(MESSAGES // 3)
            place.settle(deadline_s=DEADLINE_S)
            with place.backend.follow() as events, filled(place, daemon, bool(mounted)):
                # What comes now finds no room to be kept in: it is not lost, and begins nothing.
                place.post(MESSAGES // 3)
                held_back(events, "disk_low", 5 + SLACK_S)
                assert "disk_low" in guards_of(place)
            place.settle(deadline_s=DEADLINE_S)
            # The same with no time to say anything: killed in the middle of it.
            with filled(place, daemon, bool(mounted)):
                place.post(1)
                daemon.kill()
                cut_off = {post.message for post in place.recorder.posts[-2:]}
        with place.daemon(CLOUDAGENT_MIN_DISK_MB="2") as daemon:
            place.settle(deadline_s=DEADLINE_S)
            place.post(MESSAGES // 3)
            place.settle(deadline_s=DEADLINE_S)
            assert guards_of(place) == []
        assert "set aside" not in daemon.output
        with contextlib.closing(sqlite3.connect(spool_file(paths.state_dir))) as state:
            assert state.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            assert state.execute("SELECT count(*) FROM outbox").fetchall() == [(0,)]
        stored = read_file(paths.config)
        assert stored
        assert stored.machine_key == place.key
        log = "".join(path.read_text() for path in laptop.rglob("daemon-*.log"))
        assert "Traceback" not in log
        # The one that filled it when the daemon was killed was cut off, and that is told; so may be the
        # one that came then: the spool has room in its own files, until the machine's round has looked.
        history = place.judge(repeats=True)
        assert count(history, Reply) == len(place.recorder.posts)
        assert maybe_repeated(history).keys() <= cut_off


def guards_of(place: Site) -> list[str]:
    """What the running daemon says of its guards, but that all is well."""
    report = control.ask(place.home / "laptop" / ".cloudagent" / "daemon", "report")
    return [guard["state"] for guard in report["guards"] if guard["state"] != "ok"]
