"""Rows of the fault matrix in which the machine is at fault: no descriptors, no disk, no daemon."""

import contextlib
import random
import resource
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil

from cloudagent_daemon import control
from e2e.harness import BIN, Follower, Process, clean_environment
from faults.history import Reply, Spawned
from faults.site import Site, count, site
from faults.sizes import AGENTS, CUTS, DEADLINE_S, MARKS, MESSAGES, ROUNDS, seeded

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


def guards_of(place: Site) -> list[str]:
    """What the running daemon says of its guards, but that all is well."""
    report = control.ask(place.home / "laptop" / ".cloudagent" / "daemon", "report")
    return [guard["state"] for guard in report["guards"] if guard["state"] != "ok"]
