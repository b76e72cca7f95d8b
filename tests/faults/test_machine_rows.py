"""Rows of the fault matrix about the machine itself: its key, its state, its clock, its resolver."""

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from cloudagent_daemon.paths import Paths, spool_file
from e2e.harness import executed
from faults.history import Done, Reply, RunEnded, Spawned, check, maybe_repeated
from faults.proxy import Stall
from faults.site import count, site
from faults.sizes import AGENTS, DEADLINE_S, MARKS, MESSAGES, SLACK_S, seeded

pytestmark = MARKS
DAY_S = 86_400
MACHINE = Path(__file__).parent / "machine"


def files_with(folder: Path, secret: str) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if secret.encode() in path.read_bytes()]


@seeded
def test_row34_a_key_revoked_in_the_middle_of_runs_stops_them_and_leaves_nothing(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        with place.daemon() as daemon, place.backend.follow() as events:
            place.post(AGENTS, "@@children 2", "@@hold")
            place.post(MESSAGES - AGENTS)
            place.until_held(events, AGENTS)
            left = place.alive()
            assert len(left) >= 3 * AGENTS
            place.backend.call("DELETE", f"/v1/host-machines/{place.host}")
            daemon.wait_for_line("not connected", deadline_s=2 + SLACK_S)
            began = time.monotonic()
            _, survivors = psutil.wait_procs(left, timeout=15)
            assert not survivors
            assert time.monotonic() - began <= 15
            place.settle()
            # It stays up, says so, and what waits is not begun.
            assert daemon.popen.poll() is None
            assert not place.alive()
        history = place.judge()
        assert count(history, Spawned) == AGENTS
        outcomes = {record.outcome for record in history if isinstance(record, Done)}
        assert not outcomes & {"replied", "auto_published"}
        assert place.key not in daemon.output
        [config] = files_with(tmp_path / "laptop", place.key)
        assert config.name == "config.json"
        assert not files_with(tmp_path / "agents", place.key)


@seeded
def test_row39_a_machine_that_slept_for_8_h_delivers_within_10_s_of_waking(
    tmp_path: Path, seed: int
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    machine = {"PYTHONPATH": str(MACHINE), "FAULTS_CLOCK": str(clock)}
    with (
        site(tmp_path, AGENTS, proxied=True) as place,
        place.daemon(start=executed, **machine) as daemon,
    ):
        assert place.proxy
        place.post(MESSAGES // 2)
        place.settle(deadline_s=DEADLINE_S)
        # What was open is dead, and says nothing of it.
        place.proxy.add(Stall(), current=True)
        place.post(MESSAGES - MESSAGES // 2)
        clock.write_text(str(8 * 3_600))
        delivered = place.proxy.count("deliver")
        daemon.wait_for_line("Connected", deadline_s=10)
        place.proxy.until(lambda p: p.count("deliver") > delivered, 10)
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
    assert not place.alive()


@seeded
def test_row40_a_clock_that_is_set_by_a_day_or_passes_into_winter_expires_nothing(
    tmp_path: Path, seed: int
) -> None:
    clocks = {name: tmp_path / f"{name}-clock" for name in ("server", "machine")}
    for clock in clocks.values():
        clock.write_text("0")
    # Half a minute before the clocks of Berlin go back from 03:00 to 02:00.
    winter = datetime(2026, 10, 25, 0, 59, 30, tzinfo=UTC).timestamp() - time.time()
    jumps = [DAY_S, -DAY_S, winter]
    random.Random(seed).shuffle(jumps)
    common = {"PYTHONPATH": str(MACHINE), "TZ": "Europe/Berlin"}
    server = common | {"FAULTS_CLOCK": str(clocks["server"])}
    machine = common | {"FAULTS_CLOCK": str(clocks["machine"])}
    with (
        site(tmp_path, AGENTS, proxied=False, start=executed, **server) as place,
        place.daemon(start=executed, **machine),
    ):
        for jump in jumps:
            for clock in clocks.values():
                # Work is under way while one clock is set, and then the other.
                place.post(MESSAGES // 6)
                clock.write_text(str(jump))
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        # Times of different clocks order nothing: what is said to be over before it began is no fault.
        history = [one for one in place.history() if not isinstance(one, RunEnded)]
        assert not check(history)
        assert not maybe_repeated(history)
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
        assert {one.outcome for one in history if isinstance(one, Done)} == {"replied"}


def halved(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def overwritten(file: Path) -> None:
    file.write_bytes(b"no database at all " * 1_000)


@seeded
@pytest.mark.parametrize("damage", [halved, emptied, overwritten])
def test_row37_a_damaged_state_is_set_aside_said_and_nothing_is_lost_or_doubled(
    tmp_path: Path, damage: Callable[[Path], None], seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        with place.daemon():
            place.post(MESSAGES // 2)
            place.settle(deadline_s=DEADLINE_S)
        # Deliveries are on the machine's disk and acknowledged, and then the disk loses them.
        place.crash("after_ack", MESSAGES - MESSAGES // 2)
        file = spool_file(Paths(tmp_path / "laptop" / ".cloudagent", "default").state_dir)
        damage(file)
        with place.daemon(wait_for="set aside") as daemon:
            daemon.wait_for_line("Connected")
            place.settle(deadline_s=DEADLINE_S)
        assert list(file.parent.glob(f"{file.name}.corrupt-*"))
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES


@seeded
def test_row37_work_that_began_unheard_before_the_state_was_lost_is_told_as_interrupted(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        # A process lives, and the daemon ends before it says so.
        place.crash("after_spawn", AGENTS)
        emptied(spool_file(Paths(tmp_path / "laptop" / ".cloudagent", "default").state_dir))
        with place.daemon(wait_for="set aside"):
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge(repeats=True)
        assert count(history, Reply) == AGENTS
        assert set(maybe_repeated(history).values()) == {1}


@seeded
def test_row37_a_state_of_a_newer_daemon_is_refused_and_left_as_it_is(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        place.crash("after_ack", MESSAGES)
        file = spool_file(Paths(tmp_path / "laptop" / ".cloudagent", "default").state_dir)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as state:
            [(version,)] = state.execute("PRAGMA user_version").fetchall()
            state.execute("PRAGMA user_version = 99")
        with place.daemon(wait_for="Update the daemon") as daemon:
            assert daemon.wait() != 0
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as state:
            state.execute(f"PRAGMA user_version = {version}")
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
