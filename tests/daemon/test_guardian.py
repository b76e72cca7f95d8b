"""The daemon dies at once, and so does everything that it started; without the daemon's next life."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

import anyio
import psutil
import pytest

from cloudagent_daemon import leash
from cloudagent_daemon.process import Ladder, SpawnError, spawn
from fakes.runs import alive

ENV = {"PATH": "/usr/bin:/bin"}
#: The promise: how long after the daemon's death anything may live.
GONE_S = 5.0

#: A daemon as far as its children go: told its guardian's file, it starts each further argument.
DAEMON = """
import sys, anyio
from pathlib import Path
from cloudagent_daemon import leash
from cloudagent_daemon.process import Ladder, spawn

leash.PROGRAM = Path(sys.argv[1])

async def one(number, code):
    argv = [sys.executable, "-I", "-S", "-c", code]
    async with spawn(argv, env={"PATH": "/usr/bin:/bin"}, cwd=Path("/"), launch_id=f"{number}"):
        await anyio.sleep_forever()

async def main():
    async with anyio.create_task_group() as tasks:
        for number, code in enumerate(sys.argv[2:]):
            tasks.start_soon(one, number, code)

anyio.run(main)
"""
#: The programs' beginning: `start` has the mark in its argv and nothing else of ours.
BEGIN = """
import os, signal, time
def start(*before):
    if os.fork() == 0:
        for each in before:
            each()
        os.execve("/bin/sleep", ["MARK", "600"], {})
def orphan():
    os.setsid()
    if os.fork():
        os._exit(0)
def deaf():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
"""
PLAIN = "start()"
SESSIONS = "for _ in range(30): start(os.setsid)"
ORPHANS = "for _ in range(10): start(orphan)"
DEAF = "deaf()\nfor _ in range(10): start(deaf, os.setsid)"
#: With the environment kept, as nearly every program does.
KEEP = """
def start_marked(*before):
    if os.fork() == 0:
        for each in before:
            each()
        os.execv("/bin/sleep", ["MARK", "600"])
"""
LIVE = "\ntime.sleep(600)"
LEAVE = "\nos._exit(0)"
BREED = """
start()
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


class Tree:
    """A daemon that has started programs, all found by a mark in their arguments."""

    def __init__(self, *programs: str, guardian: Path = leash.PROGRAM) -> None:
        self.mark = uuid.uuid4().hex
        codes = [(BEGIN + program).replace("MARK", self.mark) for program in programs]
        argv = [sys.executable, "-c", DAEMON, str(guardian), *codes]
        self.daemon = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL)

    def grown(self, count: int) -> None:
        """Waits until there are as many sleepers."""
        until(lambda: len(self.sleepers()) >= count, 20.0)

    def sleepers(self) -> list[int]:
        return [pid for pid, argv in commands() if argv[0] == self.mark]

    def living(self) -> list[int]:
        """Everything: sleepers, programs, guardians."""
        return [pid for pid, argv in commands() if any(self.mark in each for each in argv)]

    def die(self) -> None:
        self.daemon.kill()
        self.daemon.wait()


@pytest.fixture
def tree() -> Generator[Callable[..., Tree]]:
    trees: list[Tree] = []

    def plant(*programs: str, guardian: Path = leash.PROGRAM) -> Tree:
        trees.append(Tree(*programs, guardian=guardian))
        return trees[-1]

    yield plant
    for each in trees:
        each.die()
        for pid in each.living():  # a test failed
            os.kill(pid, signal.SIGKILL)


def commands() -> Generator[tuple[int, list[str]]]:
    for process in psutil.process_iter():
        try:
            if argv := process.cmdline():  # a zombie has none
                yield process.pid, argv
        except psutil.Error:
            continue


def until(reached: Callable[[], bool], deadline_s: float) -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < deadline_s, f"not within {deadline_s} s"
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("programs", "sleepers"),
    [
        pytest.param([PLAIN + LIVE], 1, id="a plain child"),
        pytest.param([SESSIONS + LIVE], 30, id="sessions of their own"),
        pytest.param([ORPHANS + LIVE], 10, id="orphans with an empty environment"),
        pytest.param([ORPHANS + LEAVE], 10, id="orphans whose program has ended"),
        pytest.param([DEAF + LIVE], 10, id="deaf to signals"),
        pytest.param([BREED], 1, id="one that breeds as fast as it can"),
        pytest.param([PLAIN + LIVE, SESSIONS + LIVE, ORPHANS + LIVE, DEAF + LIVE], 51, id="many"),
    ],
)
def test_after_the_daemon_was_killed_nothing_is_left(
    tree: Callable[..., Tree], programs: list[str], sleepers: int
) -> None:
    planted = tree(*programs)
    planted.grown(sleepers)
    planted.die()
    until(lambda: planted.living() == [], GONE_S)


def test_a_kill_of_the_daemon_s_whole_process_group_is_the_same(tree: Callable[..., Tree]) -> None:
    planted = tree(ORPHANS + LIVE)
    planted.grown(10)
    os.killpg(planted.daemon.pid, signal.SIGKILL)
    planted.daemon.wait()
    until(lambda: planted.living() == [], GONE_S)


async def test_a_normal_end_leaves_no_guardian_and_no_orphan(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    code = (BEGIN + ORPHANS + LIVE).replace("MARK", mark)
    argv = [sys.executable, "-I", "-S", "-c", code]
    async with spawn(argv, env=ENV, cwd=tmp_path, launch_id="a") as it:
        guardian = guardian_of(it.pid)
        until(lambda: sum(argv[0] == mark for _, argv in commands()) == 10, 20.0)
    assert not alive(guardian)
    assert [pid for pid, argv in commands() if any(mark in each for each in argv)] == []


async def test_a_guardian_holds_nothing_of_the_daemon_s_but_its_own_socket(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w"):
        async with spawn(["/bin/cat"], env=ENV, cwd=tmp_path, launch_id="a") as it:
            await it.write(b"are you there?")
            await it.read_stdout()  # while a program is loaded, its libraries are open as well
            open_by_guardian = open_files(guardian_of(it.pid))
            open_by_child = open_files(it.pid)
    assert open_by_guardian[:3] == ["/dev/null"] * 3
    assert [name.partition(":")[0] for name in open_by_guardian[3:]] == ["socket"]
    assert [name.partition(":")[0] for name in open_by_child] == ["pipe"] * 3


async def test_the_program_sees_the_environment_it_was_given_and_no_more(tmp_path: Path) -> None:
    given = {"PATH": "/usr/bin:/bin", "BYTES": "\udcff"}
    async with spawn(["/usr/bin/env", "-0"], env=given, cwd=tmp_path, launch_id="a") as it:
        seen = await it.read_stdout()
    assert sorted(seen.split(b"\0")) == sorted(
        [b"", b"PATH=/usr/bin:/bin", b"BYTES=\xff", b"CLOUDAGENT_LAUNCH_ID=a"]
    )


async def test_the_program_heeds_the_signals_that_its_guardian_does_not(tmp_path: Path) -> None:
    for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        async with spawn(["/bin/sleep", "60"], env=ENV, cwd=tmp_path, launch_id="a") as it:
            guardian = guardian_of(it.pid)
            os.kill(guardian, sent)
            assert await it.interrupt(sent, wait_s=5)
            assert it.exit_code == -sent
            assert alive(guardian)


async def test_several_may_wait_for_the_end_while_others_look(tmp_path: Path) -> None:
    async with spawn(["/bin/cat"], env=ENV, cwd=tmp_path, launch_id="a") as it:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(it.wait)
                await anyio.wait_all_tasks_blocked()
                await it.feed(b"")
                until(lambda: not alive(it.pid), 5)
                assert it.exit_code in (None, 0)
        assert it.exit_code == 0


async def test_a_guardian_that_hangs_does_not_hang_the_daemon(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    code = (BEGIN + ORPHANS + LIVE).replace("MARK", mark)
    argv = [sys.executable, "-I", "-S", "-c", code]
    with anyio.fail_after(12):
        ladder = Ladder(term_s=0.1)
        async with spawn(argv, env=ENV, cwd=tmp_path, launch_id="a", ladder=ladder) as it:
            until(lambda: sum(argv[0] == mark for _, argv in commands()) == 10, 20.0)
            guardian = guardian_of(it.pid)
            os.kill(guardian, signal.SIGSTOP)
            await it.end()
    assert not alive(guardian)
    assert [pid for pid, argv in commands() if any(mark in each for each in argv)] == []


async def test_a_guardian_that_was_killed_leaves_its_work_to_the_daemon(tmp_path: Path) -> None:
    async with spawn(["/bin/sleep", "60"], env=ENV, cwd=tmp_path, launch_id="a") as it:
        os.kill(guardian_of(it.pid), signal.SIGKILL)
        with anyio.fail_after(5):
            assert await it.wait() == -signal.SIGKILL
    assert not alive(it.pid)


async def test_a_guardian_that_cannot_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after an upgrade that took the files away from under a running daemon.
    monkeypatch.setattr(leash, "PROGRAM", tmp_path / "gone.py")
    with pytest.raises(SpawnError, match=r"guardian.*gone\.py"):
        async with spawn(["/bin/true"], env=ENV, cwd=tmp_path, launch_id="a"):
            pass


def test_where_orphans_cannot_be_adopted_they_are_found_by_their_mark(
    tree: Callable[..., Tree], tmp_path: Path
) -> None:
    guardian = tmp_path / "guardian.py"
    guardian.write_text(
        "import runpy, sys\n"
        "sys.platform = 'darwin'\n"
        f"runpy.run_path({str(leash.PROGRAM)!r}, run_name='__main__')\n"
    )
    keeping = ORPHANS.replace("start", "start_marked") + LEAVE
    planted = tree(KEEP + keeping, SESSIONS + LIVE, guardian=guardian)
    planted.grown(40)
    planted.die()
    until(lambda: planted.living() == [], GONE_S)


def guardian_of(pid: int) -> int:
    parent = psutil.Process(pid).parent()
    assert parent
    assert leash.PROGRAM.name in " ".join(parent.cmdline())
    return parent.pid


def open_files(pid: int) -> list[str]:
    return [
        str(entry.readlink())
        for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda entry: int(entry.name))
    ]


#: A guardian's one round over a parent, its child and its grandchild, all asleep. It says how each of
#: them stood when its children were looked for.
ROUND = """
import os, signal, time
from cloudagent_daemon import guardian

def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]

def grow(generations):
    if os.fork() == 0:
        if generations > 1:
            grow(generations - 1)
        os.write(told, b".")
        time.sleep(600)

def looked(pid):
    end = time.monotonic() + 2  # a signal may take a moment
    while pid != os.getpid() and state(pid) not in "TZ" and time.monotonic() < end:
        time.sleep(0.001)
    states.append(state(pid))
    return look(pid)

signal.alarm(20)
guardian._adopts_orphans()
here, told = os.pipe()
grow(3)
count = 0
while count < 3:
    count += len(os.read(here, 3))
look, guardian._children, states = guardian._children, looked, []
guardian._kill_descendants()
for _ in range(3):
    os.waitpid(-1, 0)
print(*states[1:])
"""


def test_in_one_round_each_is_stopped_before_its_children_are_looked_for() -> None:
    """So that none is born meanwhile: a round over a tree that breeds finds all of it."""
    argv = [sys.executable, "-c", ROUND]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split()) == (0, ["T", "T", "T"]), done.stderr
