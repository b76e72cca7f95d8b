"""A process that is started because a person looks at a conversation: no turn, and nothing lost."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.runs.warm import Shelf, Warm
from cloudagent_protocol.events import Outcome
from cloudagent_protocol.frames import Expect
from cloudagent_protocol.ids import AgentId, ConversationId, new_conversation_id
from fakes.repositories import a_repository, bytes_of
from fakes.runs import RecordedUplink, World, a_world, alive

DEADLINE_S = 20.0


@asynccontextmanager
async def a_warm_world(home: Path, most: int = 3, **limits: Any) -> AsyncGenerator[World]:
    async with a_world(home, warm=Warm(600.0, most), **limits) as world:
        yield world


def looked_at(world: World, **agent: Any) -> Expect:
    return Expect(agent=world.agent.model_copy(update=agent), conversation_id=world.conversation)


async def started_ahead(world: World, **agent: Any) -> int | None:
    """The process that waits for a message of the world's conversation now."""
    uplink = RecordedUplink()
    ahead = world.runner_for(uplink).ahead
    assert ahead
    started = await ahead.start(looked_at(world, **agent))
    assert uplink.frames == uplink.launches == []  # nobody hears of it
    if not started:
        return None
    (launch_id, none), (same, pid) = uplink.waiting
    assert (same, none) == (launch_id, 0)  # it is known to the disk before there is a process
    return pid


async def until_gone(pid: int) -> None:
    with anyio.fail_after(DEADLINE_S):
        # No event tells of the end of another's process.
        while alive(pid):  # noqa: ASYNC110
            await anyio.sleep(0.02)


def starts(world: World) -> int:
    return sum(line.startswith("start") for line in world.effects())


# --- the rule ---


def key(number: int) -> tuple[AgentId, ConversationId]:
    return AgentId("agent_1"), ConversationId(f"conv_{number}")


def test_what_is_laid_takes_nobodys_place_and_makes_way_first() -> None:
    shelf: Shelf[str] = Shelf(2)
    shelf.put(key(1), "used")
    assert shelf.has_room_for(key(2))
    assert not shelf.has_room_for(key(1))
    assert shelf.lay(key(2), "ahead")
    assert not shelf.lay(key(2), "again")
    assert not shelf.lay(key(3), "one more")
    assert not shelf.has_room_for(key(3))
    assert shelf.has_room_for(key(3), instead_of="ahead")
    assert shelf.put(key(3), "used later") == ["ahead"]
    assert shelf.clear() == ["used", "used later"]


# --- processes ---


@pytest.mark.parametrize("known", [True, False], ids=["a session", "no session yet"])
async def test_the_message_after_the_opening_begins_in_the_process_that_waits(
    tmp_path: Path, known: bool
) -> None:
    async with a_warm_world(tmp_path) as world:
        assert world.warm
        before, session_id = 0, None
        if known:
            earlier = await world.run("@@reply one")
            world.warm.clear("for the test")
            await until_gone(earlier.launches[0].pid)
            before, session_id = 1, earlier.end.session_id
        pid = await started_ahead(world)
        assert [(one.pid, one.ahead) for one in world.warm.all] == [(pid, True)]
        seen = await world.run("@@recall\n@@reply two")
        assert [launch.pid for launch in seen.launches] == [pid]
        assert starts(world) == before + 1
        assert session_id in (None, seen.end.session_id)
        # And then it is one like every other.
        after = await world.run("@@reply three")
        assert [launch.pid for launch in after.launches] == [pid]
    assert [send.text for send in seen.sends] == ["two"]
    assert (seen.end.outcome, seen.types[:2]) == (Outcome.REPLIED, ["started", "ready"])
    assert "retry" not in seen.types
    assert pid is not None
    assert not alive(pid)


async def test_opening_alone_is_no_turn_and_its_process_leaves_after_its_time(
    tmp_path: Path,
) -> None:
    async with a_warm_world(tmp_path, expect_s=0.3) as world:
        earlier = await world.run("@@reply one")
        assert world.warm
        world.warm.clear("for the test")
        await until_gone(earlier.launches[0].pid)
        [kept] = world.workspace.glob(".meta/sessions/*.json")
        before = kept.read_bytes(), list(world.workspace.glob(".meta/turns/*"))
        pid = await started_ahead(world)
        assert pid is not None
        await until_gone(pid)
        assert world.warm.waiting == 0
        assert before == (kept.read_bytes(), list(world.workspace.glob(".meta/turns/*")))
        seen = await world.run("@@recall\n@@reply two")
        assert seen.end.session_id == earlier.end.session_id
        assert [send.text for send in seen.sends] == ["two"]


async def test_a_message_that_comes_while_it_starts_waits_for_it(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        pids = list[int | None]()

        async def look() -> None:
            pids.append(await started_ahead(world))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            tasks.start_soon(world.run, "@@reply one")
        assert starts(world) == 1
        assert [launch.pid for launch in world.uplink.launches] == pids


async def test_of_two_that_are_looked_at_one_after_the_other_the_last_one_counts(
    tmp_path: Path,
) -> None:
    async with a_warm_world(tmp_path, most=2) as world:
        assert world.warm
        used = await world.run("@@reply one")
        world.conversation = new_conversation_id()
        first = await started_ahead(world)
        assert await started_ahead(world) is None  # it is there already
        world.conversation = new_conversation_id()
        second = await started_ahead(world)
        assert first is not None
        assert second is not None
        await until_gone(first)
        assert all(map(alive, (second, used.launches[0].pid)))
        assert world.warm.waiting == 2


async def test_no_process_that_has_worked_makes_way_for_one(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path, most=1) as world:
        used = await world.run("@@reply one")
        world.conversation = new_conversation_id()
        assert await started_ahead(world) is None
        assert alive(used.launches[0].pid)


@pytest.mark.parametrize(
    ("limits", "agent"),
    [
        ({"expect_s": 0.0}, {}),
        ({}, {"driver": "codex"}),
        ({}, {"driver": "of tomorrow"}),
        ({}, {"command": ["/nonexistent/claude"]}),
    ],
    ids=["not wanted", "cannot wait", "unknown", "not there"],
)
async def test_where_none_can_wait_none_is_started_and_nothing_is_said(
    tmp_path: Path, limits: dict[str, Any], agent: dict[str, Any]
) -> None:
    async with a_warm_world(tmp_path, **limits) as world:
        assert world.warm
        assert await started_ahead(world, **agent) is None
        assert (world.warm.waiting, world.effects()) == (0, [])


async def test_in_a_work_tree_that_is_there_one_waits_and_none_is_made_for_it(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo")
    before = bytes_of(repo / ".git")
    async with a_warm_world(tmp_path) as world:
        assert world.warm
        how = {"worktree": "per_conversation", "cwd": str(repo)}
        world.agent = world.agent.model_copy(update=how)
        assert await started_ahead(world) is None
        assert (world.warm.waiting, world.effects()) == (0, [])
        assert bytes_of(repo / ".git") == before
        earlier = await world.run("@@reply one")  # which makes it
        world.warm.clear("for the test")
        await until_gone(earlier.launches[0].pid)
        pid = await started_ahead(world)
        assert pid is not None
        [tree] = (path for path in (world.workspace / "worktrees").iterdir() if path.is_dir())
        assert Path(f"/proc/{pid}/cwd").resolve() == tree
        seen = await world.run("@@recall\n@@reply two")
    assert [launch.pid for launch in seen.launches] == [pid]
    assert seen.end.session_id == earlier.end.session_id


async def test_looking_where_there_is_no_work_tree_ends_nobody_elses_process(
    tmp_path: Path,
) -> None:
    repo = a_repository(tmp_path / "repo")
    async with a_warm_world(tmp_path) as world:
        pid = await started_ahead(world)
        assert pid is not None
        world.conversation = new_conversation_id()
        assert await started_ahead(world, worktree="per_conversation", cwd=str(repo)) is None
        assert alive(pid)


async def test_one_that_has_died_or_would_not_do_is_not_given_the_message(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        pid = await started_ahead(world)
        assert pid is not None
        world.agent = world.agent.model_copy(update={"instructions": "Speak like a pirate."})
        seen = await world.run("@@reply one")
        assert [launch.pid for launch in seen.launches] != [pid]
        assert not alive(pid)
        assert seen.end.outcome is Outcome.REPLIED
