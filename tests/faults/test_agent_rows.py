"""Rows of the fault matrix in which the agent is at fault: deaf, a flood, cut off from its tools."""

import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from cloudagent_daemon.runs.breaker import CRASHES
from e2e.harness import Process, processes_with
from faults.history import Done, Effect, Reply, Spawned
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, FULL, MARKS, MESSAGES, ROUNDS, SLACK_S, seeded

pytestmark = MARKS
MB = 1_048_576
#: Of each kind; the row says 400 of any.
FLOOD_MB = 400 if FULL else 32


def live_runs(place: Site) -> list[str]:
    return [
        run["id"]
        for one in place.places
        for run in place.backend.call("GET", f"/v1/conversations/{one.conversation}/runs")["data"]
        if run["state"] != "finished"
    ]


@seeded
def test_row11_an_agent_deaf_to_sigterm_with_30_sessions_is_gone_within_15_s_of_a_stop(
    tmp_path: Path, seed: int
) -> None:
    # Its own process stays after a stop, where it may.
    with site(tmp_path, AGENTS) as place, place.daemon(CLOUDAGENT_WARM_S="0"):
        for _ in range(ROUNDS):
            with place.backend.follow() as events:
                place.post(AGENTS, "@@ignore TERM", "@@children 30", "@@hold")
                place.post(MESSAGES // ROUNDS - AGENTS)
                place.until_held(events, AGENTS)
            left = place.alive()
            assert len(left) > 30 * AGENTS
            began = time.monotonic()
            for run in live_runs(place):
                place.backend.call("POST", f"/v1/runs/{run}/interrupt")
            _, survivors = psutil.wait_procs(left, timeout=15 - (time.monotonic() - began))
            assert not survivors
            place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        outcomes = [record.outcome for record in history if isinstance(record, Done)]
        assert outcomes.count("cancelled") == AGENTS * ROUNDS
        assert count(history, Spawned) == (MESSAGES // ROUNDS) * ROUNDS
    assert not place.alive()


def high_water_mb(daemon: Process) -> float:
    """The most memory that it ever had."""
    status = Path(f"/proc/{daemon.popen.pid}/status").read_text()
    [kilobytes] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(kilobytes) * 1_024 / MB


def test_row14_floods_of_output_cost_the_daemon_32_mib_at_most_and_end_with_a_status(
    tmp_path: Path,
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon() as daemon:
        place.post(MESSAGES // 2)
        place.settle(deadline_s=DEADLINE_S)
        before = high_water_mb(daemon)
        for kind in ("lines", "line", "stderr", "results"):
            place.post(1, f"@@flood {kind} {FLOOD_MB}", "@@answer that was much #1")
            place.post(1)
            place.settle(deadline_s=DEADLINE_S)
            grown = high_water_mb(daemon) - before
            assert grown <= 32, f"{grown:.0f} MiB for {FLOOD_MB} MB of {kind}"
        history = place.judge()
        assert count(history, Reply) == count(history, Effect) == len(place.recorder.posts)


@seeded
def test_row10_an_agent_that_crashes_again_and_again_is_left_alone_until_a_person_retries(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, 2) as place, place.daemon(CLOUDAGENT_CRASH_PAUSE_S="600"):
        with place.backend.follow() as events:
            # Of the first agent; the second works on meanwhile.
            for _ in range(CRASHES):
                place.post(1, "@@kill")
                place.post(1)
            place.post(4)
            first, third = place.recorder.posts[0], place.recorder.posts[2 * CRASHES]
            waits = events.until(
                lambda event: (
                    event["type"] == "delivery.updated"
                    and event["data"]["message_id"] == third.message
                    and event["data"]["reason"] == "crash_loop"
                )
            )
        host = place.backend.call("GET", f"/v1/host-machines/{place.host}")
        [hold] = host["holds"]
        assert (hold["reason"], hold["agent_id"]) == ("crash_loop", first.agent)
        assert hold["until"] > host["last_seen_at"]
        assert "SIGKILL" in hold["detail"]
        again = place.backend.call("POST", f"/v1/messages/{first.message}/retry")
        retried = again["deliveries"][-1]["id"]
        with place.backend.follow(after=waits["id"]) as events:
            events.until(
                lambda event: event["type"] == "host.updated" and not event["data"]["holds"]
            )
            events.until(
                lambda event: (
                    event["type"] == "delivery.updated"
                    and event["data"]["id"] == retried
                    and event["data"]["state"] == "failed"
                )
            )
        place.settle(deadline_s=DEADLINE_S)
        history = place.history()
        assert count(history, Reply) == CRASHES + 4
        spawned = [record.message for record in history if isinstance(record, Spawned)]
        mine = [post.message for post in place.recorder.posts if post.agent == first.agent]
        # In their order, and the retry after them.
        assert [one for one in spawned if one in mine] == [*mine, first.message]


def search_s() -> float:
    """What a search over all processes takes here and now."""
    began = time.monotonic()
    processes_with("nobody has this")
    return time.monotonic() - began


@seeded
def test_row15_an_agent_that_hangs_is_ended_at_its_limit_and_the_next_message_goes_on(
    tmp_path: Path, seed: int
) -> None:
    # 10 s: interrupt and SIGTERM have 9 s together, and three searches over all processes of the machine
    # the rest. Here all agents hang at once, and on a busy machine each of their searches takes long.
    limit_s, slack_s = (10.0, SLACK_S) if FULL else (2.0, 3 * SLACK_S)
    with (
        site(tmp_path, AGENTS) as place,
        place.daemon(CLOUDAGENT_HANG_TIMEOUT_S=str(limit_s)),
    ):
        place.post(AGENTS, "@@ignore TERM", "@@ignore INT", "@@children 2", "@@hang")
        place.post(MESSAGES - AGENTS)
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        slack_s += 3 * AGENTS * search_s()
        for one in place.places:
            path = f"/v1/conversations/{one.conversation}/runs"
            runs = place.backend.call("GET", path)["data"]
            [hung] = [run for run in runs if run["reason"] == "hung"]
            path = f"/v1/runs/{hung['id']}/events"
            *_, last, finished = place.backend.call("GET", path)["data"]
            at, ended = (datetime.fromisoformat(one["at"]) for one in (last, finished))
            assert (ended - at).total_seconds() <= limit_s + 10 + slack_s
        assert count(history, Spawned) == MESSAGES
        assert count(history, Reply) == MESSAGES - AGENTS
    assert not place.alive()


UNKNOWN_OPTION = "import sys; sys.exit('error: unknown option --strict-mcp-config')"


# About 7 s each, of waits between launches: the quick selection takes one.
@pytest.mark.parametrize(
    ("command", "reason", "told"),
    [
        (["/nowhere/agent"], "spawn_failed", "/nowhere/agent does not exist"),
        ([sys.executable, "-I", "-S", "-c", UNKNOWN_OPTION], "crashed", "unknown option"),
    ][: 2 if FULL else 1],
)
def test_row18_a_program_that_is_missing_or_too_old_is_no_crash_loop_and_says_why(
    tmp_path: Path, command: list[str], reason: str, told: str
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon() as daemon:
        agents = [f"/v1/agents/{one.agent}" for one in place.places]
        right = [place.backend.call("GET", agent)["command"] for agent in agents]
        for agent in agents:
            place.backend.call("PATCH", agent, {"command": command})
        place.post(AGENTS)
        place.settle(deadline_s=DEADLINE_S)
        for post in place.recorder.posts:
            [delivery] = place.backend.call("GET", f"/v1/messages/{post.message}/trace")[
                "deliveries"
            ]
            assert (delivery["state"], delivery["reason"]) == ("dead", reason)
            assert told in str(delivery) or told in str(place.backend.messages(post.conversation))
            path = f"/v1/conversations/{post.conversation}/runs"
            [run] = place.backend.call("GET", path)["data"]
            events = place.backend.call("GET", f"/v1/runs/{run['id']}/events")["data"]
            retries = [one for one in events if one["type"] == "retry"]
            assert len(retries) == 2, "three launches, and no more"
        for agent, program in zip(agents, right, strict=True):
            place.backend.call("PATCH", agent, {"command": program})
        place.post(MESSAGES - AGENTS)
        place.settle(deadline_s=DEADLINE_S)
        assert daemon.popen.poll() is None
        history = place.history()
        assert count(history, Spawned) == count(history, Reply) == MESSAGES - AGENTS


@seeded
def test_row17_a_bridge_killed_in_a_call_is_an_error_within_2_s_and_one_message_at_most(
    tmp_path: Path, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place, place.daemon():
        for number in range(MESSAGES):
            text = f"cut {number} #1"
            place.post(
                1, *([f"@@cut {text}", f"@@say {text}"], [f"@@cut_retry {text}"])[number % 2]
            )
        place.settle(deadline_s=DEADLINE_S)
        history = place.judge()
        outcomes = [record.outcome for record in history if isinstance(record, Done)]
        assert set(outcomes) <= {"replied", "auto_published"}
        assert count(history, Spawned) == count(history, Reply) == MESSAGES
        cuts = [line for line in place.recorder.lines() if line["what"] == "cut"]
        assert len(cuts) == MESSAGES
        assert all(cut["seconds"] <= 2 for cut in cuts)
