"""The installation changes under a running daemon; what a real one then does: tests/e2e/test_upgrade.py."""

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from cloudagent_daemon.installation import Installation, Place, State
from cloudagent_daemon.rounds import Rounds
from fakes.installed import Installed

LOOK_S = 0.01


def place_of(installed: Installed) -> Place:
    return Place(
        installed.python, installed.site, (installed.site / "cloudagent_daemon" / "guardian.py",)
    )


@asynccontextmanager
async def watched(installed: Installed) -> AsyncGenerator[Installation]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed.site)}
    rounds = Rounds(LOOK_S)
    installation = Installation(place_of(installed), environment, rounds=rounds, again_s=LOOK_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rounds.run)
        tasks.start_soon(installation.watch)
        yield installation
        tasks.cancel_scope.cancel()


async def until(installation: Installation, state: State) -> None:
    with anyio.fail_after(60):
        while installation.state != state:
            await installation.changed.wait()


async def test_what_is_missing_is_named_holds_everything_and_may_come_back(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "venv")
    async with watched(installed) as installation:
        kept = tmp_path / "kept"
        shutil.copytree(installed.site, kept)
        record = next(installed.site.glob("*.dist-info")) / "RECORD"
        record.rename(tmp_path / "RECORD")
        await until(installation, "gone")
        assert f"({installed.site})" in installation.detail
        assert "uv tool install --reinstall cloudagent-daemon" in installation.detail
        [hold] = installation.holds
        assert hold.reason == "installation_gone"
        # The very same files: nothing has changed after all.
        (tmp_path / "RECORD").rename(record)
        await until(installation, "same")
        assert (installation.holds, installation.detail) == ([], "")

        (installed.site / "cloudagent_daemon" / "guardian.py").unlink()
        await until(installation, "gone")
        assert "guardian.py" in installation.detail


async def test_a_python_that_was_removed_is_named_as_such(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "venv")
    async with watched(installed) as installation:
        target = tmp_path / "python-3.11.9" / "bin" / "python3"
        installed.python.unlink()
        installed.python.symlink_to(target)
        await until(installation, "orphaned")
        assert f"the Python that runs this daemon is gone ({target}" in installation.detail
        assert [hold.reason for hold in installation.holds] == ["installation_orphaned"]


async def test_another_version_is_tried_before_it_counts(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "venv")
    async with watched(installed) as installation:
        installed.break_it()
        await until(installation, "broken")
        assert "half of it is missing" in installation.detail
        assert [hold.reason for hold in installation.holds] == ["installation_broken"]
        installed.remove()
        installed.add("0.3.1")
        await until(installation, "changed")
        assert installation.detail == "version 0.3.1 is installed"
        assert installation.holds == []


async def test_what_is_only_touched_or_was_never_installed_stays_the_same(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "venv")
    place = place_of(installed)
    before = place.look()
    os.utime(installed.site / "cloudagent_daemon" / "daemon.py")
    (installed.site / "cloudagent_daemon" / "__pycache__").mkdir()
    assert place.look() == before
    nothing = Installation(None, {}, rounds=Rounds(LOOK_S))
    await nothing.watch()  # ends by itself
    assert nothing.state == "same"
