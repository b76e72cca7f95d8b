"""Nothing of a real coding agent is left once its daemon was killed, or stopped; counted over /proc.

Each of them leaves a child that is hard to find: in a session of its own, without an environment. Stops, and kills of
the program itself, are in the contract (`contracts/journeys.py`, "ends").
"""

from pathlib import Path

import psutil
import pytest

from e2e.harness import (
    Follower,
    Json,
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


def test_nothing_is_left_of_any_program_when_the_daemon_is_killed_or_stopped(
    tmp_path: Path,
) -> None:
    laptop = tmp_path / "laptop"
    with StubModel() as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        env = clean_environment(laptop, **for_all(laptop, model))
        env |= {"CLOUDAGENT_MAX_RUNS": str(len(REAL)), "CLOUDAGENT_STOP_TIMEOUT_S": "1"}
        log_in(laptop, backend.url, key, env)
        with started_daemon(laptop, env) as daemon, backend.follow() as events:
            conversations: set[str] = set()
            for name, kit in REAL.items():
                more = {"model": "gemini-2.5-pro"} if name == "gemini" else {}
                agent = backend.create_agent(
                    host_id, name, driver=DRIVERS[name], mode="bypassPermissions", **more
                )
                assert kit.child
                orders = [kit.child(laptop / f"effects-{name}"), kit.reply("on it"), kit.hang]
                conversations.add(backend.send(agent, "\n".join(orders))["conversation_id"])
            until_all_hang(events, conversations)
            started = [*children(laptop), *alive(processes_with(str(laptop)))]
            daemon.kill()
            assert gone(started)
        # What was cut off is begun again, and does the same once more.
        with backend.follow() as events, started_daemon(laptop, env) as daemon:
            until_all_hang(events, conversations)
            started = [*children(laptop), *alive(processes_with(str(laptop)))]
            daemon.stop()
            assert gone(started)
    assert processes_with(str(laptop)) == []
