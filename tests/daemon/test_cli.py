"""The commands as a person starts them: real processes, a home of their own, a scripted backend."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from cloudagent_daemon import control
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Finished, Started
from cloudagent_protocol.frames import Deliver, HostReport, RunReport, Send
from cloudagent_protocol.ids import HostId
from fakes.backend import KEY, ScriptedBackend, scripted_backend
from fakes.home import PROGRAM, Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def finished(backend: ScriptedBackend, deliver: Deliver) -> Finished | None:
    for report in backend.all(RunReport):
        if report.delivery_ids == [deliver.delivery_id] and isinstance(report.event, Finished):
            return report.event
    return None


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- login ------------------------------------------------------------------------------


async def test_login_verifies_the_key_and_keeps_it_private(home: Home) -> None:
    async with scripted_backend() as backend:
        code, out, _ = await home.command(
            "login", "--server", backend.url + "/", "--api-key-file", "-", stdin=KEY + "\n"
        )
        assert code == 0
        assert str(backend.host_id) in out
        assert KEY not in out
        kept = json.loads((home.state / "config.json").read_text())
        assert (kept["server_url"], kept["machine_key"], kept["host_id"]) == (
            backend.url,
            KEY,
            backend.host_id,
        )
        assert (home.state / "config.json").stat().st_mode & 0o777 == 0o600
        assert home.state.stat().st_mode & 0o777 == 0o700


async def test_a_rejected_key_is_not_kept(home: Home) -> None:
    async with scripted_backend() as backend:
        code, out, error = await home.command(
            "login", "--server", backend.url, "--api-key-file", "-", stdin="sk_machine_wrong"
        )
    assert (code, out) == (4, "")
    assert "does not accept this machine key" in error
    assert not (home.state / "config.json").exists()


async def test_a_server_that_is_no_backend_is_named(home: Home) -> None:
    async with scripted_backend() as backend:
        backend.refusal = (200, "text/html", "<html>hotel wifi</html>")
        code, _, error = await home.command(
            "login", "--server", backend.url, "--api-key-file", "-", stdin=KEY
        )
        assert code == 5
        assert "text/html" in error
    code, _, error = await home.command(
        "login", "--server", "http://127.0.0.1:9", "--api-key-file", "-", stdin=KEY
    )
    assert code == 5
    assert "cannot be reached" in error


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (("login",), ""),
        (("login", "--server", "ftp://x", "--api-key-file", "-"), KEY),
        (("login", "--server", "http://127.0.0.1:9"), ""),
        (("login", "--server", "http://127.0.0.1:9", "--api-key-file", "-"), "no key"),
        (("login", "--server", "http://127.0.0.1:9", "--api-key-file", "/nowhere"), ""),
        (("start", "--server-url", "http://127.0.0.1:9"), ""),
        (("start", "--api-key", KEY), ""),
        (("start", "--api-key-file", "-"), KEY),
        (("--profile", "Bad_Name", "status"), ""),
        (("status", "--no-such-option"), ""),
        (("frobnicate",), ""),
        ((), ""),
        (("agent", "register"), ""),
        (("agent", "register", "--agent-id", "../../etc"), ""),
        (("agent", "register", "--agent-id", "a", "--cwd", "/no/such/folder"), ""),
        (("agent", "register", "--agent-id", "a", "--driver", "claud_code"), ""),
        (("agent", "unregister", "--agent-id", "nobody"), ""),
        (("agent", "unregister", "--agent-id", ".."), ""),
        (("mcp-bridge",), ""),
    ],
)
async def test_a_slip_exits_2_with_three_lines(
    home: Home, words: tuple[str, ...], stdin: str
) -> None:
    code, out, error = await home.command(*words, stdin=stdin)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .+\n  why:  .+\n  next: .+\n", error), error
    assert "Traceback" not in error
    assert files_below(home.folder) == []


async def test_a_key_leaves_argv_at_once(home: Home) -> None:
    async with scripted_backend() as backend:
        # A login that hangs in its verification, with the key given in argv.
        process = await anyio.open_process(
            [PROGRAM, "login", "--server", backend.url, "--api-key", KEY], env=home.env
        )
        async with process:
            await backend.until(lambda: backend.attempts == 1)
            cmdline = Path(f"/proc/{process.pid}/cmdline")
            seen = cmdline.read_text() if cmdline.exists() else ""
            assert KEY not in seen
            with anyio.fail_after(20):
                assert await process.wait() == 0
    assert json.loads((home.state / "config.json").read_text())["machine_key"] == KEY


# --- without a daemon -------------------------------------------------------------------


async def test_status_and_stop_say_that_nothing_runs(home: Home) -> None:
    code, out, _ = await home.command("status")
    assert code == 3
    assert "not running" in out
    assert "login --server URL" in out
    code, _, error = await home.command("stop")
    assert code == 3
    assert "no running daemon" in error
    code, _, error = await home.command("start")
    assert code == 4
    assert "not logged in" in error


async def test_status_has_the_same_fields_whether_or_not_a_daemon_runs(home: Home) -> None:
    wanted = {
        "schema",
        "profile",
        "state",
        "server_url",
        "host_id",
        "pid",
        "since",
        "last_seq",
        "runtimes",
        "agents",
        "warm",
        "service",
    }
    assert set(await home.status()) == wanted
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            await backend.reported(HostReport)
            report = await home.status()
            assert wanted <= set(report)
            assert report["schema"] == "cloudagent.status/1"
            assert report["pid"] == daemon.process.pid


async def test_what_a_server_or_a_file_says_cannot_steer_the_terminal(home: Home) -> None:
    async with scripted_backend() as backend:
        backend.host_id = HostId("host_1\x1b]0;owned\x07\x9b2J\u202e")
        backend.agent = backend.agent.model_copy(update={"name": "Ada\x1b[2J"})
        said = await home.command(
            "login", "--server", backend.url, "--api-key-file", "-", stdin=KEY
        )
        async with home.started() as daemon:
            await daemon.until("Connected")
            await backend.reported(HostReport)
            with anyio.fail_after(10):
                while not (await home.status())["agents"]:
                    continue  # it is written a moment after the connection
            shown = [*said, *await home.command("status"), *await home.command("list-profiles")]
            shown += await home.command("agent", "register", "--agent-id", "a", "--name", "\x1b[2J")
            shown += [*await home.command("agent", "list"), daemon.output]
    told = "".join(str(part) for part in shown)
    assert told.count("host_1") >= 3
    assert "Ada" in told
    assert not set(told) & set("\x1b\x07\x9b\u202e")


async def test_a_configuration_that_cannot_be_used_exits_78(home: Home) -> None:
    home.state.mkdir(parents=True)
    (home.state / "config.json").write_text("{}")
    (home.state / "config.json").chmod(0o600)
    for command in ("start", "status"):
        code, _, error = await home.command(command)
        assert code == 78
        assert "config.json cannot be used" in error
    code, _, error = await home.command("start", "--debug")
    assert "Traceback" in error


async def test_a_login_sets_a_configuration_that_cannot_be_used_aside(home: Home) -> None:
    home.state.mkdir(parents=True)
    file = home.state / "config.json"
    file.write_text('{"max_runs": 9,')
    file.chmod(0o600)
    async with scripted_backend() as backend:
        words = ("login", "--server", backend.url, "--api-key-file", "-")
        code, _, error = await home.command(*words, stdin="sk_machine_wrong")
        assert code != 0
        assert file.read_text() == '{"max_runs": 9,', "nothing came in its place"
        code, _, error = await home.command(*words, stdin=KEY)
        assert code == 0
    [aside] = home.state.glob("config.json.corrupt-*")
    assert aside.read_text() == '{"max_runs": 9,'
    assert f"set aside as {aside.name}" in error


async def test_profile_may_stand_before_or_after_the_command_or_in_the_environment(
    home: Home,
) -> None:
    assert (await home.status("--profile", "fr"))["profile"] == "fr"
    _, out, _ = await home.command("--profile", "fr", "status", "--json")
    assert json.loads(out)["profile"] == "fr"
    _, out, _ = await home.command("status", "--json", CLOUDAGENT_DAEMON_PROFILE="de")
    assert json.loads(out)["profile"] == "de"


async def test_profiles_live_side_by_side(home: Home) -> None:
    async with scripted_backend() as one, scripted_backend() as two:
        await home.log_in(one)
        await home.log_in(two, "--profile", "fr")
        async with home.started("--profile", "fr") as daemon:
            await daemon.until("Connected")
            code, out, _ = await home.command("list-profiles")
            assert code == 0
            assert f"○ default\n    server:  {one.url}" in out
            assert f"● fr\n    server:  {two.url}" in out
            assert f"running pid={daemon.process.pid}" in out
            _, out, _ = await home.command("list-profiles", "--json")
            body = json.loads(out)
            assert body["schema"] == "cloudagent.profiles/1"
            assert [p["profile"] for p in body["profiles"]] == ["default", "fr"]


async def test_workspaces_are_created_listed_and_archived(home: Home) -> None:
    words = ("--agent-id", "agent_01", "--name", "Frontend", "--cwd", str(home.folder))
    for extra in (("--worktree",), ("--worktree", "per_conversation")):
        code, out, error = await home.command("agent", "register", *words, *extra)
        assert (code, out) == (2, "")
        assert 'PATCH /v1/agents/agent_01 {"worktree": "per_conversation"}' in error
    code, out, error = await home.command("agent", "register", *words)
    assert code == 0
    assert "count from its first message on" in error
    workspace = home.folder / ".cloudagent" / "agents" / "agent_01"
    assert str(workspace) in out
    assert (workspace / "MEMORY.md").is_file()
    _, out, _ = await home.command("agent", "list", "--json")
    body = json.loads(out)
    assert body["schema"] == "cloudagent.agents/1"
    assert [(a["id"], a["name"], a["status"]) for a in body["agents"]] == [
        ("agent_01", "Frontend", "offline")
    ]
    code, out, _ = await home.command("agent", "unregister", "--agent-id", "agent_01")
    assert code == 0
    assert not workspace.exists()
    assert (Path(out.split(": ")[1].strip()) / "MEMORY.md").is_file()
    _, out, _ = await home.command("agent", "list", "--json")
    assert json.loads(out)["agents"] == []


# --- a running daemon ---------------------------------------------------------------------


async def test_a_message_is_answered_and_status_tells_the_truth(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until(f"Connecting to {backend.url} as host {backend.host_id}")
            assert "Detected runtimes:\n  " in daemon.output
            assert "✓ scripted" in daemon.output
            sent = backend.deliver("good morning")
            await backend.until(lambda: finished(backend, sent) is not None)
            assert "good morning" in backend.all(Send)[0].text
            code, out, _ = await home.command("status")
            assert code == 0
            assert f"● default   connected to {backend.url}" in out
            code, out, _ = await home.command("stop")
            assert code == 0
            assert "stopped default" in out
            assert await daemon.ended() == 0
        assert (await home.status())["state"] == "stopped"
        assert KEY not in "".join(p.read_text() for p in (home.state / "logs").iterdir())
        assert "good morning" not in daemon.output


async def test_a_second_daemon_of_a_profile_is_refused(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            code, _, error = await home.command("start")
            assert code == 6
            assert f"pid {daemon.process.pid}" in error


async def test_what_came_before_a_kill_is_run_after_the_next_start(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started(CLOUDAGENT_CRASH_AT="after_ack") as daemon:
            await daemon.until("Connected")
            sent = backend.deliver("hello")
            assert await daemon.ended() == 137
        assert (await home.status())["state"] == "stopped"
        assert finished(backend, sent) is None
        async with home.started():
            await backend.until(lambda: finished(backend, sent) is not None)
        assert len(backend.all(Send)) == 1


@pytest.mark.parametrize("point", ["after_receive", "after_persist", "before_spawn", "after_spawn"])
async def test_a_message_survives_a_crash_wherever_it_comes(home: Home, point: str) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started(CLOUDAGENT_CRASH_AT=point) as daemon:
            await daemon.until("Connected")
            sent = backend.deliver("hello")
            assert await daemon.ended() == 137
        async with home.started():
            await backend.until(lambda: finished(backend, sent) is not None)
        assert len(backend.all(Send)) == 1


async def test_sigterm_lets_work_finish_and_a_second_one_does_not(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            slow = backend.deliver("@@sleep 60")
            await backend.until(
                lambda: any(isinstance(r.event, Started) for r in backend.all(RunReport))
            )
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.until("stopping")
            assert daemon.process.returncode is None
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.ended()
            assert time.monotonic() - began < 20
            assert finished(backend, slow) is None
        async with home.started(CLOUDAGENT_STOP_TIMEOUT_S="0"):
            await backend.connected(2)
            assert slow.delivery_id in backend.connections[-1].hello.unfinished


async def test_a_revoked_key_is_a_state_not_an_end(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started() as daemon:
            await daemon.until("Connected")
            await (await backend.connected()).close(CloseCode.REVOKED, "revoked")
            await daemon.until("not connected")
            with anyio.fail_after(10):
                while (report := await home.status())["state"] != "unauthorized":
                    pass
            assert report["pid"] == daemon.process.pid
            code, out, _ = await home.command("status")
            assert code == 4
            assert "key rejected" in out
            assert "login" in out


async def test_an_unreadable_memory_is_set_aside_and_said(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        (home.state / "state.db").write_bytes(b"garbage" * 1000)
        async with home.started() as daemon:
            await daemon.until("Connected")
            assert "set aside" in daemon.output
            _, out, _ = await home.command("status")
            assert "set aside" in out
    assert list(home.state.glob("state.db.corrupt-*"))


# --- one-shot -------------------------------------------------------------------------------


async def test_one_shot_serves_and_leaves_nothing(home: Home, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    async with scripted_backend() as backend:
        words = ("--server-url", backend.url, "--api-key", KEY)
        async with home.started(*words, anew=True, TMPDIR=str(temporary)) as daemon:
            await daemon.until(f"Connecting to {backend.url} as host {backend.host_id}")
            sent = backend.deliver("hello")
            await backend.until(lambda: finished(backend, sent) is not None)
            cmdline = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
            assert KEY not in cmdline
            daemon.process.send_signal(signal.SIGTERM)
            assert await daemon.ended() == 0
    assert files_below(home.folder) == ["tmp"]


async def test_one_shot_takes_the_key_from_the_environment(home: Home) -> None:
    async with (
        scripted_backend() as backend,
        home.started("--server-url", backend.url, CLOUDAGENT_API_KEY=KEY) as daemon,
    ):
        await daemon.until("Connected")
        daemon.process.send_signal(signal.SIGINT)
        assert await daemon.ended() == 130
    assert files_below(home.folder) == []


async def test_one_shot_with_a_rejected_key_ends(home: Home) -> None:
    async with scripted_backend() as backend:
        code, _, error = await home.command(
            "start", "--server-url", backend.url, "--api-key-file", "-", stdin="sk_machine_wrong"
        )
    assert code == 4
    assert "does not accept this machine key" in error


async def test_the_daemons_memory_is_closed_to_other_programs_of_its_user() -> None:
    script = (
        "import os, subprocess\n"
        "from cloudagent_daemon.life import hide_memory\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may read everything
        "hide_memory()\n"
        "command = ['/bin/cat', f'/proc/{os.getpid()}/environ']\n"
        "print(subprocess.run(command, capture_output=True).stderr.decode())"
    )
    done = await anyio.run_process([sys.executable, "-c", script])
    assert "Permission denied" in done.stdout.decode()


# --- cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("status",), ("--help",), ("list-profiles",)])
async def test_quick_commands_import_nothing_heavy(home: Home, words: tuple[str, ...]) -> None:
    script = (
        "import sys; sys.argv = ['cloudagent-daemon', *sys.argv[1:]]\n"
        "from cloudagent_daemon.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('|', *sys.modules)"
    )
    done = await anyio.run_process([sys.executable, "-c", script, *words], env=home.env)
    modules = set(done.stdout.decode().rpartition("|")[2].split())
    heavy = {"typer", "pydantic", "anyio", "asyncio", "httpx2", "websockets", "mcp", "sqlite3"}
    assert modules & heavy == set()


# --- asking the running daemon ----------------------------------------------------------


async def test_the_running_daemon_tells_what_it_finds_from_where_it_lives(home: Home) -> None:
    claude = home.folder / "tools" / "claude"
    claude.parent.mkdir()
    claude.write_text(
        '#!/bin/sh\n[ "$1" = auth ] && echo \'{"loggedIn": false}\' || echo 2.1.197\n'
    )
    claude.chmod(0o755)
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with home.started(PATH=f"{claude.parent}:/usr/bin:/bin") as daemon:
            await backend.reported(HostReport)
            await daemon.until("Serving")
            found = await run_sync(control.ask, home.state, "check")
            report = await run_sync(control.ask, home.state, "report")
    runtimes = {runtime["name"]: runtime for runtime in found["runtimes"]}
    assert runtimes["claude_code"] == {
        "name": "claude_code",
        "version": "2.1.197",
        "path": str(claude),
        "logged_in": False,
        "problem": None,
        "warning": None,
        "models": None,
    }
    assert found["path"][0] == str(claude.parent)
    assert (found["tools"]["problem"], found["backend"]["problem"]) == (None, None)
    assert 0 < found["tools"]["ms"] < 10_000
    assert 0 < found["backend"]["ms"] < 10_000
    assert report["state"] == "connected"
    assert report["pid"] == found["pid"]
    assert KEY not in json.dumps([found, report])


async def test_a_check_without_a_backend_says_so_and_checks_the_rest(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
    async with home.started() as daemon:
        await daemon.until("not connected (attempt 1")
        await daemon.until("Serving")
        found = await run_sync(control.ask, home.state, "check")
    assert found["backend"]["ms"] is None
    assert "cannot be reached" in found["backend"]["problem"]
    assert found["tools"]["problem"] is None


# --- as a service -----------------------------------------------------------------------


async def test_under_launchd_a_service_waits_for_a_person_instead_of_ending(home: Home) -> None:
    async with scripted_backend() as backend:
        async with home.started("--service") as daemon:
            await daemon.until("is not logged in")
            await daemon.until("waiting until")
            await home.log_in(backend)
            await daemon.until("Serving")
            await backend.connected()
        assert (await home.command("status"))[0] == 3


async def test_under_launchd_a_service_reads_the_person_s_own_variables(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        (home.state / "service.env").write_text("ANTHROPIC_API_KEY=k\n")
        async with home.started("--service"):
            report = await backend.reported(HostReport)
            builtin = {runtime.name: runtime for runtime in report.runtimes}["builtin"]
            assert builtin.problem is None
