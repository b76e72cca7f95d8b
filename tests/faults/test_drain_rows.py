"""Rows of the fault matrix in which a daemon ends by somebody's wish, or shares its profile."""

import signal
import time
from pathlib import Path

from cloudagent_daemon.ending import longest_s
from cloudagent_daemon.paths import Paths
from faults.history import Done, Interrupted, Reply, Spawned
from faults.site import count, site
from faults.sizes import DEADLINE_S, FULL, MARKS, SLACK_S, seeded

pytestmark = MARKS
RUNS = 5
#: What runs get after SIGTERM, and agents before SIGKILL.
STOP_S, TERM_S = (60, 9) if FULL else (3, 1)


def is_draining(event: dict[str, object]) -> bool:
    data = event["data"]
    return (
        event["type"] == "host.updated" and isinstance(data, dict) and data["state"] == "draining"
    )


@seeded
def test_row6_sigterm_during_5_runs_lets_some_finish_ends_the_rest_and_loses_none(
    tmp_path: Path, seed: int
) -> None:
    # Shorter than the drain: without heartbeats the backend would give the daemon up meanwhile.
    with site(
        tmp_path, RUNS, CLOUDAGENT_BACKEND_HEARTBEAT_S="0.5", CLOUDAGENT_BACKEND_SILENCE_S="2"
    ) as place:
        with place.daemon(
            CLOUDAGENT_STOP_TIMEOUT_S=str(STOP_S), CLOUDAGENT_TERM_TIMEOUT_S=str(TERM_S)
        ) as daemon:
            with place.backend.follow() as events:
                place.post(1, "@@gate a", "@@answer about m0 #1")
                place.post(1, "@@gate a", "@@answer about m1 #1")
                for key in ("m2", "m3", "m4"):
                    place.post(1, "@@hold deaf", f"@@answer about {key} #1")
                place.until_held(events, RUNS)
                began = time.monotonic()
                daemon.popen.send_signal(signal.SIGTERM)
                events.until(is_draining)
            place.post(2)  # nobody begins them
            (tmp_path / "agents" / "a.open").touch()
            assert daemon.wait(longest_s(STOP_S, TERM_S) + SLACK_S) == 0
            assert STOP_S < time.monotonic() - began < longest_s(STOP_S, TERM_S)
            assert not place.alive()
            assert "not connected" not in daemon.output
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge(repeats=True)
        assert count(history, Spawned) == RUNS + 2 + (RUNS - 2), "cut off, three began twice"
        ids = [post.message for post in place.recorder.posts]
        assert {r.message for r in history if isinstance(r, Interrupted)} == set(ids[2:5])
        replied = {r.message for r in history if isinstance(r, Done) and r.outcome == "replied"}
        assert replied == set(ids)
        assert count(history, Reply) == RUNS + 2
    assert longest_s(60, 9) <= 90


@seeded
def test_row6_a_second_sigterm_waits_for_nobody(tmp_path: Path, seed: int) -> None:
    with site(tmp_path, RUNS) as place:
        with (
            place.daemon(
                CLOUDAGENT_STOP_TIMEOUT_S="600", CLOUDAGENT_TERM_TIMEOUT_S="600"
            ) as daemon,
            place.backend.follow() as events,
        ):
            place.post(RUNS, "@@hold deaf")
            place.until_held(events, RUNS)
            daemon.popen.send_signal(signal.SIGTERM)
            events.until(is_draining)
            began = time.monotonic()
            daemon.popen.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0
            assert time.monotonic() - began < 10
            assert not place.alive()
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S)
        place.judge(repeats=True)


@seeded
def test_row36_a_second_start_after_the_lock_was_deleted_is_refused_and_the_first_goes_on(
    tmp_path: Path, seed: int
) -> None:
    paths = Paths(tmp_path / "laptop" / ".cloudagent", "default")
    with site(tmp_path, 2) as place, place.daemon() as first:
        with place.backend.follow() as events:
            place.post(1, "@@gate a", "@@answer about m0 #1")
            place.until_held(events, 1)
        paths.lock.unlink()
        with place.daemon(wait_for="") as second:
            assert second.wait() == 6
        assert int(paths.pid.read_text()) == first.popen.pid
        (tmp_path / "agents" / "a.open").touch()
        place.post(3)
        place.settle(deadline_s=DEADLINE_S)
        place.judge()
        first.wait_for_line("it is there again")
        assert paths.lock.exists()
    assert not place.alive()
