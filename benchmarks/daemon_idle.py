"""A connected daemon with nothing to do: its memory, how often it wakes up, what CPU it takes.

A wake-up is a voluntary context switch of one of its threads (Linux counts them in /proc): each
time that one goes to sleep it must have been awake. Every 15 s a heartbeat goes out and one comes.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.measure import Figure, figure
from e2e.harness import (
    clean_environment,
    executed,
    log_in,
    running_backend,
    started_daemon,
)

#: Two heartbeats of each side.
WATCHED_S = 30.0
SETTLED_S = 3.0
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Idle:
    rss: int
    wakeups_per_s: float
    cpu_share: float


def run() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="ca-") as name,
        running_backend(Path(name) / "server") as backend,
    ):
        home = Path(name) / "laptop"
        host_id, key = backend.create_host()
        backend.create_agent(host_id)
        env = clean_environment(home)
        log_in(home, backend.url, key, env)
        with started_daemon(home, env, start=executed) as daemon:
            idle = _watch(psutil.Process(daemon.popen.pid))
    return [
        figure(
            "daemon idle: memory, mcp loaded",
            "90 MB",
            [(idle.rss, 90_000_000)],
            goal="<= 90 MB",
            unit="MB",
            scale=1 / 1_000_000,
            max_ratio=1,
        ),
        figure(
            "  wake-ups a second",
            "one",
            [(idle.wakeups_per_s, 1.0)],
            goal="< 1/s",
            unit="/s",
            scale=1,
            max_ratio=1,
        ),
        figure(
            "  CPU",
            "0.1 %",
            [(idle.cpu_share, 0.001)],
            goal="< 0.1 %",
            unit="%",
            scale=100,
            max_ratio=1,
        ),
    ]


def _watch(process: psutil.Process) -> Idle:
    _settle(process)
    before, began = _threads(process.pid), time.monotonic()
    time.sleep(WATCHED_S)
    after, elapsed = _threads(process.pid), time.monotonic() - began
    none = (0, 0.0)
    return Idle(
        process.memory_info().rss,
        sum(slept - before.get(one, none)[0] for one, (slept, _) in after.items()) / elapsed,
        sum(ran_s - before.get(one, none)[1] for one, (_, ran_s) in after.items()) / elapsed,
    )


def _settle(process: psutil.Process) -> None:
    """Until it has loaded what it loads after it is connected: no CPU for a while."""
    until = time.monotonic() + DEADLINE_S
    before = -1.0
    while (now := _cpu_s(process)) - before > 0.02:
        assert time.monotonic() < until, "the daemon does not come to rest"
        before = now
        time.sleep(SETTLED_S)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _threads(pid: int) -> dict[str, tuple[int, float]]:
    """Of each thread that there is: how often it went to sleep, and how many seconds it ran."""
    found: dict[str, tuple[int, float]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        counts = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        # Finer than the clock ticks of `stat`, of which the whole goal is three.
        ran_ns = int((task / "schedstat").read_text().split()[0])
        found[task.name] = int(counts["voluntary_ctxt_switches"]), ran_ns / 1e9
    return found
