"""What every driver has to do, whatever program is behind it.

A behaviour takes a kit (`contracts/kits.py`): a driver with a program, and the orders that this program
takes. What it comes to is judged by functions of its own, so that `contracts/journeys.py` can look at
several behaviours in one start of a program that takes seconds for it.
"""

import hashlib
import os
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import anyio

from cloudagent_daemon.process import find_tree
from cloudagent_daemon.runs.ports import Ride, Said, StopSignal
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.attachments import media_type_of
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Outcome, Reason, Retry, Text, ToolCall
from cloudagent_protocol.frames import Deliver, Expect, RunReport, Send
from cloudagent_protocol.ids import new_attachment_id, new_conversation_id
from contracts.kits import Kit
from fakes.runs import RecordedUplink, World, alive

Behaviour: TypeAlias = Callable[[Kit, Path], Awaitable[None]]
BEHAVIOURS: Final[dict[str, Behaviour]] = {}


def behaviour(words: str) -> Callable[[Behaviour], Behaviour]:
    """Adds one, under the words that the matrix has for it."""

    def add(check: Behaviour) -> Behaviour:
        BEHAVIOURS[words] = check
        return check

    return add


# --- turns ---


@behaviour("a reply by our tool")
async def replies(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        seen = await world.run(kit.reply("hello Ana"))
    assert_replied(kit, seen, "hello Ana")


def assert_replied(kit: Kit, seen: RecordedUplink, text: str) -> None:
    assert (seen.end.outcome, seen.end.reason) == (Outcome.REPLIED, None)
    assert [send.text for send in seen.sends] == [text]
    assert seen.types[:2] == ["started", "ready"]
    assert {"tool_call", "tool_result"} <= set(seen.types)
    calls = [event for event in seen.events if isinstance(event, ToolCall)]
    [call] = [
        call for call in calls if call.name.removeprefix("mcp__cloudagent__") == "send_message"
    ]
    assert call.input == ({"text": text} if kit.tells_input else {})
    assert_nothing_left(seen)


@behaviour("text that is published if nothing is sent")
async def publishes(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        seen = await world.run("@@say the answer is 4")
    assert seen.end.outcome is Outcome.AUTO_PUBLISHED
    assert [send.text for send in seen.sends] == ["the answer is 4"]


@behaviour("text as it is written")
async def streams(kit: Kit, home: Path) -> None:
    said = "one two three four five"
    async with kit.world(home) as world:
        seen = await world.run(f"@@say {said}\n{kit.reply('ok')}\n@@say and more words")
    assert_streamed(seen, said)


def assert_streamed(seen: RecordedUplink, said: str) -> None:
    blocks: dict[int, str] = {}
    for delta in seen.deltas:
        assert delta.offset == len(blocks.get(delta.block, ""))
        blocks[delta.block] = blocks.get(delta.block, "") + delta.text
    assert len(seen.deltas) > 0
    assert blocks == {e.block: e.text for e in seen.events if isinstance(e, Text)}
    assert said in blocks.values()


@behaviour("a session resumed")
async def resumes(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        first = await world.run(kit.reply("the first"))
        second = await world.run("@@recall")
    assert second.end.outcome is Outcome.AUTO_PUBLISHED
    assert_resumed(kit, first, second)
    assert "the first" in second.sends[0].text or not kit.resumes


def assert_resumed(kit: Kit, first: RecordedUplink, second: RecordedUplink) -> None:
    if kit.resumes:
        assert first.end.session_id == second.end.session_id
        assert second.events[0].resumed
        assert len(second.launches) == 1
    else:
        assert second.queries  # what was said before was asked for, to be handed on
        assert first.end.session_id != second.end.session_id


GONE: Final = "0197aaaa-0000-7000-8000-000000000000"


@behaviour("an unknown session begun anew, and told")
async def begins_anew(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        forget_session(world)
        seen = await world.run(kit.reply("still here"))
    assert seen.end.outcome is Outcome.REPLIED
    assert_begun_anew(kit, seen)


def forget_session(world: World) -> None:
    """The conversation's session is one that the program does not know."""
    workspace = Workspace(world.settings.agents_dir, world.agent)
    workspace.prepare()
    workspace.keep_session(world.conversation, GONE)


def assert_begun_anew(kit: Kit, seen: RecordedUplink) -> None:
    assert seen.end.session_id != GONE
    if kit.resumes:
        assert [e.reason for e in seen.events if isinstance(e, Retry)] == [Reason.SESSION_LOST]


@behaviour("two conversations at once")
async def two_at_once(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        left = world.deliver(kit.reply("left"))
        world.conversation = new_conversation_id()
        right = world.deliver(kit.reply("right"))
        seen = await at_once(world, left, right)
    assert [[send.text for send in one.sends] for one in seen] == [["left"], ["right"]]
    assert_apart(*seen)


async def at_once(world: World, *delivers: Deliver) -> list[RecordedUplink]:
    """What is reported of each of them."""
    uplinks = [RecordedUplink() for _ in delivers]
    async with anyio.create_task_group() as tasks:
        for deliver, uplink in zip(delivers, uplinks, strict=True):
            tasks.start_soon(partial(_run, world, deliver, uplink))
    return uplinks


async def _run(world: World, deliver: Deliver | str, uplink: RecordedUplink) -> None:
    await world.run(deliver, uplink=uplink)


def assert_apart(*seen: RecordedUplink) -> None:
    """They went on side by side, each in a process and a session of its own."""
    begun = [one.events[0].at for one in seen]
    ended = [one.events[-1].at for one in seen]
    assert max(begun) < min(ended)
    assert len({one.end.session_id for one in seen}) == len(seen)


@behaviour("the next message in the same process")
async def stays_warm(kit: Kit, home: Path) -> None:
    async with kit.world(home, warm=Warm(600.0, 3)) as world:
        first = await world.run(kit.reply("one"))
        second = await world.run(kit.reply("two"))
        pids = {launch.pid for seen in (first, second) for launch in seen.launches}
        assert {pid: alive(pid) for pid in pids} == dict.fromkeys(pids, kit.warm)
        assert len(pids) == (1 if kit.warm else 2)
    assert [send.text for seen in (first, second) for send in seen.sends] == ["one", "two"]
    assert [send.run_id for send in second.sends] == [second.end_report.run_id]
    assert {first.end.outcome, second.end.outcome} == {Outcome.REPLIED}
    assert "ready" in second.types
    assert_nothing_left(first)


@behaviour("the first message in a process that waits for it")
async def waits_ahead(kit: Kit, home: Path) -> None:
    warm = Warm(600.0, 3)
    async with kit.world(home, warm=warm) as world:
        first = await world.run(kit.reply("one"))
        warm.clear("for the test")
        ahead = world.runner_for(uplink := RecordedUplink()).ahead
        assert ahead
        looked_at = Expect(agent=world.agent, conversation_id=world.conversation)
        assert await ahead.start(looked_at) == kit.warm
        assert (uplink.frames, uplink.launches) == ([], [])
        second = await world.run(kit.reply("two"))
        assert [send.text for send in second.sends] == ["two"]
        assert "retry" not in second.types
        waited = [pid for _, pid in uplink.waiting if pid]
        assert (waited == [launch.pid for launch in second.launches]) == kit.warm
        if kit.resumes:
            assert first.end.session_id == second.end.session_id


@behaviour("a message put into its turn")
async def is_steered(kit: Kit, home: Path) -> None:
    uplink, rides = RecordedUplink(), list[Ride | None]()
    async with kit.world(home, warm=Warm(600.0, 3)) as world:
        orders = f"{kit.reply('on it')}\n{kit.hold}" if kit.steers else kit.reply("on it")
        first, second = world.deliver(orders), world.deliver(kit.reply("that too"))
        runner = world.runner_for(uplink)
        uplink.deadline_s = world.deadline_s
        with anyio.fail_after(world.deadline_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, first, attempt=1, stop=StopSignal()))
                await uplink.until(is_result)
                rides.append(await runner.steer(first.delivery_id, second, attempt=1))
    [ride] = rides
    assert (ride is not None) == kit.steers
    assert ride is None or ride.taken
    assert [send.text for send in uplink.sends] == ["on it", "that too"][: 1 + kit.steers]
    assert len(uplink.end_report.delivery_ids) == 1 + kit.steers
    assert uplink.end.outcome is Outcome.REPLIED
    assert_nothing_left(uplink)


@behaviour("a picture that its model sees")
async def sees(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        seen = await world.run(with_files(world, "@@pictures", FILES))
    assert [send.text for send in seen.sends] == [pictures(kit)]


def pictures(kit: Kit) -> str:
    """What its model says of FILES."""
    return "image/png" if kit.sees else "none"


# --- ends ---


@behaviour("a stop, with all that it started gone")
async def stops(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        seen = await stopped(kit, world)
        assert_stopped(kit, world, seen)
        again = await world.run(kit.reply("back"))
    assert_nothing_left(seen)
    assert again.end.outcome is Outcome.REPLIED


async def stopped(kit: Kit, world: World) -> RecordedUplink:
    """A run that a person has stopped after it left a child behind and replied."""
    stop, uplink = StopSignal(), RecordedUplink()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(world.run, busy(kit, world), stop=stop, uplink=uplink))
        await until_hangs(kit, world, uplink)
        stop.request("Ana")
    return uplink


def busy(kit: Kit, world: World) -> Deliver:
    """Leaves a child behind, replies, and hangs; and may do all that."""
    world.agent = world.agent.model_copy(update={"mode": "bypassPermissions"})
    child = kit.child(world.home / "effects") if kit.child else ""
    return world.deliver("\n".join(filter(None, [child, kit.reply("on it"), kit.hang])))


async def until_hangs(kit: Kit, world: World, uplink: RecordedUplink) -> None:
    """Until the reply's own result is there: what it does before may have one as well."""
    uplink.deadline_s = world.deadline_s

    def wanted(frame: Said) -> bool:
        at = next(n for n, one in enumerate(uplink.frames) if one is frame)
        return is_result(frame) and any(isinstance(one, Send) for one in uplink.frames[:at])

    await uplink.until(wanted)
    assert not kit.child or alive(children(world)[-1])


def assert_stopped(kit: Kit, world: World, seen: RecordedUplink) -> None:
    assert (seen.end.outcome, seen.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert "Ana" in seen.end.detail
    assert kit.stopped in {None, seen.end.exit_code}
    assert_no_child(kit, world)


def assert_no_child(kit: Kit, world: World, runs: int = 1) -> None:
    """So many runs have left a child behind, and none of these lives."""
    assert len(children(world)) == (runs if kit.child else 0)
    assert not any(map(alive, children(world)))


def children(world: World) -> list[int]:
    return [int(line.split()[1]) for line in world.effects() if line.startswith("child")]


@behaviour("a stop that its process survives")
async def survives_a_stop(kit: Kit, home: Path) -> None:
    async with kit.world(home, warm=Warm(600.0, 3)) as world:
        seen = await stopped(kit, world)
        assert_no_child(kit, world)
        assert alive(seen.launches[0].pid) == kit.warm
        after = await world.run(kit.reply("back"))
    assert (seen.end.outcome, seen.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert (after.launches[0].pid == seen.launches[0].pid) == kit.warm
    assert after.end.outcome is Outcome.REPLIED
    assert_nothing_left(after)


@behaviour("a process that is killed, with all that it started gone")
async def is_killed(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        seen = await killed(kit, world)
        assert_no_child(kit, world)
    assert_killed(seen)


async def killed(kit: Kit, world: World) -> RecordedUplink:
    """A run whose process was killed after it left a child behind and replied."""
    uplink = RecordedUplink()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(_run, world, busy(kit, world), uplink))
        await until_hangs(kit, world, uplink)
        os.kill(uplink.launches[0].pid, signal.SIGKILL)
    return uplink


def assert_killed(seen: RecordedUplink) -> None:
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.CRASHED)
    assert len(seen.launches) == 1  # it had begun: what it did is not done again
    assert_nothing_left(seen)


@behaviour("a process that hangs")
async def hangs(kit: Kit, home: Path) -> None:
    async with kit.world(home, hang_timeout_s=kit.patience_s) as world:
        seen = await world.run(f"{kit.reply('on it')}\n{kit.hang}")
    assert_hung(seen)


def assert_hung(seen: RecordedUplink) -> None:
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.HUNG)
    assert_nothing_left(seen)


async def _fails(kit: Kit, home: Path, status: int) -> None:
    async with kit.world(home) as world:
        seen = await world.run(kit.error(status))
    assert_failed(kit, seen, status)


#: What a status of its model's comes to.
STATUSES: Final = {401: Reason.AUTHENTICATION, 429: Reason.RATE_LIMIT, 529: Reason.OVERLOADED}


def assert_failed(kit: Kit, seen: RecordedUplink, status: int) -> None:
    assert seen.end.outcome is Outcome.FAILED
    assert seen.end.reason is kit.reasons.get(status, STATUSES[status])
    assert seen.sends == []
    assert_nothing_left(seen)


@behaviour("401: log in")
async def is_refused(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 401)


@behaviour("429: rate limit")
async def is_limited(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 429)


@behaviour("429 with its end")
async def is_limited_until(kit: Kit, home: Path) -> None:
    until = int(time.time()) + 7_200
    async with kit.world(home) as world:
        seen = await world.run(limited(kit, until))
    assert_limited(kit, seen, until)


def limited(kit: Kit, until: int) -> str:
    return kit.limit(until) if kit.limit else kit.error(429)


def assert_limited(kit: Kit, seen: RecordedUplink, until: int) -> None:
    assert seen.end.reason is kit.reasons.get(429, Reason.RATE_LIMIT)
    if kit.limit is None:
        assert seen.end.resets_at is None
        return
    assert seen.end.resets_at is not None
    assert abs(seen.end.resets_at.timestamp() - until) < 60
    assert f"{seen.end.resets_at:%H:%M} UTC" in seen.end.detail


@behaviour("529: overloaded")
async def is_overloaded(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 529)


# --- the like ---


def with_files(world: World, text: str, files: dict[str, bytes]) -> Deliver:
    """A message with files that are on the machine already."""
    deliver = world.deliver(text)
    folder = world.workspace / "attachments" / deliver.message.id
    folder.mkdir(parents=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    attachments = [
        Attachment(
            id=new_attachment_id(),
            name=name,
            media_type=media_type_of(body),
            size_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )
        for name, body in files.items()
    ]
    message = deliver.message.model_copy(update={"attachments": attachments})
    return deliver.model_copy(update={"message": message})


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + check


#: A grey square, such as any program can read.
PNG: Final = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", b"\0\0\0\x10\0\0\0\x10\x08\0\0\0\0")
    + _chunk(b"IDAT", zlib.compress((b"\0" + b"\x80" * 16) * 16))
    + _chunk(b"IEND", b"")
)


#: Of these its model sees the first.
FILES: Final = {"shot.png": PNG, "notes.txt": b"not shown"}


def assert_nothing_left(seen: RecordedUplink) -> None:
    for launch in seen.launches:
        assert find_tree(launch.pid, launch.started_at, launch.launch_id, session=True) == []


def is_result(frame: Said) -> bool:
    return isinstance(frame, RunReport) and frame.event.type == "tool_result"
