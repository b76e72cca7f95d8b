"""`cloudagent up --demo` as a newcomer meets it, with real processes and a home of its own."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from e2e.forks import forked_run
from e2e.harness import BIN, Process, clean_environment, processes_with

pytestmark = pytest.mark.slow
CLOUDAGENT = str(BIN / "cloudagent")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that a person stands in; its name becomes the agent's."""
    folder = tmp_path / "shop"
    folder.mkdir()
    return folder


def start(folder: Path, *args: str, **extra: str) -> Process:
    env = clean_environment(folder.parent, **extra)
    return Process([CLOUDAGENT, "up", "--no-browser", *args], env=env, cwd=folder)


@contextmanager
def up(folder: Path, *args: str, port: int = 0) -> Generator[tuple[Process, str]]:
    """A running `up --demo`, and the link that it prints."""
    process = start(folder, "--demo", "--port", str(port), *args)
    try:
        link = process.wait_for_line("  Chat ").split()[1]
        process.wait_for_line("Stop")
        yield process, link
    finally:
        process.stop()
        assert alive(folder) == []


def alive(folder: Path) -> list[int]:
    """Everything that lives because of this home."""
    return processes_with(f"CLOUDAGENT_HOME={folder.parent}")


def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return forked_run([CLOUDAGENT, *args], clean_environment(folder.parent), folder)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Path, Process, str]]:
    """An `up` that only is looked at: its folder, the process, and the link that it printed."""
    folder = tmp_path_factory.mktemp("up") / "shop"
    folder.mkdir()
    with up(folder) as (process, link):
        yield folder, process, link


def shown(folder: Path, *args: str) -> Any:
    done = command(folder, *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_from_nothing_to_an_answer_and_back_to_nothing_and_later_on_as_before(
    folder: Path,
) -> None:
    with up(folder) as (process, link):
        said = process.output
        assert "✓ server" in said
        assert "✓ host" in said
        assert "✓ agent     “shop” on scripted" in said
        assert urlsplit(link).hostname == "127.0.0.1"
        assert urlsplit(link).path == "/a/shop"
        done = command(folder, "send", "shop", "hello", "--wait")
        assert done.returncode == 0, done.stderr
        assert "hello" in done.stdout
        first = shown(folder, "send", "shop", "hello again", "--wait")
        trace = command(folder, "trace", first["sent"]).stdout
        for words in ("stored by the server", "sent to the machine", "on ", "agent started"):
            assert words in trace, trace
        assert "its last text was published" in trace.splitlines()[-1]  # the demo just echoes
        hosts = shown(folder, "hosts")["hosts"]
        ends(process, folder, signal.SIGINT)
    with up(folder) as (process, _):
        again = shown(folder, "send", "shop", "hello", "--wait")
        assert again["conversation_id"] == first["conversation_id"]
        assert [h["id"] for h in shown(folder, "hosts")["hosts"]] == [h["id"] for h in hosts]
        assert len(shown(folder, "agents")["agents"]) == 1
        # A turn that runs does not hold up the end.
        shown(folder, "send", "shop", "@@sleep 60")
        deadline = time.monotonic() + 20
        while shown(folder, "agents")["agents"][0]["status"] != "working":
            assert time.monotonic() < deadline
        ends(process, folder, signal.SIGTERM)


def ends(process: Process, folder: Path, number: signal.Signals) -> None:
    begun = time.monotonic()
    process.popen.send_signal(number)
    assert process.wait() == 0
    assert time.monotonic() - begun < 10
    assert alive(folder) == []


def test_the_link_opens_the_page_once(running: tuple[Path, Process, str]) -> None:
    _, _, link = running
    with httpx2.Client(base_url=link) as browser:
        base = f"http://{urlsplit(link).netloc}"
        [key] = parse_qs(urlsplit(link).query)["k"]
        head = {"Origin": base, "X-Cloudagent": "1"}
        opened = browser.post(f"{base}/v1/auth/link", json={"key": key}, headers=head)
        assert opened.is_success, opened.text
        agents = browser.get(f"{base}/v1/agents").json()["data"]  # by the cookie alone
        assert [agent["name"] for agent in agents] == ["shop"]
        again = httpx2.post(f"{base}/v1/auth/link", json={"key": key}, headers=head)
        assert again.status_code in {401, 403, 404, 409, 410}


def test_a_second_up_finds_the_running_one_and_in_another_folder_adds_an_agent(
    running: tuple[Path, Process, str],
) -> None:
    folder, process, link = running
    before = set(alive(folder))
    second = start(folder, "--demo")
    other = second.wait_for_line("  Chat ").split()[1]
    assert second.wait() == 0
    assert urlsplit(other).netloc == urlsplit(link).netloc
    assert parse_qs(urlsplit(other).query) != parse_qs(urlsplit(link).query)
    assert set(alive(folder)) == before
    assert process.popen.poll() is None
    assert len(shown(folder, "agents")["agents"]) == 1

    docs = folder.parent / "docs"
    docs.mkdir()
    second = start(docs, "--demo")
    second.wait_for_line("“docs” on scripted")
    assert second.wait() == 0
    names = [agent["name"] for agent in shown(folder, "agents")["agents"]]
    assert sorted(names) == ["docs", "shop"]


def test_a_profile_of_another_server_is_left_alone(folder: Path) -> None:
    home = folder.parent / ".cloudagent"
    (home / "daemon").mkdir(parents=True, mode=0o700)
    (home).chmod(0o700)
    config = home / "daemon" / "config.json"
    theirs = json.dumps(
        {
            "server_url": "https://agents.example.com",
            "machine_key": "sk_machine_theirs",
            "host_id": "host_theirs",
        }
    )
    config.write_text(theirs, encoding="utf-8")
    config.chmod(0o600)
    with up(folder) as (process, _):
        assert (
            "the daemon's default profile belongs to https://agents.example.com" in process.output
        )
        assert command(folder, "send", "shop", "hello", "--wait").returncode == 0
    assert config.read_text(encoding="utf-8") == theirs
    assert (home / "daemon" / "profiles" / "local" / "config.json").exists()


def test_secrets_are_in_private_files_and_in_no_argv(running: tuple[Path, Process, str]) -> None:
    folder, _, _ = running
    home = folder.parent / ".cloudagent"
    key = json.loads((home / "daemon" / "config.json").read_text())["machine_key"]
    token = json.loads((home / "client.json").read_text())["token"]
    for pid in alive(folder):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert key not in argv
        assert token not in argv
    for path in home.rglob("*"):
        mode = path.stat().st_mode
        if path.is_file() and path.suffix in {".json", ".db", ".log"}:
            private = mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
            assert private, (path, oct(mode))
    assert (home / "client.json").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(folder, "--demo", "--port", str(port))
        process.wait_for_line(f"port {port} is taken")
        assert process.wait() == 6
    assert alive(folder) == []


def test_without_a_coding_agent_it_says_what_to_do(folder: Path) -> None:
    process = start(folder, "--port", "0", PATH=f"{BIN}:/usr/bin:/bin")
    process.wait_for_line("no coding agent found")
    process.wait_for_line("cloudagent up --demo")
    assert process.wait() == 1
    assert alive(folder) == []


@pytest.mark.parametrize("victim", ["cloudagent-backend", "cloudagent-daemon"])
def test_the_first_coding_agent_that_is_found_gets_the_folder_and_when_one_part_dies_the_rest_ends(
    folder: Path, victim: str
) -> None:
    programs = folder.parent / "bin"
    programs.mkdir()
    claude = programs / "claude"
    claude.write_text("#!/bin/sh\necho '2.1.137 (Claude Code)'\n", encoding="utf-8")
    claude.chmod(0o755)
    process = start(folder, "--port", "0", PATH=f"{programs}:{BIN}:/usr/bin:/bin")
    process.wait_for_line("runtimes  claude_code 2.1.137")
    process.wait_for_line("“shop” on claude_code")
    process.wait_for_line("Stop")
    [pid] = [pid for pid in alive(folder) if victim in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(pid, signal.SIGKILL)
    process.wait_for_line("has ended (signal 9)")
    assert process.wait() == 1
    assert alive(folder) == []


def test_what_a_killed_up_left_behind_is_ended_by_the_next_and_a_key_that_is_void_replaced(
    folder: Path,
) -> None:
    process = start(folder, "--demo", "--port", "0")
    process.wait_for_line("Stop")
    [host] = shown(folder, "hosts")["hosts"]
    process.kill()
    left = alive(folder)
    assert left
    config = folder.parent / ".cloudagent" / "daemon" / "config.json"
    login = json.loads(config.read_text(encoding="utf-8"))
    broken = login | {"machine_key": login["machine_key"][:-1] + "0"}
    config.write_text(json.dumps(broken), encoding="utf-8")
    with up(folder) as (_, _):
        assert not set(left) & set(alive(folder))
        assert [h["id"] for h in shown(folder, "hosts")["hosts"]] == [host["id"]]
        assert command(folder, "send", "shop", "hello", "--wait").returncode == 0
