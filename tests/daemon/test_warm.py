"""A process that stays after its turn: what it may do, what ends it, and that no message suffers."""

import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.drivers.base import Decision, PermissionAsked
from cloudagent_daemon.process import find_tree
from cloudagent_daemon.runs.ports import Launch, Ride, Said, StopSignal
from cloudagent_daemon.runs.warm import Shelf, Warm
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.events import Outcome, Ready, Reason, Retry, Steered, Text
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import AgentId, ConversationId, new_conversation_id
from contracts.drivers import is_result
from fakes.runs import RecordedUplink, World, a_turn, a_world, alive

DEADLINE_S = 20.0


@asynccontextmanager
async def a_warm_world(
    home: Path, warm_s: float = 600.0, most: int = 3, **limits: Any
) -> AsyncGenerator[World]:
    async with a_world(home, warm=Warm(warm_s, most), **limits) as world:
        yield world


async def until_gone(launch: Launch) -> None:
    with anyio.fail_after(DEADLINE_S):
        # No event tells of the end of another's process.
        while find_tree(launch.pid, launch.started_at, launch.launch_id, session=True):  # noqa: ASYNC110
            await anyio.sleep(0.02)


def pids(*seen: RecordedUplink) -> list[int]:
    return [launch.pid for one in seen for launch in one.launches]


# --- the rule ---


def key(number: int) -> tuple[AgentId, ConversationId]:
    return AgentId("agent_1"), ConversationId(f"conv_{number}")


def test_the_one_that_was_used_longest_ago_makes_way() -> None:
    shelf: Shelf[str] = Shelf(2)
    assert shelf.put(key(1), "a") == shelf.put(key(2), "b") == []
    assert shelf.take(key(1)) == "a"
    assert shelf.put(key(1), "a") == []
    assert shelf.put(key(3), "c") == ["b"]
    assert (len(shelf), shelf.take(key(2))) == (2, None)
    assert shelf.put(key(3), "d") == ["c"]  # one per conversation
    shelf.drop(key(3), "c")  # not the one that is there now
    assert shelf.clear() == ["a", "d"]


def test_none_is_kept_where_none_may_be() -> None:
    assert Shelf[str](0).put(key(1), "a") == ["a"]
    assert not Warm(0, 3).keeps
    assert not Warm(600, 0).keeps
    assert Warm(600, 3).keeps


# --- turns ---


async def test_the_next_message_goes_to_the_same_process_and_each_call_to_its_own_run(
    tmp_path: Path,
) -> None:
    async with a_warm_world(tmp_path) as world:
        first = await world.run("@@reply one")
        second = await world.run("@@recall\n@@reply two")
        third = await world.run("@@quit")
        assert len(set(pids(first, second))) == 1
        [launch] = first.launches
        assert alive(launch.pid) is False  # the third has ended it
    assert [send.text for send in first.sends] == ["one"]
    assert [send.text for send in second.sends] == ["two"]
    assert [{send.run_id} for send in second.sends] == [{second.finished[0].run_id}]
    assert {one.end.outcome for one in (first, second)} == {Outcome.REPLIED}
    assert "@@reply one" in next(e.text for e in second.events if isinstance(e, Text))
    assert second.types[:2] == ["started", "ready"]
    assert second.events[0].resumed
    assert [one.end.exit_code for one in (first, second)] == [None, None]
    assert first.launches[0].stays
    # It did begin with the third, and is not given it again.
    assert (third.end.outcome, third.end.reason) == (Outcome.FAILED, Reason.NO_RESULT)
    assert world.effects().count(f"start {first.end.session_id}") == 1


async def test_who_waits_can_be_told_and_that_it_has_changed(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        assert world.warm
        assert world.warm.all == []
        news, before = world.warm.changed, time.time()
        first = await world.run("@@reply one")
        assert news.is_set()
        [one] = world.warm.all
        assert (one.agent_id, one.conversation_id) == (world.agent.id, world.conversation)
        assert (one.pid, one.program, one.ahead) == (pids(first)[0], sys.executable, False)
        assert before <= one.since <= time.time()
        assert one.until == one.since + 600
        news = world.warm.changed
        world.warm.clear("for the test")
        assert (news.is_set(), world.warm.all) == (True, [])


async def test_what_a_turn_left_running_ends_with_it_and_the_process_stays(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        first = await world.run("@@setsid\n@@spawn\n@@reply one")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
        assert (len(children), any(map(alive, children))) == (2, False)
        second = await world.run("@@reply two")  # its tools are still there
    assert pids(first) == pids(second)
    assert second.end.outcome is Outcome.REPLIED


async def test_a_stop_leaves_the_process_for_the_next_message(tmp_path: Path) -> None:
    stop, stopped = StopSignal(), RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        async with anyio.create_task_group() as tasks:
            orders = "@@setsid\n@@reply on it\n@@hang"
            tasks.start_soon(lambda: world.run(orders, stop=stop, uplink=stopped))
            await stopped.until(is_result)
            stop.request("Ana")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
        assert not any(map(alive, children))
        after = await world.run("@@reply back")
    assert (stopped.end.outcome, stopped.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert pids(stopped) == pids(after)
    assert after.end.outcome is Outcome.REPLIED


async def test_what_a_warm_process_works_on_is_on_the_disk_even_for_who_has_lost_the_spool(
    tmp_path: Path,
) -> None:
    stop, second = StopSignal(), RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        await world.run("@@reply one")
        deliver = world.deliver("@@hang")
        space = Workspace(world.settings.agents_dir, world.agent)
        known: list[str] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, stop=stop, uplink=second))
            await second.until(lambda said: isinstance(getattr(said, "event", None), Ready))
            if record := space.turn_of(deliver.delivery_id):
                known.append(record.launch_id)
            stop.request("Ana")
    assert known == [second.launches[0].launch_id]


async def test_while_it_is_barred_a_turn_that_ends_leaves_no_process(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        assert world.warm
        first = await world.run("@@reply one")
        world.warm.bar("the key was revoked")
        await until_gone(first.launches[0])
        second = await world.run("@@reply two")
        assert not any(map(alive, pids(first, second)))
        world.warm.bar(None)
        third, fourth = await world.run("@@reply three"), await world.run("@@reply four")
        assert len(set(pids(third, fourth))) == 1


async def test_one_that_does_not_heed_an_interrupt_is_ended(tmp_path: Path) -> None:
    stop, stopped = StopSignal(), RecordedUplink()
    async with a_warm_world(tmp_path, term_timeout_s=0.5) as world:
        async with anyio.create_task_group() as tasks:
            orders = "@@deaf\n@@ignore TERM\n@@reply on it\n@@hang"
            tasks.start_soon(lambda: world.run(orders, stop=stop, uplink=stopped))
            await stopped.until(is_result)
            stop.request("Ana")
        assert not alive(stopped.launches[0].pid)
        after = await world.run("@@reply back")
    assert stopped.end.reason is Reason.INTERRUPTED
    assert after.end.outcome is Outcome.REPLIED


async def test_one_that_is_ended_at_once_is_not_waited_for_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    stop, stopped = StopSignal(), RecordedUplink()
    # It has all the time there is to heed what it is asked.
    async with a_warm_world(tmp_path, term_timeout_s=600.0) as world:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                orders = "@@deaf\n@@ignore TERM\n@@setsid\n@@spawn\n@@reply on it\n@@hang"
                tasks.start_soon(lambda: world.run(orders, stop=stop, uplink=stopped))
                await stopped.until(is_result)
                stop.request("Ana")
                stop.hurry("Bo")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
        assert not any(map(alive, [stopped.launches[0].pid, *children]))
        after = await world.run("@@reply back")
    assert (stopped.end.outcome, stopped.end.stopped_by) == (Outcome.CANCELLED, "Ana")
    assert stopped.end.detail.startswith("Ended at once by Bo")
    assert pids(stopped) != pids(after)
    assert after.end.outcome is Outcome.REPLIED


# --- what ends it, and that the next message does not suffer ---


async def a_killed_one(world: World, first: RecordedUplink) -> None:
    os.kill(first.launches[0].pid, signal.SIGKILL)


async def one_with_other_instructions(world: World, first: RecordedUplink) -> None:
    world.agent = world.agent.model_copy(update={"instructions": "Speak like a pirate."})


async def one_that_is_cleared(world: World, first: RecordedUplink) -> None:
    assert world.warm
    world.warm.clear("this machine is short of memory")


@pytest.mark.parametrize(
    "happens",
    [
        a_killed_one,
        one_with_other_instructions,
        one_that_is_cleared,
    ],
)
async def test_a_message_that_finds_no_warm_process_gets_one_of_its_own(
    tmp_path: Path, happens: Callable[[World, RecordedUplink], Awaitable[None]]
) -> None:
    async with a_warm_world(tmp_path) as world:
        first = await world.run("@@reply one")
        await happens(world, first)
        second = await world.run("@@recall\n@@reply two")
        await until_gone(first.launches[0])
        assert first.ended == [first.launches[0].launch_id]  # the disk knows it no more
    assert second.end.outcome is Outcome.REPLIED
    assert second.end.session_id == first.end.session_id
    assert pids(first)[0] != pids(second)[-1]
    assert [send.text for send in second.sends] == ["two"]


# --- another model or permission mode, in the same process ---


async def run_as(world: World, orders: str, **wishes: Any) -> RecordedUplink:
    """Runs a message that wants this model and mode."""
    return await world.run(world.deliver(orders, **wishes))


def said_by(seen: RecordedUplink) -> list[str]:
    return [event.text for event in seen.events if isinstance(event, Text)]


async def test_a_message_that_wants_another_model_or_mode_is_for_the_same_process(
    tmp_path: Path,
) -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"model": "haiku"},
        {"model": "haiku", "mode": "plan"},
        {"mode": "acceptEdits"},
        {},
    ]
    async with a_warm_world(tmp_path) as world:
        seen = [await run_as(world, "@@as", **one) for one in wishes]
    assert [text for one in seen for text in said_by(one)] == [
        "fake-1 default", "haiku default", "haiku plan", "fake-1 acceptEdits", "fake-1 default",
    ]  # fmt: skip
    assert len(set(pids(*seen))) == 1
    models = [event.model for one in seen for event in one.events if isinstance(event, Ready)]
    assert models == ["fake-1", "haiku", "haiku", "fake-1", "fake-1"]
    assert not any("retry" in one.types for one in seen)


@pytest.mark.parametrize("wish", [{"model": "haiku"}, {"mode": "plan"}], ids=["model", "mode"])
@pytest.mark.parametrize("how", ["stubborn", "deaf", "crash"])
async def test_one_that_does_not_agree_to_another_model_or_mode_is_not_given_the_message(
    tmp_path: Path, wish: dict[str, str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudagent_daemon.runs.worker.ADJUST_S", 5.0 if how == "crash" else 0.3)
    order = {"stubborn": "@@stubborn", "deaf": "@@deaf", "crash": "@@touchy"}[how]
    async with a_warm_world(tmp_path) as world:
        first = await world.run(f"@@reply one\n{order}")
        second = await run_as(world, "@@recall\n@@as\n@@reply two", **wish)
    assert [send.text for send in second.sends] == ["two"]
    told = {"model": "haiku default", "mode": "fake-1 plan"}[next(iter(wish))]
    assert "@@reply one" in said_by(second)[0]
    assert said_by(second)[1] == told
    assert (len(pids(second)), pids(first) == pids(second)) == (1, False)
    assert second.end.session_id == first.end.session_id


async def test_one_that_was_begun_without_any_questions_is_for_no_other_mode(
    tmp_path: Path,
) -> None:
    """In `plan`, too, claude asks nothing then."""
    async with a_warm_world(tmp_path) as world:
        wide = await run_as(world, f"@@touch {tmp_path}/one", mode="bypassPermissions")
        narrow = await run_as(world, f"@@touch {tmp_path}/two", mode="plan")
        back = await run_as(world, f"@@touch {tmp_path}/three", mode="bypassPermissions")
    assert sorted(path.name for path in tmp_path.glob("t*")) == ["three"]
    assert (tmp_path / "one").exists()
    assert len(set(pids(wide, narrow, back))) == 3


async def test_a_run_has_nothing_of_the_wider_mode_of_the_one_before(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        seen: list[RecordedUplink] = []
        for mode in ("acceptEdits", "default", "acceptEdits", "plan"):
            path = tmp_path / f"made-{len(seen)}"
            seen.append(await run_as(world, f"@@touch {path}", mode=mode))
        assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-0", "made-2"]
        assert len(set(pids(*seen))) == 1


@pytest.mark.parametrize("how", ["crash", "hang"])
async def test_one_that_dies_or_hangs_before_it_has_taken_a_message_up_has_not_run_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudagent_daemon.runs.turns._TAKE_UP_S", 0.5)
    async with a_warm_world(tmp_path, term_timeout_s=0.5) as world:
        first = await world.run(f"@@reply one\n@@untaken {how}")
        second = await world.run("@@reply two")
    assert [send.text for send in second.sends] == ["two"]
    assert second.end.outcome is Outcome.REPLIED
    [retry] = [event for event in second.events if isinstance(event, Retry)]
    assert retry.reason is Reason.CRASHED
    # No launch that failed, of which a message has three.
    assert "before it took the message up" in retry.detail
    assert pids(second)[0] == pids(first)[0] != pids(second)[1]
    assert second.types.count("started") == 1


@pytest.mark.parametrize("what", ["work", "garbage", "crash"])
async def test_nobody_hears_of_what_it_does_between_two_turns(tmp_path: Path, what: str) -> None:
    async with a_warm_world(tmp_path) as world:
        first = await world.run(f"@@reply one\n@@later {what}")
        (tmp_path / "fake" / "later").touch()
        if what != "garbage":
            await until_gone(first.launches[0])
        second = await world.run("@@reply two")
    assert [send.text for one in (first, second) for send in one.sends] == ["one", "two"]
    assert second.end.outcome is Outcome.REPLIED


async def test_its_time_ends_it_and_so_do_others_that_were_used_later(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path, warm_s=0.2) as world:
        first = await world.run("@@reply one")
        await until_gone(first.launches[0])
    async with a_warm_world(tmp_path, most=1) as world:
        first = await world.run("@@reply one")
        world.conversation = new_conversation_id()
        second = await world.run("@@reply two")
        await until_gone(first.launches[0])
        assert alive(second.launches[0].pid)
    assert not alive(second.launches[0].pid)  # the daemon's end is theirs


async def test_a_failed_turn_leaves_none(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        first = await world.run("@@error 429 rate_limit")
        assert not alive(first.launches[0].pid)


# --- a message that is put into a turn ---


async def steered(
    world: World, orders: str, more: str, uplink: RecordedUplink, *, until: Callable[[Said], bool]
) -> tuple[Deliver, Ride | None]:
    """Runs `orders`, and puts `more` into them."""
    first, second = world.deliver(orders), world.deliver(more)
    runner = world.runner_for(uplink)
    rides: list[Ride | None] = []
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(runner.run, first, attempt=1, stop=StopSignal()))
            await uplink.until(until)
            rides.append(await runner.steer(first.delivery_id, second, attempt=1))
    return second, rides[0]


async def test_a_message_folded_into_a_turn_is_answered_by_its_run(tmp_path: Path) -> None:
    seen = RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        orders = "@@reply one\n@@pause\n@@reply three"
        second, ride = await steered(world, orders, "@@reply two", seen, until=is_result)
        after = await world.run("@@reply four")
    assert ride
    assert ride.taken
    assert [send.text for send in seen.sends] == ["one", "two", "three"]
    last = seen.sends[-1]
    assert last.in_reply_to == second.message.id != seen.sends[0].in_reply_to
    [taken] = [event for event in seen.events if isinstance(event, Steered)]
    assert (taken.delivery_id, taken.message_id) == (second.delivery_id, second.message.id)
    # One end, of both.
    [end] = seen.finished
    assert len(end.delivery_ids) == 2
    assert second.delivery_id in end.delivery_ids
    assert [launch.delivery_id for launch in seen.launches] == end.delivery_ids
    assert pids(seen)[0] == pids(seen)[1] == pids(after)[0]


async def test_a_message_that_wants_another_model_or_mode_is_not_put_into_the_turn(
    tmp_path: Path,
) -> None:
    seen = RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        first = world.deliver("@@reply one\n@@gate")
        wishes = {"model": "haiku"}, {"mode": "plan"}
        runner, rides = world.runner_for(seen), list[Ride | None]()
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, first, attempt=1, stop=StopSignal()))
                await seen.until(is_result)
                for wish in wishes:
                    other = world.deliver("@@reply two", **wish)
                    rides.append(await runner.steer(first.delivery_id, other, attempt=1))
                (tmp_path / "fake" / "gate").touch()
    assert rides == [None, None]
    assert [send.text for send in seen.sends] == ["one"]


async def test_a_message_that_gets_a_turn_of_its_own_belongs_to_the_run_all_the_same(
    tmp_path: Path,
) -> None:
    seen = RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        orders = "@@reply one\n@@gate"
        opened = tmp_path / "fake" / "gate"
        first, second = world.deliver(orders), world.deliver("@@reply two")
        runner, ride = world.runner_for(seen), None
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, first, attempt=1, stop=StopSignal()))
                await seen.until(is_result)
                ride = await runner.steer(first.delivery_id, second, attempt=1)
                opened.touch()
    assert ride
    assert ride.taken
    assert [send.text for send in seen.sends] == ["one", "two"]
    assert len(seen.end_report.delivery_ids) == 2
    assert seen.end.outcome is Outcome.REPLIED


async def test_what_was_put_in_and_not_taken_up_is_left_for_a_turn_of_its_own(
    tmp_path: Path,
) -> None:
    seen = RecordedUplink()
    async with a_warm_world(tmp_path) as world:
        orders = "@@reply one\n@@gate\n@@crash"
        opened = tmp_path / "fake" / "gate"
        first, second = world.deliver(orders), world.deliver("@@reply two")
        runner, ride = world.runner_for(seen), None
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, first, attempt=1, stop=StopSignal()))
                await seen.until(is_result)
                ride = await runner.steer(first.delivery_id, second, attempt=1)
                opened.touch()
        assert ride
        assert not ride.taken
        assert seen.end_report.delivery_ids == [first.delivery_id]
        assert seen.end.reason is Reason.CRASHED
        own = await world.run(second)
    assert [send.text for send in own.sends] == ["two"]
    assert "interrupted" not in [e.text for e in own.events if isinstance(e, Text)]


async def test_nothing_is_put_into_what_is_over_or_another_agent_s(tmp_path: Path) -> None:
    async with a_warm_world(tmp_path) as world:
        first = world.deliver("@@reply one")
        runner = world.runner_for(RecordedUplink())
        assert await runner.steer(first.delivery_id, world.deliver("x"), attempt=1) is None
        await runner.run(first, attempt=1, stop=StopSignal())
        assert await runner.steer(first.delivery_id, world.deliver("x"), attempt=1) is None


# --- permissions, at the seam ---


async def test_who_decides_may_take_its_time_and_its_answer_is_the_program_s(
    tmp_path: Path,
) -> None:
    asked: list[PermissionAsked] = []

    async def decide(question: PermissionAsked) -> Decision:
        asked.append(question)
        await anyio.lowlevel.checkpoint()
        return Decision(question.tool == "Bash", "only the shell")

    async with a_world(tmp_path) as world, world.process() as held:
        _, allowed = await a_turn(held, '@@may Bash {"command": "ls"}', decide)
        _, denied = await a_turn(held, "@@may Write {}", decide)
        assert held.worker.usable
    assert ['"allow"' in allowed[0], "only the shell" in denied[0]] == [True, True]
    assert [question.kind for question in asked] == ["execute", "edit"]


async def test_a_question_that_is_taken_back_is_decided_no_more(tmp_path: Path) -> None:
    stop, withdrawn = StopSignal(), anyio.Event()

    async def decide(question: PermissionAsked) -> Decision:
        stop.request("Ana")
        try:
            await anyio.sleep_forever()
        finally:
            withdrawn.set()
        raise AssertionError

    async with a_world(tmp_path) as world, world.process() as held:
        seen, _ = await a_turn(held, "@@may Bash {}", decide, stop)
        assert withdrawn.is_set()
        assert seen.end
        assert seen.end.reason is Reason.INTERRUPTED
        assert held.worker.usable
