"""What runs changed: kept once, shown to whose runs they are, and of the newest runs only."""

from pathlib import Path
from typing import Any

import pytest

from cloudagent_backend.store import diffs, runs
from cloudagent_protocol.diffs import ChangeCount, Diff, FileDiff
from cloudagent_protocol.frames import RunDiff
from cloudagent_protocol.ids import AgentId, RunId
from fakes.desk import Desk, Run, open_desk

DIFF = Diff(
    root="/repo",
    files=[FileDiff(path="f", status="modified", additions=2, deletions=1, patch="@@\n+a\n")],
    more=1,
    additions=5,
    deletions=1,
)


def of(run: Run, diff: Diff = DIFF, **more: Any) -> RunDiff:
    agent_id = run.message.deliveries[0].agent_id
    fields: dict[str, Any] = {"run_id": run.id, "agent_id": agent_id} | more
    return RunDiff(conversation_id=run.message.conversation_id, diff=diff, **fields)


async def a_run(desk: Desk) -> Run:
    run = Run(await desk.say())
    await desk.receive_all()
    await desk.report(run.started(), run.finished())
    return run


async def test_a_diff_is_kept_and_told_once_and_the_first_one_counts(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await a_run(desk)
        before = len(await desk.log())
        await desk.report(of(run))
        await desk.report(of(run, Diff(problem="none")))
        assert await desk.database.read(lambda c: diffs.load(c, run.id)) == DIFF
        row = await desk.database.read(lambda c: runs.load(c, run.id))
        assert row is not None
        assert row.resource.changes == ChangeCount(files=2, additions=5, deletions=1)
        assert [event.type for event in (await desk.log())[before:]] == ["run.updated"]


async def test_a_run_has_no_diff_before_one_is_told(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await a_run(desk)
        assert await desk.database.read(lambda c: diffs.load(c, run.id)) is None
        assert await desk.database.read(lambda c: diffs.load(c, RunId("run_none"))) is None


async def test_why_there_is_no_diff_is_kept_as_well(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await a_run(desk)
        await desk.report(of(run, Diff(problem="too large")))
        row = await desk.database.read(lambda c: runs.load(c, run.id))
        assert row is not None
        assert row.resource.changes == ChangeCount(problem="too large")


async def test_of_a_run_that_is_not_known_nothing_is_kept_and_nothing_stops(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await a_run(desk)
        applied = await desk.report(of(run, run_id=RunId("run_gone")), of(run))
        assert (applied.error, applied.count) == (None, 2)


async def test_a_machine_tells_of_its_own_runs_only(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        run = await a_run(desk)
        for frame in (of(run, agent_id=AgentId("agent_x")), of(run, run_id=RunId("../x"))):
            applied = await desk.report(frame)
            assert applied.error is not None
        assert await desk.database.read(lambda c: diffs.load(c, run.id)) is None


async def test_of_old_runs_the_numbers_stay_and_go_with_their_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffs, "KEPT", 2)
    async with open_desk(tmp_path) as desk:
        told = sorted([await a_run(desk) for _ in range(3)], key=lambda run: run.id)
        for run in told:
            await desk.report(of(run))
        kept = [await desk.database.read(lambda c, run=run: diffs.load(c, run.id)) for run in told]
        assert [bool(diff and diff.files) for diff in kept] == [False, True, True]
        assert kept[0] is not None
        assert kept[0].count.files == 2
        assert "no longer kept" in str(kept[0].problem)
        await desk.database.write(lambda c: c.execute("DELETE FROM conversations"))
        left = await desk.database.read(
            lambda c: c.execute("SELECT count(*) FROM run_diffs").fetchone()[0]
        )
        assert left == 0
