"""A process that prints nothing is alive as long as its journal grows, whatever the clock is set to."""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon.drivers.base import (
    Capabilities,
    Command,
    Decision,
    DriverEvent,
    PermissionAsked,
    Reported,
    Turn,
)
from cloudagent_daemon.process import Child
from cloudagent_daemon.runs.attempt import Attempt, Seen
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.worker import Plan, Worker
from cloudagent_protocol.events import Reason

DAY_S = 86_400
#: Writes its journal every tenth of a second for so long, with the time as another clock has it.
WRITER = """
import os, sys, time
path, ahead, end = sys.argv[1], float(sys.argv[2]), time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    open(path, "a").close()
    os.utime(path, (time.time() + ahead,) * 2)
    time.sleep(0.1)
time.sleep(float(sys.argv[4]))
"""


class Silent:
    """The session of a program that prints nothing."""

    capabilities = Capabilities()

    def launch(self) -> Command:
        raise NotImplementedError

    def prompt(self, turn: Turn) -> bytes:
        return b""

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        return ()

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        return None

    def steer(self, turn: Turn) -> bytes:
        return b""

    def interrupt(self) -> bytes | signal.Signals:
        return signal.SIGINT


async def attempt(journal: Path, ahead_s: float, writes_s: float, then_s: float) -> Seen:
    async def started(child: Child) -> None:
        tasks.start_soon(run)

    async def event(event: Reported) -> None:
        pass

    async def decide(asked: PermissionAsked) -> Decision:
        raise NotImplementedError

    arguments = (str(journal), str(ahead_s), str(writes_s), str(then_s))
    worker = Worker(
        Plan(
            session=Silent(),
            command=Command(
                (sys.executable, "-I", "-S", "-c", WRITER, *arguments), journal=journal
            ),
            env=dict(os.environ),
            cwd=journal.parent,
            launch_id="launch",
            tools_listed=anyio.Event(),
        )
    )
    one = Attempt(
        worker=worker,
        turn=Turn(""),
        on_event=event,
        stop=StopSignal(),
        hang_timeout_s=0.7,
        decide=decide,
    )

    async def run() -> None:
        await one.run()

    async with anyio.create_task_group() as tasks:
        await worker.run(started)
    return one.seen


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S], ids=["set back", "set forward"])
async def test_a_journal_that_grows_is_a_sign_of_life_whatever_the_clock_says(
    tmp_path: Path, ahead_s: float
) -> None:
    seen = await attempt(tmp_path / "journal", ahead_s, 1.5, 0.0)
    assert (seen.failure, seen.exit_code) == (None, 0)


async def test_one_that_grows_no_more_is_none(tmp_path: Path) -> None:
    seen = await attempt(tmp_path / "journal", DAY_S, 0.3, 60.0)
    assert seen.failure
    assert seen.failure.reason is Reason.HUNG


async def test_one_of_an_earlier_session_is_none(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    os.utime(journal, (0, 0))
    seen = await attempt(journal, 0, 0.0, 60.0)
    assert seen.failure
    assert seen.failure.reason is Reason.HUNG
