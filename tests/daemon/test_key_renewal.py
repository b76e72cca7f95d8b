"""A machine key that is replaced or revoked while the daemon lives; no restart, no run cut off by it."""

import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from cloudagent_daemon import config
from cloudagent_daemon.config import Stored
from cloudagent_daemon.link.keyfile import KeyFile
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Finished, Started
from cloudagent_protocol.frames import Deliver, RunReport
from cloudagent_protocol.ids import new_host_id
from fakes.backend import KEY, ScriptedBackend, scripted_backend
from fakes.home import PROGRAM, Home, Running
from fakes.terminal import terminal

NEW = "sk_machine_another"
URL = "https://agents.example.com"
STORED = Stored(URL, KEY, "host_1")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


# --- the file ------------------------------------------------------------------------------


@asynccontextmanager
async def key_file(path: Path) -> AsyncGenerator[KeyFile]:
    config.write_file(path, STORED)
    yield KeyFile(path, URL, "host_1", KEY)


async def test_another_key_is_taken_over_once(tmp_path: Path) -> None:
    path = tmp_path / "daemon" / "config.json"
    async with key_file(path) as key:
        assert (await key.current(), await key.renewed()) == (KEY, False)
        config.write_file(path, replace(STORED, machine_key=NEW))
        assert await key.renewed()
        assert (await key.renewed(), await key.current(), key.note) == (False, NEW, "")


async def test_a_file_of_another_host_or_no_file_changes_nothing_and_is_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "daemon" / "config.json"
    async with key_file(path) as key:
        for other in (
            replace(STORED, machine_key=NEW, host_id="host_2"),
            replace(STORED, machine_key=NEW, server_url="https://b.example"),
        ):
            config.write_file(path, other)
            assert await key.current() == KEY
            assert "stop this daemon and start it again" in key.note
        path.write_text("{")
        assert (await key.current(), "cannot be used" in key.note) == (KEY, True)
        path.unlink()
        assert (await key.current(), "is gone" in key.note) == (KEY, True)
        config.write_file(path, replace(STORED, machine_key=NEW))
        assert (await key.current(), key.note) == (NEW, "")


async def test_a_key_that_others_could_have_written_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "daemon" / "config.json"
    async with key_file(path) as key:
        config.write_file(path, replace(STORED, machine_key=NEW))
        path.chmod(0o666)
        assert (await key.current(), "0666" in key.note) == (KEY, True)
        path.unlink()
        elsewhere = tmp_path / "elsewhere.json"
        config.write_file(elsewhere, replace(STORED, machine_key=NEW))
        path.symlink_to(elsewhere)
        assert (await key.current(), "symbolic link" in key.note) == (KEY, True)


# --- the daemon ----------------------------------------------------------------------------


def replace_key(home: Home, key: str) -> None:
    path = home.state / "config.json"
    stored = config.read_file(path)
    assert stored
    config.write_file(path, replace(stored, machine_key=key))


def finished(backend: ScriptedBackend, sent: Deliver) -> Finished | None:
    for report in backend.all(RunReport):
        if report.delivery_ids == [sent.delivery_id] and isinstance(report.event, Finished):
            return report.event
    return None


def begun(backend: ScriptedBackend, sent: Deliver) -> int:
    reports = [one for one in backend.all(RunReport) if one.delivery_ids == [sent.delivery_id]]
    return sum(isinstance(one.event, Started) for one in reports)


@asynccontextmanager
async def working(home: Home, backend: ScriptedBackend) -> AsyncGenerator[tuple[Running, Deliver]]:
    """A daemon in the middle of a run."""
    await home.log_in(backend)
    async with home.started() as daemon:
        await daemon.until("Connected")
        sent = backend.deliver("@@sleep 60\n@@say too late")
        await backend.until(lambda: begun(backend, sent) == 1)
        yield daemon, sent


async def until_status(home: Home, state: str) -> dict[str, Any]:
    with anyio.fail_after(20):
        while (report := await home.status())["state"] != state:
            continue  # another look is another process: it takes its time
    return report


async def reject(backend: ScriptedBackend, home: Home) -> None:
    """The old key is rotated away."""
    backend.key = NEW
    await backend.connections[-1].close(CloseCode.UNAUTHORIZED)
    await until_status(home, "unauthorized")


async def interrupt(backend: ScriptedBackend, sent: Deliver) -> None:
    """Ends the run as a person does: it is still the one that was begun first."""
    backend.interrupt(sent)
    await backend.until(lambda: finished(backend, sent) is not None)
    assert begun(backend, sent) == 1


async def test_a_login_tells_the_running_daemon_which_goes_on_with_its_run(home: Home) -> None:
    async with scripted_backend() as backend, working(home, backend) as (daemon, sent):
        await reject(backend, home)
        code, _, error = await home.command(
            "login", "--server", backend.url, "--api-key-file", "-", stdin=NEW
        )
        assert code == 0
        assert f"The daemon that runs (pid {daemon.process.pid}) is connected with it" in error
        assert len(backend.connections) == 2
        assert [live.delivery_ids for live in backend.connections[1].hello.running] == [
            [sent.delivery_id]
        ]
        await interrupt(backend, sent)


async def test_a_key_that_is_put_into_the_file_is_found_by_itself(home: Home) -> None:
    async with scripted_backend() as backend, working(home, backend) as (_, sent):
        await reject(backend, home)
        replace_key(home, NEW)
        await backend.connected(2)
        await interrupt(backend, sent)


async def test_a_hangup_signal_has_a_service_look_into_the_file(home: Home) -> None:
    async with scripted_backend() as backend, working(home, backend) as (daemon, sent):
        # Still connected, with a key that opens no further connection.
        backend.key = NEW
        replace_key(home, NEW)
        daemon.process.send_signal(signal.SIGHUP)
        await backend.connected(2)
        assert backend.headers[-1]["Authorization"] == f"Bearer {NEW}"
        await interrupt(backend, sent)


async def test_a_login_as_another_host_is_told_and_left_to_a_restart(home: Home) -> None:
    async with scripted_backend() as backend, working(home, backend) as (daemon, sent):
        own, backend.host_id = backend.host_id, new_host_id()
        code, _, error = await home.command(
            "login", "--server", backend.url, "--api-key-file", "-", stdin=KEY
        )
        assert code == 0
        assert f"! The daemon that runs (pid {daemon.process.pid}) goes on as it was" in error
        assert "cloudagent-daemon stop" in error
        with anyio.fail_after(20):
            while not (report := await home.status())["notes"]:
                continue
        assert (report["state"], report["host_id"]) == ("connected", own)
        assert "stop this daemon and start it again" in report["notes"][0]
        await interrupt(backend, sent)


async def test_a_closed_terminal_is_an_end_and_no_reason_to_look(home: Home) -> None:
    async with scripted_backend() as backend:
        await home.log_in(backend)
        async with terminal([PROGRAM, "start"], home.env, home.folder) as shown:
            await shown.until("Connecting to")
            await backend.connected()
            shown.close()
            with anyio.fail_after(30):
                code = await anyio.to_thread.run_sync(shown.process.wait)
        assert code == 129
        assert not (home.state / "daemon.pid").exists(), "it ended in order"


# --- revoked -------------------------------------------------------------------------------


async def until_quiet(home: Home) -> None:
    """No agent of the home's daemon lives any more."""
    with anyio.fail_after(10):
        while any(_is_agent(process, home) for process in psutil.process_iter()):
            await anyio.lowlevel.checkpoint()


def _is_agent(process: psutil.Process, home: Home) -> bool:
    try:
        return process.environ().get("HOME") == str(home.folder) and "-m" in process.cmdline()
    except psutil.Error:
        return False


@pytest.mark.parametrize("how", ["link", "handshake"])
async def test_a_removed_machine_stops_its_runs_keeps_its_memory_and_its_key(
    home: Home, how: str
) -> None:
    async with scripted_backend() as backend, working(home, backend) as (daemon, sent):
        assert any(_is_agent(process, home) for process in psutil.process_iter())
        waiting = backend.deliver("never begun", conversation=sent.message.conversation_id)
        await backend.until(lambda: backend.acked == len(backend.outbox))
        kept = (home.state / "config.json").read_text()
        backend.key, backend.rejection = NEW, "revoked"
        if how == "link":
            await backend.connections[0].close(CloseCode.REVOKED)
        else:
            backend.connections[0].cut()
        await until_quiet(home)
        with anyio.fail_after(20):
            # What it has to tell is kept; that is shown a moment after the process is gone.
            while not (report := await until_status(home, "unauthorized"))["unsent"]:
                continue
        assert [agent["status"] for agent in report["agents"]] in ([], ["idle"])
        assert daemon.process.returncode is None
        assert (home.state / "config.json").read_text() == kept
        assert begun(backend, waiting) == 0

        # The backend was restored from a backup: the machine is there again.
        backend.key = KEY
        os.utime(home.state / "config.json")
        daemon.process.send_signal(signal.SIGHUP)
        await backend.until(lambda: finished(backend, sent) is not None)
        end = finished(backend, sent)
        assert isinstance(end, Finished)
        assert end.outcome == "cancelled"
        await backend.until(lambda: finished(backend, waiting) is not None)
        assert json.loads(kept)["machine_key"] == KEY
