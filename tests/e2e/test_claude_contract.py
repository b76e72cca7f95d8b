"""What the driver takes for granted of the real `claude`: fails when a newer one does otherwise."""

import json
import shutil
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon.drivers.base import Decision, PermissionAsked
from cloudagent_daemon.process import find_tree
from cloudagent_daemon.runs.ports import Said, StopSignal
from cloudagent_daemon.runs.warm import Warm
from cloudagent_protocol.events import (
    Finished,
    Outcome,
    Ready,
    Reason,
    Retry,
    ToolCall,
    ToolResult,
)
from cloudagent_protocol.frames import RunReport
from e2e.real_cli import claude_environment
from fakes.model import StubModel
from fakes.runs import RecordedUplink, World, a_turn, a_world

pytestmark = [pytest.mark.slow, pytest.mark.real_cli]


def use_claude(world: World, mode: str = "default") -> None:
    world.agent = world.agent.model_copy(update={"command": None, "env": {}, "mode": mode})


async def test_a_session_whose_file_is_gone_becomes_a_fresh_one(tmp_path: Path) -> None:
    with StubModel() as model:
        async with a_world(tmp_path, env=claude_environment(model)) as world:
            use_claude(world)
            await world.run("@@say first")
            shutil.rmtree(tmp_path / ".claude" / "projects")
            seen = await world.run("@@say second")
    assert [e.reason for e in seen.events if isinstance(e, Retry)] == [Reason.SESSION_LOST]
    assert seen.end.outcome is Outcome.AUTO_PUBLISHED
    assert len(seen.launches) == 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, Reason.INVALID_REQUEST),
        (500, Reason.SERVER_ERROR),
    ],
)
async def test_an_error_of_the_model_has_its_reason(
    tmp_path: Path, status: int, reason: Reason
) -> None:
    with StubModel() as model:
        env = claude_environment(model, CLAUDE_CODE_MAX_RETRIES="1")
        async with a_world(tmp_path, env=env) as world:
            use_claude(world)
            seen = await world.run(f"@@error {status}")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, reason)
    assert all(e.reason is reason for e in seen.events if isinstance(e, Retry))
    assert seen.sends == []


async def test_a_model_that_cannot_be_reached_is_a_matter_of_the_connection(
    tmp_path: Path,
) -> None:
    with StubModel() as model:
        env = claude_environment(model, CLAUDE_CODE_MAX_RETRIES="1")
    async with a_world(tmp_path, env=env) as world:  # the model is gone by now
        use_claude(world)
        seen = await world.run("hello")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.FAILED, Reason.CONNECTION)


async def test_a_stop_ends_claude_and_the_command_that_its_tool_runs(tmp_path: Path) -> None:
    with StubModel() as model:
        async with a_world(tmp_path, env=claude_environment(model)) as world:
            use_claude(world, "bypassPermissions")
            stop, uplink = StopSignal(), RecordedUplink()
            order = f'@@call Bash {{"command": "mkfifo {tmp_path}/gate; cat {tmp_path}/gate"}}'
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: world.run(order, stop=stop, uplink=uplink))
                await uplink.until(is_tool_call)
                # Opening a pipe for writing returns when its reader is there: the tool runs.
                with anyio.fail_after(20):
                    while not (tmp_path / "gate").exists():
                        await anyio.lowlevel.checkpoint()
                    async with await anyio.open_file(tmp_path / "gate", "w"):
                        stop.request("Ana")
                        await uplink.until(is_finished)
            [launch] = uplink.launches
            left = find_tree(launch.pid, launch.started_at, launch.launch_id, session=True)
            again = await world.run("@@recall")
    assert (uplink.end.outcome, uplink.end.reason) == (Outcome.CANCELLED, Reason.INTERRUPTED)
    assert left == []
    assert again.end.outcome is Outcome.AUTO_PUBLISHED


async def test_the_same_process_works_with_another_model_and_mode(tmp_path: Path) -> None:
    log = tmp_path / "model.jsonl"
    with StubModel(log=log) as model:
        async with a_world(tmp_path, env=claude_environment(model), warm=Warm(600.0, 1)) as world:
            use_claude(world)
            made = world.workspace / "workspace" / "made.txt"
            write = f"@@call Write {json.dumps({'file_path': str(made), 'content': 'x'})}"
            first = await world.run("@@say one")
            second = await world.run(world.deliver(write, model="claude-haiku-4-5", mode="plan"))
            assert not made.exists()
            third = await world.run(world.deliver(write, mode="acceptEdits"))
            assert made.exists()
    seen = [first, second, third]
    assert len({launch.pid for one in seen for launch in one.launches}) == 1
    own, other, again = [e.model for one in seen for e in one.events if isinstance(e, Ready)]
    assert (other, again) == ("claude-haiku-4-5", own)
    asked = [line["model"] for line in map(json.loads, log.read_text().splitlines())
             if line.get("protocol") == "anthropic"]  # fmt: skip
    assert [asked[0], asked[1], asked[-1]] == [asked[0], "claude-haiku-4-5", asked[0]]
    assert asked[0] != asked[1]


async def test_a_plan_that_was_agreed_to_leaves_no_wider_mode_behind(tmp_path: Path) -> None:
    asked: list[str] = []

    async def decide(question: PermissionAsked) -> Decision:
        asked.append(question.tool)
        return Decision(question.tool == "ExitPlanMode", "as the test has it")

    with StubModel() as model:
        async with a_world(tmp_path, env=claude_environment(model)) as world:
            use_claude(world, "acceptEdits")
            made = world.workspace / "workspace" / "made.txt"
            write = f"@@call Write {json.dumps({'file_path': str(made), 'content': 'x'})}"
            async with world.process() as held:
                await a_turn(held, "@@say one", decide)
                # Through `plan` and, agreed to, out of it: to what a process that begins in it goes to.
                assert await held.worker.adjust(None, "plan")
                plan = '@@call ExitPlanMode {"plan": "do it"}'
                await a_turn(held, f"{plan}\n{write}", decide)
                assert await held.worker.adjust(None, "plan")
                await a_turn(held, write, decide)
    assert asked == ["ExitPlanMode", "Write", "Write"]
    assert not made.exists()


async def test_a_refused_permission_is_told_and_the_turn_goes_on(tmp_path: Path) -> None:
    with StubModel() as model:
        async with a_world(tmp_path, env=claude_environment(model)) as world:
            use_claude(world)
            seen = await world.run(
                '@@call Write {"file_path": "x.txt", "content": "x"}\n'
                '@@call send_message {"text": "could not write"}'
            )
            cwd = world.workspace / "workspace"
            assert list(cwd.iterdir()) == []
    refused = next(event for event in seen.events if isinstance(event, ToolResult))
    assert refused.is_error
    assert seen.end.outcome is Outcome.REPLIED


async def test_who_is_asked_allows_denies_and_answers_and_a_stop_takes_a_question_back(
    tmp_path: Path,
) -> None:
    asked: list[PermissionAsked] = []
    stop, withdrawn = StopSignal(), anyio.Event()

    async def decide(question: PermissionAsked) -> Decision:
        asked.append(question)
        if question.kind == "question":
            answers = {"Pick one?": "B"}
            return Decision(True, "", input={**question.input, "answers": answers})
        if "never" in question.input["command"]:
            stop.request("Ana")
            with anyio.CancelScope():
                try:
                    await anyio.sleep_forever()
                finally:
                    withdrawn.set()
        return Decision("yes" in question.input["command"], "the person said no")

    options = [{"label": label, "description": label} for label in "AB"]
    question = {"question": "Pick one?", "header": "P", "multiSelect": False, "options": options}
    with StubModel(log=tmp_path / "model.jsonl", log_bodies=True) as model:
        async with a_world(tmp_path, env=claude_environment(model)) as world:
            use_claude(world)
            async with world.process() as held:
                for order in (
                    f"@@call Bash {json.dumps({'command': 'touch yes', 'description': 'x'})}",
                    f"@@call Bash {json.dumps({'command': 'touch no', 'description': 'x'})}",
                    f"@@call AskUserQuestion {json.dumps({'questions': [question]})}",
                ):
                    seen, _ = await a_turn(held, f"{order}\n@@say done", decide)
                    assert seen.end
                    assert seen.end.reason is None
                never = json.dumps({"command": "touch never", "description": "x"})
                seen, _ = await a_turn(held, f"@@call Bash {never}", decide, stop)
                assert seen.end
                assert seen.end.reason is Reason.INTERRUPTED
                assert held.worker.usable
            assert [one.name for one in (world.workspace / "workspace").iterdir()] == ["yes"]
    assert withdrawn.is_set()
    assert [one.kind for one in asked] == ["execute", "execute", "question", "execute"]
    told = (tmp_path / "model.jsonl").read_text()
    assert "the person said no" in told
    assert "Pick one?" in told


def is_tool_call(frame: Said) -> bool:
    return isinstance(frame, RunReport) and isinstance(frame.event, ToolCall)


def is_finished(frame: Said) -> bool:
    return isinstance(frame, RunReport) and isinstance(frame.event, Finished)
