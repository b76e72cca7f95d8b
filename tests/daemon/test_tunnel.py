"""An SSH tunnel that the daemon runs, watches over, and ends; with a program that plays ssh."""

import json
import signal
import stat
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from cloudagent_daemon import config, ssh
from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.ssh import Target
from fakes.backend import KEY, scripted_backend
from fakes.home import Home
from fakes.ssh import FakeSsh, install


@pytest.fixture
def fake(tmp_path: Path) -> FakeSsh:
    return install(tmp_path / "bin")


@pytest.fixture
def home(tmp_path: Path, fake: FakeSsh) -> Home:
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    home.env["PATH"] = fake.path
    return home


# --- what it is called with ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("server", Target("server")),
        ("ana@server.example.com", Target("server.example.com", "ana")),
        ("ana@server:2222", Target("server", "ana", 2222)),
        ("[fd00::1]:22", Target("[fd00::1]", None, 22)),
        ("ana@[fd00::1]", Target("[fd00::1]", "ana")),
        ("my_alias", Target("my_alias")),
    ],
)
def test_a_target_is_read_as_ssh_has_it(text: str, target: Target) -> None:
    assert ssh.parse(text) == target
    assert target.shown == text


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=x", "ana@-x", "-l@host", "a b", "host:", "host:0", "host:99999", "host:x",
     "host;id", "@host", "a@b@c d", "host\n", "$(id)", "fd00::1"],
)  # fmt: skip
def test_what_ssh_could_take_for_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        ssh.parse(text)


def test_the_command_asks_nobody_shares_nothing_and_notices_a_dead_end() -> None:
    near = Path("/run/x/tunnel.sock")
    argv = ssh.argv(ssh.parse("ana@server:2222"), near, "http://127.0.0.1:8700")
    assert argv[0] == "ssh"
    assert argv[-2:] == ["--", "server"]
    assert argv[argv.index("-L") + 1] == "/run/x/tunnel.sock:127.0.0.1:8700"
    assert (argv[argv.index("-l") + 1], argv[argv.index("-p") + 1]) == ("ana", "2222")
    for option in ("BatchMode=yes", "ExitOnForwardFailure=yes", "ControlPath=none"):
        assert option in argv
    assert {"ServerAliveInterval=10", "ServerAliveCountMax=2"} <= set(argv)
    tls = ssh.argv(ssh.parse("[fd00::1]"), near, "https://[::1]")
    assert tls[tls.index("-L") + 1] == "/run/x/tunnel.sock:[::1]:443"
    assert tls[-1] == "fd00::1"


# --- the daemon ----------------------------------------------------------------------------


async def until_tunnel(home: Home, name: str, value: object) -> dict[str, Any]:
    """What `status` says once the tunnel stands so."""
    with anyio.fail_after(20):
        while True:  # each look is another process: it takes its time
            report = await home.status()
            if (report.get("tunnel") or {}).get(name) == value:
                return report


async def test_login_and_daemon_go_through_the_tunnel_which_ends_with_it(
    home: Home, fake: FakeSsh
) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend, "--ssh-tunnel", "ana@server:2222")
        kept = json.loads((home.state / "config.json").read_text())
        assert kept["ssh_tunnel"] == "ana@server:2222"
        assert len(fake.starts) == 1, "the login had one of its own"
        assert not psutil.pid_exists(fake.starts[0][1])
        async with home.started() as daemon:
            await daemon.until("Connected")
            await backend.connected()
            near = home.state / "tunnel.sock"
            assert stat.S_IMODE(near.stat().st_mode) == 0o600
            report = await until_tunnel(home, "state", "up")
            assert report["tunnel"] == {
                "target": "ana@server:2222",
                "state": "up",
                "detail": None,
                "restarts": 0,
                "pid": fake.starts[1][1],
            }
            _, out, _ = await home.command("status")
            assert "tunnel    ssh ana@server:2222 up" in out
            daemon.process.send_signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        assert not psutil.pid_exists(fake.starts[1][1])
        assert not near.exists()
        assert all("sk_machine" not in " ".join(argv) for argv, _ in fake.starts)


async def test_a_tunnel_that_dies_is_started_again_and_the_link_comes_back(
    home: Home, fake: FakeSsh
) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend, "--ssh-tunnel", "server")
        async with home.started() as daemon:
            await backend.connected()
            fake.kill()
            await backend.connected(2)
            assert len(fake.starts) == 3
            await until_tunnel(home, "restarts", 1)
            assert daemon.process.returncode is None


async def test_a_tunnel_that_does_not_open_says_why_and_is_tried_on(
    home: Home, fake: FakeSsh
) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend, "--ssh-tunnel", "server")
        fake.fail("Warning: added.\nana@server: Permission denied (publickey).")
        async with home.started():
            report = await until_tunnel(home, "state", "down")
            assert "Permission denied (publickey)." in report["tunnel"]["detail"]
            assert report["state"] == "connecting"
            fake.fail("")
            await backend.connected()


async def test_a_killed_daemon_leaves_no_ssh_behind(home: Home, fake: FakeSsh) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend, "--ssh-tunnel", "server")
        async with home.started() as daemon:
            await backend.connected()
            left = fake.starts[-1][1]
            daemon.process.kill()
            await daemon.ended()
            with anyio.fail_after(10):
                while psutil.pid_exists(left):
                    await anyio.lowlevel.checkpoint()
        async with home.started():
            await backend.connected(2)


async def test_a_login_whose_tunnel_does_not_open_keeps_nothing(home: Home, fake: FakeSsh) -> None:
    fake.fail("Host key verification failed.")
    words = ("login", "http://127.0.0.1:9", "--ssh-tunnel", "ana@server:2222")
    code, _, error = await home.command(*words, "--api-key-file", "-", stdin=KEY)
    assert code == 5
    assert "http://127.0.0.1:9 cannot be reached through ana@server:2222" in error
    assert "Host key verification failed." in error
    assert "ssh -p 2222 ana@server true" in error
    assert not (home.state / "config.json").exists()


async def test_probe_goes_through_the_tunnel_and_names_it_when_it_fails(
    home: Home, fake: FakeSsh
) -> None:
    async with scripted_backend() as backend:
        words = ("probe", "--server", backend.url, "--ssh-tunnel", "server")
        _, out, _ = await home.command(*words)
        assert "✓ connection  the SSH tunnel's end" in out
        fake.fail("No route to host")
        code, out, _ = await home.command(*words)
        assert code == 5
        assert "✗ way" in out
        assert "No route to host" in out


async def test_a_tunnel_is_dropped_by_name_and_kept_otherwise(home: Home, fake: FakeSsh) -> None:
    async with scripted_backend() as backend:
        path = home.state / "config.json"
        for words, kept in (
            (("--ssh-tunnel", "server"), "server"),
            ((), "server"),
            (("--ssh-tunnel", ""), None),
        ):
            await home.log_in(backend, *words)
            stored = config.read_file(path)
            assert stored
            assert stored.ssh_tunnel == kept


async def test_no_ssh_is_a_reason_that_is_told(home: Home, tmp_path: Path) -> None:
    home.env["PATH"] = str(tmp_path / "nowhere")
    words = ("login", "http://127.0.0.1:9", "--ssh-tunnel", "server")
    code, _, error = await home.command(*words, "--api-key-file", "-", stdin=KEY)
    assert code == 5
    assert "ssh does not exist" in error
