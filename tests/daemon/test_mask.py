"""A coding agent runs as the same user as the daemon, and cannot see the daemon's own files."""

import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import anyio
import psutil
import pytest

from cloudagent_daemon.config import Limits, Settings
from cloudagent_daemon.leash import Mask
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import SpawnError, spawn
from fakes.runs import alive

ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
CANARY = "sk_machine_canary"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")

#: Ways to the file at $SECRET ("daemon/config.json" below $HOME), whose daemon has the pid $DAEMON.
WAYS = [
    "cat $SECRET",
    "cat ../../../daemon/config.json",
    "cat $OLDPWD/../../../daemon/config.json",
    "cat /proc/self/cwd/../../../daemon/config.json",
    "cat /proc/$PPID/cwd/../../../daemon/config.json",
    "cat /proc/$PPID/root$SECRET",
    "for fd in /proc/$PPID/fd/*; do cat $fd/../../../daemon/config.json; done",
    "cat /proc/$DAEMON/root$SECRET",
    "cat /proc/$DAEMON/cwd/daemon/config.json",
    "cat /proc/$DAEMON/environ",
    "cat ./link-made-before",
    "ln -s $SECRET ./link && cat ./link",
    "umount $HOME/daemon && cat $SECRET",
    "unshare -Urm sh -c 'umount $HOME/daemon; umount -l $HOME/daemon; cat $SECRET'",
    "unshare -Urm sh -c 'mkdir -p ./m; mount --rbind $HOME ./m; umount ./m/daemon; cat ./m/daemon/config.json'",
    "nsenter -t $PPID -U -m cat $SECRET",
    "nsenter -t $DAEMON -U -m cat $SECRET",
    "nsenter -t $DAEMON -m cat $SECRET",
    "cat $HOME/client.json",
    "cat $HOME/server/cloudagent.db",
    "cat $HOME/agents/other/MEMORY.md",
    "cat $HOME/daemon/profiles/fr/config.json",
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def make_home(tmp_path: Path) -> Path:
    """A `~/.cloudagent` with a secret in every file, and an agent's own folder."""
    mine = tmp_path / "agents" / "mine"
    for folder in ("daemon/run/run-1", "daemon/profiles/fr", "server", "agents/other"):
        (tmp_path / folder).mkdir(parents=True)
    (mine / "workspace").mkdir(parents=True)
    secrets = ["daemon/config.json", "daemon/profiles/fr/config.json", "client.json"]
    for name in [*secrets, "server/cloudagent.db", "agents/other/MEMORY.md"]:
        (tmp_path / name).write_text(CANARY)
    (tmp_path / "daemon" / "run" / "run-1" / "bridge.token").write_text("its own")
    (mine / "workspace" / "link-made-before").symlink_to(tmp_path / "daemon" / "config.json")
    return tmp_path


def settings_of(home: Path) -> Settings:
    return Settings(
        profile="default",
        server_url="http://127.0.0.1:1",
        machine_key=CANARY,
        host_id=None,
        home=home,
        state_dir=home / "daemon",
        runtime_dir=home / "daemon" / "run",
        agents_dir=home / "agents",
        environment=ENV,
    )


async def output_of(home: Path, mask: Mask, script: str) -> str:
    """What a shell prints that starts in the agent's workspace."""
    folder = home / "agents" / "mine" / "workspace"
    more = {
        "HOME": str(home),
        "SECRET": str(home / "daemon" / "config.json"),
        "OLDPWD": str(folder),
        "DAEMON": str(os.getpid()),
    }
    argv = ["/bin/sh", "-c", f"exec 2>&1; {script}"]
    printed = b""
    with anyio.fail_after(20):
        async with spawn(argv, env=ENV | more, cwd=folder, launch_id="m", mask=mask) as child:
            await child.feed(b"")
            while data := await child.read_stdout():
                printed += data
    return printed.decode()


async def mask_of(home: Path) -> Mask:
    masks = Masks(settings_of(home))
    mine, run = home / "agents" / "mine", home / "daemon" / "run" / "run-1"
    mask = await masks.of_run(mine, run, home / "daemon" / "bridge.sock")
    assert masks.cover == "hidden", masks.detail
    return mask


@pytest.mark.parametrize("way", WAYS)
async def test_no_way_leads_a_child_to_the_daemon_s_files(home: Path, way: str) -> None:
    assert CANARY not in await output_of(home, await mask_of(home), way)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[4], *WAYS[-4:]])
async def test_without_a_mask_these_ways_lead_there(home: Path, way: str) -> None:
    # Else the test above would show nothing.
    assert CANARY in await output_of(home, Mask(), way)


async def test_a_child_keeps_its_own_folder_its_run_s_files_and_its_bridge(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        monkeypatch.chdir(home)  # the path of a socket is short
        listening.bind("daemon/bridge.sock")
        listening.listen()
        connect = (
            f'{sys.executable} -c "import socket, os; '
            "socket.socket(socket.AF_UNIX).connect(os.environ['HOME'] + '/daemon/bridge.sock')\""
        )
        script = (
            f"cat $HOME/daemon/run/run-1/bridge.token; echo kept > ./new; {connect} && echo joined"
        )
        printed = await output_of(home, await mask_of(home), script)
    assert printed == "its ownjoined\n"
    assert (home / "agents/mine/workspace/new").read_text() == "kept\n"


async def test_nothing_can_be_put_where_the_hidden_files_were(home: Path) -> None:
    script = "echo evil > $SECRET; echo evil > $HOME/daemon/config.json.new; ls -a $HOME/daemon"
    printed = await output_of(home, await mask_of(home), script)
    assert "Read-only file system" in printed
    assert (home / "daemon/config.json").read_text() == CANARY
    assert not (home / "daemon/config.json.new").exists()


async def test_a_masked_tree_is_ended_whole(home: Path) -> None:
    folder = home / "agents" / "mine" / "workspace"
    script = "for i in 1 2 3; do setsid -f env -i /bin/sleep 600; done; exec sleep 600"
    async with spawn(
        ["/bin/sh", "-c", script],
        env=ENV,
        cwd=folder,
        launch_id="tree",
        mask=await mask_of(home),
    ) as child:
        deadline = time.monotonic() + 20
        while (killed := len(children := family(child.pid))) < 3:
            assert time.monotonic() < deadline, children
            await anyio.lowlevel.checkpoint()
        assert await child.end(at_once=True) >= killed
    assert not [pid for pid in children if alive(pid)]


def family(pid: int) -> list[int]:
    """The sleepers below the guardian of this process."""
    children = psutil.Process(guardian_of(pid)).children()
    return [child.pid for child in children if child.name() == "sleep"]


def guardian_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


async def test_an_agent_whose_folder_is_hidden_is_not_started_and_told_why(home: Path) -> None:
    mask = await mask_of(home)
    with pytest.raises(SpawnError, match="its folder is one of them"):
        async with spawn(
            ["/bin/true"], env=ENV, cwd=home / "agents" / "other", launch_id="in", mask=mask
        ):
            pass


#: Runs in a user namespace that may have none below it, as on systems that forbid them.
FORBIDDEN = """
import sys, anyio
from pathlib import Path
from dataclasses import replace
sys.path.insert(0, sys.argv[2])
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.config import Limits
from daemon.test_mask import settings_of

async def main():
    settings = replace(settings_of(Path(sys.argv[1])), limits=Limits(mask=sys.argv[3]))
    masks = Masks(settings)
    try:
        print("mask", await masks.of_run())
    except UnmaskedError as error:
        print("refused:", error)
    print(masks.cover, masks.detail)

anyio.run(main)
"""


@pytest.mark.parametrize("setting", ["auto", "require"])
def test_where_namespaces_are_forbidden_it_says_so_and_the_settings_decide(
    home: Path, setting: str
) -> None:
    program = [sys.executable, "-c", FORBIDDEN, str(home), str(Path(__file__).parents[1]), setting]
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", forbid, "sh", *program],
        capture_output=True,
        text=True,
        check=True,
    )
    first, last = done.stdout.splitlines()
    assert last == "open this system does not allow user and mount namespaces"
    if setting == "require":
        assert first.startswith("refused: The daemon's key cannot be hidden")
    else:
        assert first == f"mask {Mask()!r}"


async def test_it_can_be_switched_off_and_a_one_shot_daemon_has_nothing_to_hide(home: Path) -> None:
    off = Masks(replace(settings_of(home), limits=Limits(mask="off")))
    assert await off.of_run(home) == Mask()
    assert (off.cover, off.detail) == ("off", "switched off in config.json")
    one_shot = Masks(
        replace(settings_of(home), home=None, state_dir=None, limits=Limits(mask="require"))
    )
    assert await one_shot.of_run(home) == Mask()
    assert one_shot.cover == "nothing"


async def test_a_trial_that_finds_the_files_anyway_counts_as_open(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A guardian that starts the program and hides nothing.
    from cloudagent_daemon import leash

    careless = home / "guardian.py"
    careless.write_text(
        leash.PROGRAM.read_text().replace("if hidden and (step :=", "if False and (step :=")
    )
    monkeypatch.setattr(leash, "PROGRAM", careless)
    masks = Masks(replace(settings_of(home), limits=Limits(mask="require")))
    with pytest.raises(UnmaskedError, match="did not hold"):
        await masks.of_run()
