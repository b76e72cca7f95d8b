"""Child processes: fed, read, and ended with all that they started."""

import os
import select
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import anyio.lowlevel
import psutil
import pytest

from cloudagent_daemon.process import Child, Ladder, SpawnError, end_leftover, find_tree, spawn
from fakes.runs import alive

ENV = {"PATH": "/usr/bin:/bin"}


async def read_all(child: Child) -> bytes:
    pieces: list[bytes] = []
    while piece := await child.read_stdout():
        pieces.append(piece)
    return b"".join(pieces)


async def first_line(child: Child) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += await child.read_stdout()
    return line.decode().strip()


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


async def test_what_is_fed_comes_back_and_the_exit_code_is_told(tmp_path: Path) -> None:
    async with spawn(["/bin/sh", "-c", "cat; exit 3"], env=ENV, cwd=tmp_path, launch_id="a") as it:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed, b"x" * 1_000_000)
            assert len(await read_all(it)) == 1_000_000
        assert await it.wait() == 3


async def test_stdin_is_closed_when_there_is_nothing_to_say(tmp_path: Path) -> None:
    async with spawn(["/bin/cat"], env=ENV, cwd=tmp_path, launch_id="a") as it:
        await it.feed(b"")
        with anyio.fail_after(5):
            assert await it.wait() == 0


async def test_a_child_that_does_not_read_its_stdin_is_no_error(tmp_path: Path) -> None:
    async with spawn(["/bin/true"], env=ENV, cwd=tmp_path, launch_id="a") as it:
        with anyio.fail_after(5):
            await it.feed(b"x" * 1_000_000)
            assert await it.wait() == 0


async def test_a_child_leads_a_group_of_its_own_and_carries_its_launch_id(tmp_path: Path) -> None:
    async with spawn(["/bin/sleep", "60"], env=ENV, cwd=tmp_path, launch_id="mark") as it:
        assert os.getpgid(it.pid) == os.getsid(it.pid) == it.pid
        assert psutil.Process(it.pid).environ()["CLOUDAGENT_LAUNCH_ID"] == "mark"
        assert abs(psutil.Process(it.pid).create_time() - it.started_at) < 1


FAMILY = """
import os, subprocess, sys, time
plain = subprocess.Popen(["/bin/sleep", "600"])
own_session = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
scrubbed = subprocess.Popen(["/bin/sleep", "600"], env={}, start_new_session=True)
orphan = subprocess.run(["/bin/sh", "-c", "setsid sleep 600 >/dev/null & echo $!"], stdout=-1).stdout
print(plain.pid, own_session.pid, scrubbed.pid, int(orphan), flush=True)
time.sleep(600)
"""


async def test_leaving_the_scope_ends_the_whole_family(tmp_path: Path) -> None:
    async with spawn(python(FAMILY), env=ENV, cwd=tmp_path, launch_id="family") as it:
        family = [it.pid, *map(int, (await first_line(it)).split())]
        assert all(map(alive, family))
    assert [pid for pid in family if alive(pid)] == []


async def test_children_that_outlive_the_process_are_ended_too(tmp_path: Path) -> None:
    code = FAMILY.replace("time.sleep(600)", "")
    async with spawn(python(code), env=ENV, cwd=tmp_path, launch_id="left") as it:
        # Its end is not awaited by reading to the end of the pipe: the children hold it open.
        line = await first_line(it)
        await it.wait()
    plain, own_session, _, orphan = map(int, line.split())
    assert [pid for pid in (plain, own_session, orphan) if alive(pid)] == []


async def test_one_that_ignores_term_is_killed_after_its_time(tmp_path: Path) -> None:
    code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(600)"

    def deaf(ladder: Ladder) -> AbstractAsyncContextManager[Child]:
        return spawn(python(code), env=ENV, cwd=tmp_path, launch_id="deaf", ladder=ladder)

    async with deaf(Ladder(term_s=0.2)) as it:
        await first_line(it)
        with anyio.fail_after(5):
            await it.end()
        assert it.exit_code == -signal.SIGKILL
    # How long it was asked in another way counts: to the end of that, or with nothing left.
    for asked_s in (599.8, 600, 700):
        async with deaf(Ladder(term_s=600)) as it:
            await first_line(it)
            with anyio.fail_after(5):
                await it.end(asked_s=asked_s)
            assert it.exit_code == -signal.SIGKILL
    # In a hurry nobody waits: neither one who waits already, nor one who comes later.
    ladder = Ladder(term_s=600)
    async with deaf(ladder) as it:
        await first_line(it)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.end)
                await anyio.wait_all_tasks_blocked()
                ladder.hurry.set()
        assert it.exit_code == -signal.SIGKILL
    with anyio.fail_after(5):
        async with deaf(ladder) as it:
            await first_line(it)
    assert it.exit_code == -signal.SIGKILL


async def test_one_that_heeds_term_is_not_killed(tmp_path: Path) -> None:
    async with spawn(["/bin/sleep", "600"], env=ENV, cwd=tmp_path, launch_id="meek") as it:
        await it.end()
        assert it.exit_code == -signal.SIGTERM


BREEDER = """
import os, signal, sys, time
signal.signal(15, signal.SIG_IGN)
print(1, flush=True)
while True:  # a new process every time, the old one gone: a list of them is always out of date
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.01)
"""


async def test_a_family_that_breeds_while_it_is_killed_is_ended(tmp_path: Path) -> None:
    async with spawn(python(BREEDER), env=ENV, cwd=tmp_path, launch_id="breeder") as it:
        await first_line(it)
        await it.wait()  # the first of them is gone; its descendants go on
    await anyio.to_thread.run_sync(assert_none_is_born, "breeder")


def assert_none_is_born(launch_id: str) -> None:
    for _ in range(30):
        assert processes_marked(launch_id) == []


async def test_what_is_found_to_be_killed_is_stopped_at_once(tmp_path: Path) -> None:
    """The search for the others takes its time, and what is stopped bears no children meanwhile."""
    async with spawn(python(FAMILY), env=ENV, cwd=tmp_path, launch_id="cold") as it:
        await first_line(it)

        def states(*, freeze: bool) -> set[str]:
            found = find_tree(it.pid, it.started_at, "cold", session=True, freeze=freeze)
            assert len(found) >= 4
            return {process.status() for process in found}

        assert psutil.STATUS_STOPPED not in states(freeze=False)
        states(freeze=True)
        with anyio.fail_after(5):  # a signal may take a moment
            while states(freeze=False) != {psutil.STATUS_STOPPED}:
                await anyio.lowlevel.checkpoint()
        await it.end(at_once=True)


async def test_cancelling_the_scope_ends_the_family(tmp_path: Path) -> None:
    pids: list[int] = []
    with anyio.move_on_after(5) as scope:
        async with spawn(python(FAMILY), env=ENV, cwd=tmp_path, launch_id="cut") as it:
            pids = [it.pid, *map(int, (await first_line(it)).split())]
            scope.cancel()
            await anyio.sleep_forever()
    assert len(pids) == 5
    assert [pid for pid in pids if alive(pid)] == []


async def test_output_that_nobody_reads_stays_out_of_memory(tmp_path: Path) -> None:
    before = psutil.Process().memory_info().rss
    async with spawn(["/usr/bin/yes"], env=ENV, cwd=tmp_path, launch_id="flood") as it:
        size = 0
        while size < 100_000_000:
            size += len(await it.read_stdout())
    assert psutil.Process().memory_info().rss - before < 20_000_000


@pytest.mark.parametrize(
    ("argv", "folder", "named"),
    [
        (["/nonexistent/agent"], ".", "/nonexistent/agent"),
        (["/bin/true"], "missing", "missing"),
        (["/etc/passwd"], ".", "/etc/passwd"),
        (["/bin/echo", "x" * 3_000_000], ".", "/bin/echo"),
        (["/bin/echo", "a\0b"], ".", "/bin/echo"),
    ],
)
async def test_what_cannot_be_started_says_why(
    tmp_path: Path, argv: list[str], folder: str, named: str
) -> None:
    with pytest.raises(SpawnError, match=named):
        async with spawn(argv, env=ENV, cwd=tmp_path / folder, launch_id="a"):
            pass


async def test_leftovers_of_an_earlier_life_are_found_by_pid_and_by_mark(tmp_path: Path) -> None:
    # As after a daemon's death: started here without the scope that would end them.
    process = await anyio.open_process(
        python(FAMILY),
        env={**ENV, "CLOUDAGENT_LAUNCH_ID": "earlier"},
        stderr=None,
        start_new_session=True,
    )
    assert process.stdout
    family = [process.pid, *map(int, (await process.stdout.receive()).split())]
    started_at = psutil.Process(process.pid).create_time()
    assert await end_leftover(process.pid, started_at, "earlier") == 5
    assert [pid for pid in family if alive(pid)] == []
    await process.aclose()


#: Each of them is known by its parent alone; the last one is born when it is called for.
ELDER = """
import subprocess, sys, time
heir = [sys.executable, "-I", "-S", "-c", sys.argv[1]]
print(subprocess.Popen(heir, env={}, start_new_session=True).pid, flush=True)
time.sleep(600)
"""
HEIR = """
import os, subprocess, time
os.read(0, 1)
born = subprocess.Popen(["/bin/sleep", "600"], env={}, start_new_session=True).pid
os.write(1, b"%d\\n" % born)
time.sleep(600)
"""


@pytest.mark.parametrize("when", ["long before", "in the moment before its parent is stopped"])
async def test_a_leftover_that_only_its_parent_tells_of_is_ended(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elder = subprocess.Popen(
        [*python(ELDER), HEIR],
        env={},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    stdin, stdout = elder.stdin, elder.stdout
    assert stdin
    assert stdout
    family = [elder.pid, int(stdout.readline())]
    kill = os.kill

    def birth() -> None:
        stdin.write(b"!")
        assert select.select([stdout], [], [], 5)[0]
        family.append(int(stdout.readline()))

    def birth_first(pid: int, sent: int) -> None:
        if pid == family[1] and len(family) == 2:
            birth()
        kill(pid, sent)

    try:
        if when == "long before":
            birth()
        monkeypatch.setattr(os, "kill", birth_first)
        started_at = psutil.Process(elder.pid).create_time()
        assert await end_leftover(elder.pid, started_at, "earlier") == 3
        assert [pid for pid in family if alive(pid)] == []
    finally:
        for pid in filter(alive, family):
            kill(pid, signal.SIGKILL)
        elder.communicate()


async def test_a_pid_that_now_belongs_to_another_is_left_alone(tmp_path: Path) -> None:
    async with spawn(["/bin/sleep", "60"], env=ENV, cwd=tmp_path, launch_id="mine") as it:
        assert await end_leftover(it.pid, it.started_at - 3600, "somebody-else") == 0
        assert alive(it.pid)


def processes_marked(launch_id: str) -> list[int]:
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CLOUDAGENT_LAUNCH_ID") == launch_id and alive(process.pid):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
