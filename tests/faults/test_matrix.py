"""Rows of the fault matrix (docs/testing.md), with the real backend and the real daemon."""

import contextlib
import random
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from e2e.harness import processes_with
from faults.history import Done, Effect, Reply, Spawned, maybe_repeated
from faults.proxy import BOTH, Direction, Duplicate, LimitData, Replay, Slicer, Stall
from faults.site import Site, count, site
from faults.sizes import (
    AGENTS,
    CUTS,
    DEADLINE_S,
    FULL,
    MARKS,
    MESSAGES,
    ROUNDS,
    SILENCE_S,
    SLACK_S,
    seeded,
)

pytestmark = MARKS


@seeded
def test_row4_a_daemon_killed_during_runs_repeats_only_what_it_says(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        for _ in range(ROUNDS):
            with place.daemon() as daemon, place.backend.follow() as events:
                first = len(place.recorder.posts)
                place.post(AGENTS, "@@hold", f"@@answer about round {first} #1")
                place.post(MESSAGES // ROUNDS - AGENTS)
                place.until_held(events, AGENTS)
                daemon.kill()
            with place.daemon():
                place.settle(deadline_s=DEADLINE_S)
        history = place.judge(repeats=True)
        assert len(maybe_repeated(history)) == AGENTS * ROUNDS
        assert set(maybe_repeated(history).values()) == {1}


def test_row4_the_processes_of_a_killed_daemon_are_gone_within_5_s(tmp_path: Path) -> None:
    with site(tmp_path, AGENTS) as place:
        with place.daemon() as daemon, place.backend.follow() as events:
            place.post(AGENTS, "@@hold")
            place.until_held(events, AGENTS)
            marker = f"FAKE_STATE={tmp_path / 'agents'}"
            left = [psutil.Process(pid) for pid in processes_with(marker)]
            daemon.kill()
        assert len(left) >= AGENTS
        _, alive = psutil.wait_procs(left, timeout=5)
        for process in alive:
            process.kill()
        assert not alive


@contextlib.contextmanager
def out_of_memory(pid: int) -> Generator[str]:
    """From now on the next pages are too many for this process, as for the kernel's OOM killer.

    Where no control group may be made, SIGKILL stands for it: the same end, without its cause. Gives
    which of the two it is.
    """
    makes = [
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ]
    for parent, limit in makes:
        group = parent / f"cloudagent-test-{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text("16777216")
            (group / "cgroup.procs").write_text(str(pid))
            yield "oom"
        except FileNotFoundError:
            continue  # a group without the memory controller
        else:
            return
        finally:
            group.rmdir()
    psutil.Process(pid).kill()
    yield "kill"


def test_row9_a_daemon_that_the_kernel_kills_for_its_memory_loses_nothing(tmp_path: Path) -> None:
    with site(tmp_path, AGENTS) as place:
        with place.daemon() as daemon, place.backend.follow() as events:
            place.post(1, "@@hold", "@@answer about memory #1")
            place.until_held(events, 1)
            left = place.alive()
            with out_of_memory(daemon.popen.pid) as how:
                # What they print needs more memory than that; the daemon is the largest there.
                place.post(AGENTS - 1, "@@flood results 64", "@@answer much #1")
                assert daemon.wait() in (-9, 137), how
                _, alive = psutil.wait_procs(left, timeout=5)
                assert not alive
        began = time.monotonic()
        with place.daemon(), place.backend.follow() as events:
            events.until(lambda event: event["type"] == "run.started", 15)
            assert time.monotonic() - began <= 15
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge(repeats=True)
        assert 1 <= len(maybe_repeated(history)) <= AGENTS
        assert count(history, Reply) == AGENTS


@seeded
def test_row10_an_agent_that_is_killed_is_told_as_crashed_and_the_next_message_goes_on(
    tmp_path: Path, seed: int
) -> None:
    # By default an agent that is killed again and again would be left alone for a minute.
    with site(tmp_path, AGENTS) as place, place.daemon(CLOUDAGENT_CRASH_PAUSE_S="0"):
        killed = 0
        while len(place.recorder.posts) < MESSAGES:
            place.post(1, "@@kill")
            place.post(min(2, MESSAGES - len(place.recorder.posts)))
            killed += 1
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        outcomes = [record.outcome for record in history if isinstance(record, Done)]
        assert outcomes.count("failed") == killed
        assert count(history, Effect) == MESSAGES


@seeded
def test_row16_an_agent_that_ends_without_a_word_is_never_told_as_replied(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon():
        place.post(MESSAGES // 2, "@@quit")
        place.post(MESSAGES - MESSAGES // 2)
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        outcomes = [record.outcome for record in history if isinstance(record, Done)]
        assert outcomes.count("replied") == MESSAGES - MESSAGES // 2


@seeded
def test_row19_a_backend_killed_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with site(tmp_path, AGENTS) as place, place.daemon() as daemon:
        share = MESSAGES // (CUTS + 1)
        for _ in range(CUTS):
            with place.backend.follow() as events:
                place.post(share)
                wanted = chance.choice(["message.created", "run.started", "run.finished"])
                events.until(lambda event, wanted=wanted: event["type"] == wanted)
            place.backend.process.kill()
            place.backend.start_again()
            # It waits longer the more often it was cut off lately: up to a minute.
            daemon.wait_for_line("Connected", deadline_s=60 + SLACK_S)
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES


@seeded
def test_row24_resets_in_the_middle_of_frames_lose_and_double_nothing(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with site(tmp_path, AGENTS, proxied=True) as place, place.daemon():
        assert place.proxy
        for _ in range(CUTS):
            limit = LimitData(chance.randrange(1, 2_000), reset=True)
            with place.proxy.toxic(limit, chance.choice(BOTH)):
                place.post(MESSAGES // (CUTS + 1))
                place.proxy.until(lambda _, limit=limit: limit.passed >= limit.size)
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        assert place.proxy.accepted > CUTS
        place.judge()


# Half a minute each: the quick selection takes the hardest of the three.
@pytest.mark.parametrize("directions", [BOTH, ("up",), ("down",)] if FULL else [BOTH])
def test_row25_a_half_open_link_is_noticed_within_26_s(
    tmp_path: Path, directions: tuple[Direction, ...]
) -> None:
    silence = str(SILENCE_S)
    with (
        site(tmp_path, AGENTS, proxied=True, CLOUDAGENT_BACKEND_SILENCE_S=silence) as place,
        place.daemon() as daemon,
    ):
        assert place.proxy
        place.post(MESSAGES // 2)
        place.settle(deadline_s=DEADLINE_S)
        with place.proxy.toxic(Stall(), *directions, current=True):
            place.post(MESSAGES - MESSAGES // 2)
            # A look every second, 1 s for the answer to a close, 0.5 s until it tries again.
            daemon.wait_for_line("Connected", deadline_s=SILENCE_S + 1 + 1 + 0.5 + SLACK_S)
            place.settle(deadline_s=DEADLINE_S)
        place.judge()


@seeded
def test_row28_bytes_one_at_a_time_change_nothing(tmp_path: Path, seed: int) -> None:
    with site(tmp_path, AGENTS, proxied=True) as place:
        assert place.proxy
        place.proxy.add(Slicer(1))
        with place.daemon():
            place.post(MESSAGES)
            place.settle(deadline_s=DEADLINE_S)
        place.judge()


@seeded
def test_row29_every_numbered_frame_twice_is_one_delivery_each(tmp_path: Path, seed: int) -> None:
    with site(tmp_path, AGENTS, proxied=True) as place:
        assert place.proxy
        place.proxy.add(Duplicate())
        with place.daemon():
            place.post(MESSAGES)
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
        assert place.proxy.count("welcome") == 1


@seeded
def test_frames_of_an_older_connection_that_come_again_change_nothing(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS, proxied=True) as place, place.daemon() as daemon:
        assert place.proxy
        place.proxy.add(Replay())
        for _ in range(2):
            place.post(MESSAGES // 3)
            place.proxy.until(lambda p: p.count("run_report") > 0)
            place.proxy.reset()
            daemon.wait_for_line("Connected")
        place.post(MESSAGES - len(place.recorder.posts))
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES


@seeded
def test_row35_of_two_daemons_with_one_key_both_live_and_only_one_does_the_work(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        two_daemons_with_one_key(place)
        place.judge()


def two_daemons_with_one_key(place: Site) -> None:
    with place.daemon() as older:
        place.post(MESSAGES // 2)
        place.settle(deadline_s=DEADLINE_S)
        with place.daemon("desktop") as newer:
            place.post(MESSAGES - MESSAGES // 2)
            place.settle(deadline_s=DEADLINE_S)
            assert older.popen.poll() is None
            assert newer.popen.poll() is None
