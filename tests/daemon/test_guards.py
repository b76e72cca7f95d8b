"""Nothing is started without room for it, and what waits goes on by itself."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon import guards
from cloudagent_daemon.config import Limits
from cloudagent_daemon.guards import RUN_DESCRIPTORS, Disk, Gauges, Guards, judge
from cloudagent_daemon.link.spool import open_spool
from cloudagent_daemon.rounds import Rounds
from cloudagent_daemon.runs.breaker import Breaker
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import DeliveryId
from fakes.runs import RecordedUplink, a_delivery

MB = 1_000_000
GB = 1_000 * MB
LIMITS = Limits()
#: Pauses nobody.
NEVER = Breaker(time.monotonic, 0)


def gauges(
    memory: int = 8 * GB, free: int = 50 * GB, total: int = 100 * GB, descriptors: int = 20
) -> Gauges:
    return Gauges(memory, (Disk("/home", free, total),), descriptors, 1_024)


def refused(seen: Gauges, limits: Limits = LIMITS) -> list[str]:
    return [guard.state for guard in judge(seen, limits) if not guard.ok]


def test_a_machine_with_room_refuses_nothing() -> None:
    assert refused(gauges()) == []


def test_less_memory_than_the_limit_refuses_and_says_how_much_there_is() -> None:
    assert refused(gauges(memory=512 * MB)) == []
    [low] = [guard for guard in judge(gauges(memory=511 * MB), LIMITS) if not guard.ok]
    assert low.state == "memory_low"
    assert "511 MB" in low.detail
    assert "512 MB" in low.detail


@pytest.mark.parametrize(
    ("free", "total", "state"),
    [
        pytest.param(499 * MB, 10 * GB, ["disk_low"], id="under 500 MB"),
        pytest.param(500 * MB, 10 * GB, [], id="500 MB of a small disk"),
        pytest.param(1_900 * MB, 100 * GB, ["disk_low"], id="under 2 %"),
        pytest.param(2_000 * MB, 100 * GB, [], id="2 %"),
        pytest.param(6 * GB, 4_000 * GB, [], id="of a large disk 5 GB are enough"),
        pytest.param(4 * GB, 4_000 * GB, ["disk_low"], id="less is not"),
    ],
)
def test_the_disk_needs_megabytes_and_a_share(free: int, total: int, state: list[str]) -> None:
    assert refused(gauges(free=free, total=total)) == state


def test_the_fullest_disk_counts_and_is_named() -> None:
    seen = Gauges(GB, (Disk("/a", 50 * GB, 99 * GB), Disk("/b", MB, 99 * GB)), 20, 1_024)
    [low] = [guard for guard in judge(seen, LIMITS) if not guard.ok]
    assert "/b" in low.detail


@pytest.mark.parametrize(
    ("used", "limit", "state"),
    [
        pytest.param(819 - RUN_DESCRIPTORS, 1_024, [], id="80 % with the new run"),
        pytest.param(820 - RUN_DESCRIPTORS, 1_024, ["descriptors_low"], id="above 80 %"),
        pytest.param(64 - RUN_DESCRIPTORS, 128, [], id="64 to spare"),
        pytest.param(65 - RUN_DESCRIPTORS, 128, ["descriptors_low"], id="fewer than 64 to spare"),
        pytest.param(0, 64, ["descriptors_low"], id="a limit that leaves nothing"),
    ],
)
def test_descriptors_are_kept_to_spare(used: int, limit: int, state: list[str]) -> None:
    assert refused(Gauges(8 * GB, (), used, limit)) == state


def test_a_limit_of_nothing_never_refuses() -> None:
    nothing = Limits(min_memory_mb=0, min_disk_mb=0, min_disk_percent=0)
    assert refused(gauges(memory=0, free=0), nothing) == []


def test_a_disk_that_takes_nothing_is_low_whatever_is_free_on_it() -> None:
    [low] = [guard for guard in judge(gauges(), LIMITS, trouble="quota exceeded") if not guard.ok]
    assert low.state == "disk_low"
    assert "quota exceeded" in low.detail


def test_what_was_too_little_must_become_clearly_enough() -> None:
    low = judge(gauges(memory=500 * MB), LIMITS)
    still = judge(gauges(memory=520 * MB), LIMITS, low)
    assert [guard.state for guard in still if not guard.ok] == ["memory_low"]
    assert [guard for guard in judge(gauges(memory=600 * MB), LIMITS, low) if not guard.ok] == []


@given(
    memory=st.integers(0, 2 * GB),
    more=st.integers(0, GB),
    free=st.integers(0, 10 * GB),
    used=st.integers(0, 1_024),
    starting=st.integers(0, 50),
)
def test_more_room_never_refuses_more(
    memory: int, more: int, free: int, used: int, starting: int
) -> None:
    tight = judge(gauges(memory, free, 100 * GB, used), LIMITS, starting=starting)
    loose = judge(
        gauges(memory + more, min(free + more, 100 * GB), 100 * GB, used), LIMITS, starting=0
    )
    assert {g.name for g in loose if not g.ok} <= {g.name for g in tight if not g.ok}


def test_the_machine_itself_is_looked_at(tmp_path: Path) -> None:
    memory, used, limit = guards.own()
    handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    try:
        assert guards.own()[1] == used + 10
    finally:
        for handle in handles:
            os.close(handle)
    assert memory > 0
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    [disk] = guards.disks([tmp_path, tmp_path / "missing", tmp_path.parent])
    assert 0 < disk.free < disk.total


def test_without_a_descriptor_to_look_with_they_count_as_all_in_use() -> None:
    code = """
import os, resource
from cloudagent_daemon import guards
guards.own()
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
try:
    while True:
        os.dup(0)
except OSError:
    print(guards.own()[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "(50, 50)\n"


def test_the_limit_of_a_container_counts_and_what_it_would_give_back(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert guards._left_in(tmp_path) == []
    (tmp_path / "memory.max").write_text(f"{1_000 * MB}\n")
    (tmp_path / "memory.current").write_text(f"{700 * MB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MB}\n")
    assert guards._left_in(tmp_path) == [400 * MB]
    assert guards._left_in(tmp_path / "none") == []


class Machine:
    """A machine whose memory the test sets."""

    def __init__(self) -> None:
        self.memory, self.descriptors = 8 * GB, 20

    def own(self) -> guards.Own:
        return self.memory, self.descriptors, 1_024


async def test_what_is_refused_waits_and_starts_when_there_is_room(tmp_path: Path) -> None:
    machine, started = Machine(), anyio.Event()

    class Runs:
        async def run(
            self,
            deliver: Deliver,
            *,
            attempt: int,
            stop: StopSignal,
            aboard: Sequence[Deliver] = (),
        ) -> Finished:
            started.set()
            await stop.wait()
            return Finished(at=datetime.now(UTC), outcome=Outcome.CANCELLED)

        async def steer(self, into: DeliveryId, deliver: Deliver, *, attempt: int) -> None:
            raise AssertionError("nothing runs")

    rounds = Rounds(0.01)
    watched = Guards(LIMITS, [tmp_path], look_own=machine.own, rounds=rounds)
    async with open_spool(None) as spool, anyio.create_task_group() as tasks:
        queue = RunQueue(
            spool, Runs(), RecordedUplink(), max_runs=5, admit=watched.admit, breaker=NEVER
        )
        tasks.start_soon(queue.run)
        machine.memory = 100 * MB
        deliver = a_delivery().model_copy(update={"seq": 1})
        await spool.receive([deliver], 1)
        with anyio.fail_after(5):
            while not watched.refusing:
                await watched.changed.wait()
        assert queue.order.queued(deliver.agent.id) == 1
        assert not started.is_set()
        machine.memory = 8 * GB
        tasks.start_soon(rounds.run)
        tasks.start_soon(watched.watch)
        with anyio.fail_after(5):
            while watched.refusing:
                await watched.changed.wait()
            queue.hold("guards", held=False)
            await started.wait()
        tasks.cancel_scope.cancel()


async def test_runs_that_are_starting_count_until_the_next_look(tmp_path: Path) -> None:
    machine = Machine()
    watched = Guards(LIMITS, [tmp_path], look_own=machine.own, rounds=Rounds())
    machine.descriptors = 819 - 3 * RUN_DESCRIPTORS
    assert [watched.admit() for _ in range(4)] == [True, True, True, False]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched.watch)
        with anyio.fail_after(5):
            while watched.refusing:
                await watched.changed.wait()
        tasks.cancel_scope.cancel()
    assert watched.admit()
