"""What a run changed, from the agent's hands to the report; with a real git and a fake agent."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.mask import Masks
from cloudagent_daemon.runs import changes
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.runner import Runner
from cloudagent_daemon.runs.warm import Warm
from cloudagent_protocol.diffs import Diff
from cloudagent_protocol.frames import RunDiff
from cloudagent_protocol.ids import ConversationId
from fakes.repositories import a_repository, bytes_of
from fakes.runs import RecordedUplink, World, a_world

EDITS = {"mode": "bypassPermissions"}


def diffs(uplink: RecordedUplink) -> list[Diff]:
    return [frame.diff for frame in uplink.frames if isinstance(frame, RunDiff)]


def looks(world: World) -> list[Path]:
    return list(world.workspace.glob(".meta/looks/*"))


async def test_a_run_tells_what_it_changed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo", {"price.py": "VAT = 0.19\n", ".env": ""})
    found = bytes_of(repo / ".git")
    async with a_world(tmp_path) as world:
        order = "@@edit price.py VAT = 0.20\n@@edit .env KEY=not for children\n@@reply done"
        seen = await world.run(world.deliver(order, cwd=str(repo), **EDITS))
        [diff] = diffs(seen)
        again = await world.run(world.deliver("@@reply nothing to do", cwd=str(repo), **EDITS))
        assert looks(world) == []
    assert [(f.path, f.additions, f.deletions) for f in diff.files] == [
        (".env", 1, 0),
        ("price.py", 1, 1),
    ]
    assert diff.files[1].patch.endswith("-VAT = 0.19\n+VAT = 0.20\n")
    assert "not for children" not in diff.files[0].patch
    assert (diff.root, diff.shared, diff.late, diff.redacted) == (str(repo), False, False, True)
    assert (seen.end.outcome, diffs(again)) == ("replied", [])
    assert bytes_of(repo / ".git") == found


async def test_a_folder_in_no_repository_has_no_diff(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(world.deliver("@@edit x y\n@@reply done", **EDITS))
    assert diffs(seen) == []


async def test_a_diff_comes_of_a_run_whose_process_stays(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path, warm=Warm(60, 3)) as world:
        for n in (1, 2):
            order = f"@@edit price.py VAT = {n}\n@@reply done"
            seen = await world.run(world.deliver(order, cwd=str(repo), **EDITS))
            await seen.until(lambda frame: isinstance(frame, RunDiff))
            [diff] = diffs(seen)
            assert f"+VAT = {n}\n" in diff.files[0].patch
            assert diff.count.files == 1


async def test_runs_that_work_in_one_folder_at_once_say_so(tmp_path: Path) -> None:
    repo = a_repository(tmp_path / "repo")
    seen = {"one": RecordedUplink(), "two": RecordedUplink()}
    async with a_world(tmp_path) as world:
        all_changes = Changes(world.settings, Masks(world.settings), RecordedUplink())
        (tmp_path / "fake").mkdir()

        async def run(name: str) -> None:
            uplink = all_changes._uplink = seen[name]  # each reports for itself
            world.conversation = ConversationId(f"conv_{name}")
            order = f"@@edit {name} 1\n@@gate\n@@reply done"
            deliver = world.deliver(order, cwd=str(repo), **EDITS)
            runner = Runner(
                world.settings, world.bridge, uplink, Masks(world.settings), changes=all_changes
            )
            await runner.run(deliver, attempt=1, stop=StopSignal())

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, "one")
                await seen["one"].until(wrote)
                tasks.start_soon(run, "two")
                await seen["two"].until(wrote)
                (tmp_path / "fake" / "gate").touch()
    told = diffs(seen["one"]) + diffs(seen["two"])
    assert [diff.shared for diff in told] == [True, True]


def wrote(frame: Any) -> bool:
    return getattr(getattr(frame, "event", None), "type", None) == "tool_result"


async def test_a_repository_that_is_too_large_is_said_once_and_looked_at_no_more(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_world(tmp_path) as world:
        uplink = RecordedUplink()
        slow = Changes(world.settings, Masks(world.settings), uplink, before_s=0.0)
        runner = Runner(world.settings, world.bridge, uplink, Masks(world.settings), changes=slow)
        for _ in range(2):
            deliver = world.deliver("@@edit price.py x\n@@reply done", cwd=str(repo), **EDITS)
            await runner.run(deliver, attempt=1, stop=StopSignal())
        assert looks(world) == []
    [diff] = diffs(uplink)
    assert diff.problem == changes.TOO_LARGE
    assert uplink.types.count("finished") == 2


@pytest.mark.parametrize("warm", [None, Warm(60, 3)], ids=["alone", "warm"])
async def test_a_run_that_the_daemon_did_not_survive_is_told_of_in_its_next_life(
    tmp_path: Path, warm: Warm | None
) -> None:
    repo = a_repository(tmp_path / "repo")
    uplink = RecordedUplink()
    async with a_world(tmp_path, warm=warm) as world:
        deliver = world.deliver("@@edit price.py x\n@@hang", cwd=str(repo), **EDITS)
        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                runner = world.runner_for(uplink)

                async def run() -> None:
                    await runner.run(deliver, attempt=1, stop=StopSignal())

                tasks.start_soon(run)
                await uplink.until(wrote)
                tasks.cancel_scope.cancel()
    assert len(looks(world)) == 1
    assert diffs(uplink) == []
    next_life = Changes(world.settings, Masks(world.settings), uplink)
    await next_life.recover()
    assert looks(world) == []
    await next_life.recover()
    [frame] = [frame for frame in uplink.frames if isinstance(frame, RunDiff)]
    assert frame.run_id == getattr(uplink.frames[0], "run_id", None)
    assert frame.diff == Diff(problem=changes.LOST)


async def test_an_agent_that_acts_before_the_first_look_is_over_makes_the_diff_say_so(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo")
    gate, programs = tmp_path / "gate", tmp_path / "bin"
    programs.mkdir()
    slow = programs / "git"
    slow.write_text(
        f'#!/bin/sh\nuntil [ -e {gate} ]; do sleep 0.02; done\nexec /usr/bin/git "$@"\n'
    )
    slow.chmod(0o755)
    async with a_world(tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"}) as world:
        uplink = RecordedUplink()
        deliver = world.deliver("@@tool Bash\n@@reply done", cwd=str(repo))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    await world.runner_for(uplink).run(deliver, attempt=1, stop=StopSignal())

                tasks.start_soon(run)
                await uplink.until(lambda frame: getattr(frame, "text", "") == "done")
                gate.touch()
    [diff] = diffs(uplink)
    assert (diff.late, diff.files) == (True, [])
