"""What every driver has to do, whatever program is behind it; and which programs there are to try it on.

A behaviour takes a kit: a driver with a program, and the orders that this program takes. The far end is
a fake program, or a program with a scripted model. `tests/e2e/test_real_drivers.py` runs the same
behaviours with the real programs.
"""

import hashlib
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio

from cloudagent_daemon.process import find_tree
from cloudagent_daemon.runs.ports import Ride, Said, StopSignal
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.attachments import media_type_of
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Outcome, Reason, Retry, Text, ToolCall
from cloudagent_protocol.frames import Deliver, Expect, RunReport
from cloudagent_protocol.ids import new_attachment_id, new_conversation_id
from fakes.model import StubModel
from fakes.runs import RecordedUplink, World, a_world, alive

FAKES: Final = Path(__file__).parent.parent / "fakes"
Worlds: TypeAlias = Callable[..., AbstractAsyncContextManager[World]]


@dataclass(frozen=True)
class Kit:
    """A driver with a program to drive."""

    name: str
    world: Worlds
    #: The orders of the program: `text`, `status` and so on are filled in.
    reply: Callable[[str], str] = "@@reply {}".format
    hang: str = "@@hang"
    error: Callable[[int], str] = "@@error {}".format
    #: Has it refused until then (Unix seconds); none: it does not tell the time.
    limit: Callable[[int], str] | None = None
    #: Leaves a child of its own behind; none: it cannot.
    child: str | None = "@@setsid"
    #: How it ends when its turn is stopped: one that is asked to stop, and not signalled, leaves by itself.
    stopped: int | None = None
    #: A silence that is no hang while it starts.
    patience_s: float = 1.5
    #: How it ends when a status of its model's is not passed on.
    reasons: dict[int, Reason] = field(default_factory=dict[int, Reason])
    tells_input: bool = True
    #: It loads no sessions: the history is handed to a new one.
    resumes: bool = True
    #: Its process stays for the next message; a message can be put into its turn.
    warm: bool = False
    steers: bool = False
    #: A picture that comes with a message is shown to its model.
    sees: bool = True
    #: Is at work until a message is put in, or for long enough.
    hold: str = "@@pause"


def fake(name: str, driver: str, script: str, **kit: Any) -> Kit:
    """A kit with a fake program."""

    @asynccontextmanager
    async def world(home: Path, **limits: Any) -> AsyncGenerator[World]:
        async with a_world(home, **limits) as made:
            command = [sys.executable, str(FAKES / script)]
            made.agent = made.agent.model_copy(update={"driver": driver, "command": command})
            yield made

    return Kit(name, world, **kit)


def scripted(name: str, driver: str, environment: Callable[[StubModel], dict[str, str]],
             prepare: Callable[[Path, StubModel], None] = lambda _home, _model: None,
             agent: dict[str, Any] | None = None, deadline_s: float = 30.0, inherits: bool = True,
             **kit: Any) -> Kit:  # fmt: skip
    """A kit with a program of its own model: the model is scripted.

    Args:
        inherits: the driver hands the machine's variables on; else the agent brings them.
    """

    @asynccontextmanager
    async def world(home: Path, **limits: Any) -> AsyncGenerator[World]:
        with StubModel() as model:
            prepare(home, model)
            async with a_world(home, env=environment(model), **limits) as made:
                env = {} if inherits else environment(model)
                update = {"driver": driver, "command": None, "env": env, **(agent or {})}
                made.agent = made.agent.model_copy(update=update)
                made.deadline_s = deadline_s
                yield made

    orders: dict[str, Any] = {"reply": _call_send, "hang": "@@sleep 100", "child": None}
    return Kit(name, world, **{**orders, **kit})


def _call_send(text: str) -> str:
    return f"@@call send_message {json.dumps({'text': text})}"


CLAUDE_ERRORS: Final = {401: "authentication_failed", 429: "rate_limit", 529: "overloaded"}
FAKE_CLAUDE: Final = fake(
    "claude_code", "claude_code", "agent_cli.py", warm=True, steers=True,
    error=lambda status: f"@@error {status} {CLAUDE_ERRORS[status]}",
    limit="@@limit {}\n@@error 429 rate_limit".format,
)  # fmt: skip
FAKE_CODEX: Final = fake("codex", "codex", "codex_app_server.py", steers=True, stopped=0,
    limit="@@limit {}\n@@error 429".format,
)  # fmt: skip
FAKE_ACP: Final = fake("acp", "acp", "acp_agent.py", stopped=0)
BUILTIN: Final = scripted(
    "builtin", "builtin",
    lambda model: {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "k"},
    agent={"model": "stub-model"},
    # Its own wait for a model that only sleeps is a request's, which has begun to answer.
    patience_s=3.0,
    limit=lambda until: f"@@error 429 99 {until - time.time():.0f}",
)  # fmt: skip

#: Our own, driven as an editor drives it.
BUILTIN_ACP: Final = scripted(
    "builtin, over acp", "acp",
    lambda model: {
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "OPENAI_API_KEY": "k",
        "CLOUDAGENT_BUILTIN_MODEL": "stub-model",
    },
    agent={"command": [str(Path(sys.executable).parent / "cloudagent-daemon"), "acp"]},
    inherits=False,
    stopped=0,
    patience_s=3.0,
    sees=False,
)  # fmt: skip

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
    assert (seen.end.outcome, seen.end.reason) == (Outcome.REPLIED, None)
    assert [send.text for send in seen.sends] == ["hello Ana"]
    assert seen.types[:2] == ["started", "ready"]
    assert {"tool_call", "tool_result"} <= set(seen.types)
    calls = [event for event in seen.events if isinstance(event, ToolCall)]
    [call] = [
        call for call in calls if call.name.removeprefix("mcp__cloudagent__") == "send_message"
    ]
    assert call.input == ({"text": "hello Ana"} if kit.tells_input else {})
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
    if kit.resumes:
        assert first.end.session_id == second.end.session_id
        assert second.events[0].resumed
        assert "the first" in second.sends[0].text
        assert len(second.launches) == 1
    else:
        assert second.queries  # what was said before was asked for, to be handed on
        assert first.end.session_id != second.end.session_id


@behaviour("an unknown session begun anew, and told")
async def begins_anew(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        workspace = Workspace(world.settings.agents_dir, world.agent)
        workspace.prepare()
        gone = "0197aaaa-0000-7000-8000-000000000000"
        workspace.keep_session(world.conversation, gone)
        seen = await world.run(kit.reply("still here"))
    assert seen.end.outcome is Outcome.REPLIED
    assert seen.end.session_id != gone
    if kit.resumes:
        assert [e.reason for e in seen.events if isinstance(e, Retry)] == [Reason.SESSION_LOST]


@behaviour("two conversations at once")
async def two_at_once(kit: Kit, home: Path) -> None:
    async with kit.world(home) as world:
        uplinks = [RecordedUplink(), RecordedUplink()]
        delivers = []
        for text in ("left", "right"):
            world.conversation = new_conversation_id()
            delivers.append(world.deliver(kit.reply(text)))

        async def one(number: int) -> None:
            await world.run(delivers[number], uplink=uplinks[number])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, 0)
            tasks.start_soon(one, 1)
    assert [[send.text for send in uplink.sends] for uplink in uplinks] == [["left"], ["right"]]
    assert uplinks[0].end.session_id != uplinks[1].end.session_id


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
        deliver = with_files(world, "@@pictures", {"shot.png": PNG, "notes.txt": b"not shown"})
        seen = await world.run(deliver)
    assert [send.text for send in seen.sends] == ["image/png" if kit.sees else "none"]


# --- ends ---


@behaviour("a stop, with all that it started gone")
async def stops(kit: Kit, home: Path) -> None:
    stop, uplink = StopSignal(), RecordedUplink()
    orders = "\n".join(filter(None, [kit.child, kit.reply("on it"), kit.hang]))
    async with kit.world(home) as world:
        uplink.deadline_s = world.deadline_s
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(orders, stop=stop, uplink=uplink))
            await uplink.until(is_result)
            stop.request("Ana")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
        again = await world.run(kit.reply("back"))
    assert (uplink.end.outcome, uplink.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert "Ana" in uplink.end.detail
    assert kit.stopped in {None, uplink.end.exit_code}
    assert len(children) == bool(kit.child)
    assert not any(map(alive, children))
    assert_nothing_left(uplink)
    assert again.end.outcome is Outcome.REPLIED


@behaviour("a stop that its process survives")
async def survives_a_stop(kit: Kit, home: Path) -> None:
    stop, uplink = StopSignal(), RecordedUplink()
    orders = "\n".join(filter(None, [kit.child, kit.reply("on it"), kit.hang]))
    async with kit.world(home, warm=Warm(600.0, 3)) as world:
        uplink.deadline_s = world.deadline_s
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(orders, stop=stop, uplink=uplink))
            await uplink.until(is_result)
            stop.request("Ana")
        children = [int(line.split()[1]) for line in world.effects() if line.startswith("child")]
        assert not any(map(alive, children))
        assert alive(uplink.launches[0].pid) == kit.warm
        after = await world.run(kit.reply("back"))
    assert (uplink.end.outcome, uplink.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert (after.launches[0].pid == uplink.launches[0].pid) == kit.warm
    assert after.end.outcome is Outcome.REPLIED
    assert_nothing_left(after)


@behaviour("a process that is killed")
async def is_killed(kit: Kit, home: Path) -> None:
    uplink = RecordedUplink()
    async with kit.world(home) as world, anyio.create_task_group() as tasks:
        orders = f"{kit.reply('on it')}\n{kit.hang}"
        uplink.deadline_s = world.deadline_s
        tasks.start_soon(lambda: world.run(orders, uplink=uplink))
        await uplink.until(is_result)
        os.kill(uplink.launches[0].pid, signal.SIGKILL)
    assert (uplink.end.outcome, uplink.end.reason) == (Outcome.FAILED, Reason.CRASHED)
    assert len(uplink.launches) == 1  # it had begun: what it did is not done again
    assert_nothing_left(uplink)


@behaviour("a process that hangs")
async def hangs(kit: Kit, home: Path) -> None:
    async with kit.world(home, hang_timeout_s=kit.patience_s) as world:
        seen = await world.run(f"{kit.reply('on it')}\n{kit.hang}")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.HUNG)
    assert_nothing_left(seen)


async def _fails(kit: Kit, home: Path, status: int, reason: Reason) -> None:
    async with kit.world(home) as world:
        seen = await world.run(kit.error(status))
    assert seen.end.outcome is Outcome.FAILED
    assert seen.end.reason is kit.reasons.get(status, reason)
    assert seen.sends == []
    assert_nothing_left(seen)


@behaviour("401: log in")
async def is_refused(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 401, Reason.AUTHENTICATION)


@behaviour("429: rate limit")
async def is_limited(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 429, Reason.RATE_LIMIT)


@behaviour("429 with its end")
async def is_limited_until(kit: Kit, home: Path) -> None:
    until = int(time.time()) + 7_200
    async with kit.world(home) as world:
        seen = await world.run(kit.limit(until) if kit.limit else kit.error(429))
    assert seen.end.reason is kit.reasons.get(429, Reason.RATE_LIMIT)
    if kit.limit is None:
        assert seen.end.resets_at is None
        return
    assert seen.end.resets_at is not None
    assert abs(seen.end.resets_at.timestamp() - until) < 60
    assert f"{seen.end.resets_at:%H:%M} UTC" in seen.end.detail


@behaviour("529: overloaded")
async def is_overloaded(kit: Kit, home: Path) -> None:
    await _fails(kit, home, 529, Reason.OVERLOADED)


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


def assert_nothing_left(seen: RecordedUplink) -> None:
    for launch in seen.launches:
        assert find_tree(launch.pid, launch.started_at, launch.launch_id, session=True) == []


def is_result(frame: Said) -> bool:
    return isinstance(frame, RunReport) and frame.event.type == "tool_result"


def matrix(kits: Sequence[Kit]) -> str:
    """What is run with which driver, and where one differs, as a table in Markdown."""
    head = ["", *(f"`{kit.name}`" for kit in kits)]
    rows = [head, ["---"] * len(head)]
    rows += [[words, *(_cell(kit, words) for kit in kits)] for words in BEHAVIOURS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(kit: Kit, words: str) -> str:
    status = words.partition(":")[0]
    if status.isdigit() and int(status) in kit.reasons:
        return f"as `{kit.reasons[int(status)]}`"
    if words == "429 with its end" and kit.limit is None:
        return "no time told"
    if "session" in words and not kit.resumes:
        return "new, with the history"
    if ("same process" in words or "survives" in words or "waits for it" in words) and not kit.warm:
        return "a process per message"
    if "picture" in words and not kit.sees:
        return "has its path"
    if "put into" in words and not kit.steers:
        return "queued"
    if "all that it started" in words and kit.child is None:
        return "yes; starts nothing"
    return "yes"
