"""`start --background`: it detaches, says where it is, and `stop` ends it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fakes.backend import scripted_backend
from fakes.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def test_it_detaches_is_found_by_the_other_commands_and_is_stopped(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        code, out, _ = await home.command("start", "--background")
        try:
            assert code == 0
            assert out.startswith(f"● default   connected to {backend.url}")
            pid = (await home.status())["pid"]
            assert f"pid {pid}" in out
            assert os.getsid(pid) == pid
            code, _, error = await home.command("start", "--background")
            assert code == 6
            assert "next: cloudagent-daemon logs -f" in error
        finally:
            code, _, _ = await home.command("stop")
        assert code == 0
        assert (await home.status())["state"] == "stopped"


async def test_what_can_be_said_at_once_is_said_at_once(home: Home) -> None:
    code, _, error = await home.command("start", "--background")
    assert (code, "not logged in" in error) == (4, True)
    code, _, error = await home.command("start", "--background", "--once")
    assert (code, "--background beside --once" in error) == (2, True)


async def test_a_daemon_that_ends_at_once_shows_its_last_lines(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        with closing(sqlite3.connect(home.state / "state.db")) as spool:
            spool.execute("PRAGMA user_version = 99")
        code, _, error = await home.command("start", "--background")
    assert code == 78
    assert "The daemon ended at once" in error
    assert "belongs to a newer version" in error


async def test_exit_codes_can_be_looked_up(home: Home) -> None:
    code, out, _ = await home.command("help", "exit-codes")
    assert code == 0
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 75, 78, 130):
        assert f" {number} " in out
