"""Nothing of a real coding agent is left once its daemon was killed or stopped, or it was ended at once; counted over /proc.

Each of them leaves a child that is hard to find: in a session of its own, without an environment. Stops, and kills of
the program itself, are in the contract (`contracts/journeys.py`, "ends"). A default round kills the daemon; with `REAL_CLIS`
set, another one stops it, and one has a person say "Stop now", each of which takes as long.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from contracts.kits import Kit
from e2e.harness import (
    Backend,
    Follower,
    Json,
    Process,
    clean_environment,
    log_in,
    processes_with,
    running_backend,
    started_daemon,
)
from e2e.real_kits import REAL, for_all
from fakes.model import StubModel

pytestmark = [pytest.mark.slow, pytest.mark.real_cli, pytest.mark.timeout(400)]
DRIVERS = {name: "claude_code" if name == "claude" else name for name in REAL}
#: All five start at once, on a machine that is busy with other tests.
START_S = 150.0
#: decisions/0008: within 5 s, and what looking for them takes.
GONE_S = 10.0


def alive(pids: list[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def children(home: Path) -> list[psutil.Process]:
    """One that each program has left behind, and that lives."""
    found: dict[str, list[psutil.Process]] = {}
    for name in REAL:
        lines = (home / f"effects-{name}").read_text().splitlines()
        found[name] = alive([int(line.split()[1]) for line in lines])
    assert {name: len(left) for name, left in found.items()} == dict.fromkeys(REAL, 1)
    return [child for left in found.values() for child in left]


def orders(kit: Kit, effects: Path) -> str:
    assert kit.child
    return "\n".join([kit.child(effects), kit.reply("on it"), kit.hang])


def gone(processes: list[psutil.Process]) -> bool:
    _, survivors = psutil.wait_procs(processes, GONE_S)
    return not survivors


def until_all_hang(events: Follower, conversations: set[str]) -> None:
    """Each has left its child behind and replied."""
    waiting = set(conversations)

    def wanted(event: Json) -> bool:
        data = event["data"]
        if event["type"] == "message.created" and data["author"]["type"] == "agent":
            waiting.discard(data["conversation_id"])
        return not waiting

    events.until(wanted, START_S)


def kill_daemon(daemon: Process, backend: Backend, sent: list[Json]) -> None:
    daemon.kill()


def stop_daemon(daemon: Process, backend: Backend, sent: list[Json]) -> None:
    daemon.stop()


def stop_now(daemon: Process, backend: Backend, sent: list[Json]) -> None:
    """The second stage, which is the first as well: none of them has ended by that alone."""
    traces = [backend.call("GET", f"/v1/messages/{one['id']}/trace") for one in sent]
    runs = {trace["deliveries"][0]["run_id"] for trace in traces}
    with backend.follow() as events:
        for run in runs:
            backend.call("POST", f"/v1/runs/{run}/interrupt", {"now": True})
        codes = exit_codes(events, runs)
    # Claude may end its turn in between, and is to stay then: it is killed all the same, a moment later.
    assert [*codes.values()].count(-signal.SIGKILL) >= len(runs) - 1
    assert set(codes.values()) <= {-signal.SIGKILL, None}


def exit_codes(events: Follower, runs: set[str]) -> dict[str, int | None]:
    """How the program of each has ended."""
    codes: dict[str, int | None] = {}

    def told(event: Json) -> bool:
        end = event["data"].get("event", {})
        if event["type"] == "run.event" and end["type"] == "finished":
            codes[event["data"]["run_id"]] = end.get("exit_code")
        return codes.keys() == runs

    events.until(told, GONE_S)
    return codes


@pytest.mark.parametrize(
    "end", [kill_daemon, *([stop_daemon, stop_now] if "REAL_CLIS" in os.environ else [])]
)
def test_nothing_is_left_of_any_program_that_is_ended_from_outside(
    tmp_path: Path, end: Callable[[Process, Backend, list[Json]], None]
) -> None:
    laptop = tmp_path / "laptop"
    with StubModel() as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        env = clean_environment(laptop, **for_all(laptop, model))
        env |= {"CLOUDAGENT_MAX_RUNS": str(len(REAL)), "CLOUDAGENT_STOP_TIMEOUT_S": "1"}
        log_in(laptop, backend.url, key, env)
        agents: dict[str, str] = {}
        for name in REAL:
            more = {"model": "gemini-2.5-pro"} if name == "gemini" else {}
            agents[name] = backend.create_agent(
                host_id, name, driver=DRIVERS[name], mode="bypassPermissions", **more
            )
        with started_daemon(laptop, env) as daemon, backend.follow() as events:
            sent = [
                backend.send(agents[name], orders(kit, laptop / f"effects-{name}"))
                for name, kit in REAL.items()
            ]
            until_all_hang(events, {message["conversation_id"] for message in sent})
            theirs = set(processes_with(str(laptop))) - {daemon.popen.pid}
            started = [*children(laptop), *alive([*theirs])]
            end(daemon, backend, sent)
            assert gone(started)
            assert (daemon.popen.poll() is None) == (end is stop_now), "it is not the daemon's end"
    assert processes_with(str(laptop)) == []
