"""`cloudagent-backend` as a process: what it says, what it exits with, how fast it stops."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from websockets.asyncio.client import connect

from cloudagent_backend.store import users
from cloudagent_backend.store.database import connect as open_file
from cloudagent_backend.store.schema import MIGRATIONS
from cloudagent_protocol.frames import encode
from e2e.forks import forked, forked_run
from e2e.harness import BIN, Process
from fakes.desk import hello

COMMAND = str(BIN / "cloudagent-backend")


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home)}


def run(home: Path, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return forked_run([COMMAND, *argv], environment(home), home, stdin=stdin)


@contextmanager
def serving(home: Path, *argv: str) -> Generator[tuple[Process, str, list[str]]]:
    """A server process, its URL and the lines before it."""
    words = [COMMAND, "serve", "--port", "0", *argv]
    process = Process(words, env=environment(home), cwd=home, start=forked)
    try:
        found = re.fullmatch(
            r"Listening on (http://127\.0\.0\.1:\d+)", process.wait_for_line("Listening on ")
        )
        assert found, process.output
        yield process, found[1], process.lines
    finally:
        process.kill()


def test_a_new_server_prints_a_link_that_makes_the_first_account_once(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, lines):
        key = next(found[1] for line in lines if (found := re.search(r"/setup\?k=(\S+)", line)))
        body = {"key": key, "email": "ann@example.com", "password": "correct horse"}
        made = httpx2.post(f"{url}/v1/auth/setup", json=body)
        assert made.json()["user"]["is_admin"]
        assert httpx2.post(f"{url}/v1/auth/setup", json=body).status_code == 401
    with serving(tmp_path) as (_, _, lines):
        assert not any("setup" in line for line in lines)
    assert (tmp_path / ".cloudagent" / "server" / "cloudagent.db").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_it_at_once_with_streams_and_links_open(
    tmp_path: Path, number: int, code: int
) -> None:
    made = run(tmp_path, "grant", "--email", "ann@example.com")
    bearer = {"Authorization": f"Bearer {json.loads(made.stdout)['access_token']}"}
    with serving(tmp_path) as (process, url, _):
        async with httpx2.AsyncClient(base_url=url, headers=bearer, timeout=10) as client:
            host = (await client.post("/v1/host-machines", json={"name": "mbp"})).json()
            sockets = url.replace("http", "ws")
            key = {"Authorization": f"Bearer {host['raw_key']}"}
            async with (
                connect(f"{sockets}/v1/daemon/ws", additional_headers=key) as link,
                connect(f"{sockets}/v1/events/ws", additional_headers=bearer) as events,
                client.stream("GET", "/v1/events") as stream,
            ):
                await link.send(encode(hello()))
                await link.recv()
                await events.recv()
                start = time.monotonic()
                process.popen.send_signal(number)
                with anyio.fail_after(5):
                    await link.wait_closed()
                    await events.wait_closed()
                    async for _ in stream.aiter_bytes():
                        pass
                    await anyio.to_thread.run_sync(process.wait)
                assert time.monotonic() - start < 3
                assert link.close_code == 1012
                assert process.popen.returncode == code


def test_two_servers_do_not_share_a_database(tmp_path: Path) -> None:
    with serving(tmp_path):
        second = run(tmp_path, "serve", "--port", "0")
        assert second.returncode == 6
        assert "--database-url" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        port = url.rsplit(":", 1)[1]
        other = f"sqlite:///{tmp_path / 'other.db'}"
        second = run(tmp_path, "serve", "--port", port, "--database-url", other)
        assert second.returncode == 1
        assert "address already in use" in second.stderr
        assert "Traceback" not in second.stderr


def test_an_account_is_made_from_the_command_line(tmp_path: Path) -> None:
    argv = ("create-user", "--email", "Ann@Example.com", "--password-stdin", "--admin")
    made = run(tmp_path, *argv, stdin="correct horse\n")
    assert made.returncode == 0, made.stderr
    assert "ann@example.com" in made.stdout
    assert run(tmp_path, *argv, stdin="correct horse\n").returncode == 6
    with serving(tmp_path) as (_, url, _):
        body = {"email": "ann@example.com", "password": "correct horse"}
        assert httpx2.post(f"{url}/v1/auth/login", json=body).json()["user"]["is_admin"]


@pytest.mark.parametrize(
    ("argv", "stdin", "code"),
    [
        (("create-user", "--email", "ann", "--password-stdin"), "correct horse", 2),
        (("create-user", "--email", "a@b.c", "--password-stdin"), "short", 2),
        (("create-user", "--email", "a@b.c"), "", 2),
        (("serve", "--port", "70000"), "", 2),
        (("migrate", "--database-url", "postgres://x/y"), "", 78),
        (("serve", "--public-url", "agents.example.com"), "", 78),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    tmp_path: Path, argv: tuple[str, ...], stdin: str, code: int
) -> None:
    done = run(tmp_path, *argv, stdin=stdin)
    assert done.returncode == code
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_grant_lets_in_and_is_repeatable(tmp_path: Path) -> None:
    first = json.loads(run(tmp_path, "grant", "--email", "ann@example.com").stdout)
    assert set(first) == {"user_id", "email", "access_token", "link_key"}
    granted = [
        json.loads(run(tmp_path, "grant", "--email", "ann@example.com", "--json").stdout)
        for _ in range(5)
    ]
    assert {one["user_id"] for one in granted} == {first["user_id"]}
    with serving(tmp_path) as (_, url, _):
        key = {"key": granted[-1]["link_key"]}
        assert httpx2.post(f"{url}/v1/auth/link", json=key).status_code == 200

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx2.get(f"{url}/v1/me", headers=headers).status_code

        assert [status(one["access_token"]) for one in granted] == [200] * 5
        assert status(first["access_token"]) == 401, "only the newest five stay"


def test_migrating_says_what_it_did(tmp_path: Path) -> None:
    assert f"{len(MIGRATIONS)} migration" in run(tmp_path, "migrate").stdout
    assert "up to date" in run(tmp_path, "migrate").stdout
    file = open_file(tmp_path / ".cloudagent" / "server" / "cloudagent.db")
    assert not users.any_user(file)
    file.close()


def test_without_the_backends_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from cloudagent_daemon.cli.backend import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2
    assert "cloudagent-daemon[backend]" in done.stderr
    assert "Traceback" not in done.stderr
