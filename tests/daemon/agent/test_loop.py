"""The loop with a model that says what the test wants."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.agent import loop as loop_module
from cloudagent_daemon.agent.errors import AgentError, ModelError
from cloudagent_daemon.agent.history import Assistant, Call, Usage
from cloudagent_daemon.agent.loop import Answer, Loop
from cloudagent_daemon.agent.models.base import Reply, Request, Say, Stop
from cloudagent_daemon.agent.session import open_session
from cloudagent_daemon.agent.tools.base import ToolSpec

Step = Reply | ModelError


def text(*texts: str, stop: Stop = Stop.END) -> Reply:
    return Reply(texts, Assistant("\n\n".join(texts)), stop, Usage(10, 1))


def call(name: str = "echo", problem: str | None = None, **arguments: Any) -> Reply:
    calls = (Call("c", name, arguments, problem),)
    return Reply((), Assistant("", calls), Stop.TOOLS, Usage(10, 1))


@dataclass
class Puppet:
    """A model that plays a list; says a reply's texts in two pieces, an error's half."""

    steps: list[Step]
    requests: list[Request] = field(default_factory=list[Request])
    name: str = "puppet"

    async def complete(self, request: Request, say: Say) -> Reply:
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, ModelError):
            say(0, "half")
            raise step
        for block, said in enumerate(step.texts):
            say(block, said[:2])
            say(block, said[2:])
        return step

    async def aclose(self) -> None:
        pass


class Echo:
    def __init__(self) -> None:
        self.specs = [ToolSpec("echo", "", {"type": "object"})]

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        return str(arguments.get("text", "")) * arguments.get("times", 1)


@dataclass
class Stage:
    loop: Loop
    model: Puppet
    events: list[dict[str, Any]]
    session_file: Path

    async def run(self) -> Answer:
        return await self.loop.run("go", "system")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@asynccontextmanager
async def stage(folder: Path, *steps: Step, max_calls: int = 50) -> AsyncGenerator[Stage]:
    events: list[dict[str, Any]] = []
    model = Puppet(list(steps))
    with open_session(folder, "one", resume=False) as session:
        loop = Loop(
            model, [Echo()], session, events.append, budget_tokens=1_000, max_calls=max_calls
        )
        yield Stage(loop, model, events, folder / "one.jsonl")


async def test_the_turn_ends_when_the_model_calls_nothing_more(tmp_path: Path) -> None:
    async with stage(tmp_path, text("look"), text("unreached")) as it:
        assert await it.run() == Answer("look", Usage(10, 1))


async def test_blocks_are_numbered_through_the_turn(tmp_path: Path) -> None:
    async with stage(tmp_path, call(), text("one", "two")) as it:
        await it.run()
    assert [(e["block"], e["offset"], e["text"]) for e in it.of("delta")] == [
        (0, 0, "on"),
        (0, 2, "e"),
        (1, 0, "tw"),
        (1, 2, "o"),
    ]
    assert [(e["block"], e["text"]) for e in it.of("text")] == [(0, "one"), (1, "two")]


async def test_arguments_that_were_no_json_go_back_without_a_call(tmp_path: Path) -> None:
    async with stage(tmp_path, call(problem="not JSON"), text("sorry")) as it:
        await it.run()
    (result,) = it.of("tool_result")
    assert (result["output"], result["is_error"]) == ("not JSON", True)


async def test_a_long_output_is_cut_for_the_model_too(tmp_path: Path) -> None:
    async with stage(tmp_path, call(text="y", times=100_000), text("x")) as it:
        await it.run()
    (result,) = it.of("tool_result")
    assert result["truncated"]
    assert len(result["output"]) < 30_100
    assert result["output"] in it.session_file.read_text().replace("\\n", "\n").replace(
        "\\u2026", "…"
    )


async def test_a_torn_character_in_an_output_reaches_no_request(tmp_path: Path) -> None:
    async with stage(tmp_path, call(text="name\udce9"), text("x")) as it:
        await it.run()
    assert it.of("tool_result")[0]["output"] == "name\ufffd"


async def test_a_model_that_never_ends_is_stopped(tmp_path: Path) -> None:
    async with stage(tmp_path, *[call()] * 3, max_calls=3) as it:
        with pytest.raises(AgentError) as caught:
            await it.run()
    assert caught.value.reason == "max_turns"
    assert it.loop.usage == Usage(30, 3)


async def test_an_answer_cut_off_at_the_output_limit_says_so(tmp_path: Path) -> None:
    async with stage(tmp_path, text("long", stop=Stop.LENGTH)) as it:
        answer = await it.run()
    assert answer.text.startswith("long")
    assert "limit" in answer.text


async def test_a_refusal_fails_the_turn_in_the_models_words(tmp_path: Path) -> None:
    async with stage(tmp_path, text("I will not.", stop=Stop.REFUSAL)) as it:
        with pytest.raises(AgentError, match="I will not") as caught:
            await it.run()
    assert caught.value.reason == "model_error"


async def test_a_broken_stream_is_asked_again_and_its_block_begins_anew(tmp_path: Path) -> None:
    broken = ModelError("connection", "cut", retry_after_s=0)
    async with stage(tmp_path, broken, text("whole")) as it:
        assert (await it.run()).text == "whole"
    offsets = [(e["block"], e["offset"]) for e in it.of("delta")]
    assert offsets == [(0, 0), (0, 0), (0, 2)]
    assert [e["text"] for e in it.of("text")] == ["whole"]
    assert [(e["attempt"], e["reason"]) for e in it.of("retry")] == [(2, "connection")]


async def test_tries_are_bounded_and_the_half_said_is_kept(tmp_path: Path) -> None:
    broken = [ModelError("connection", f"cut {n}", retry_after_s=0) for n in range(9)]
    async with stage(tmp_path, *broken) as it:
        with pytest.raises(ModelError, match="cut 4"):
            await it.run()
    assert len(it.model.requests) == loop_module.TRIES
    assert [e["text"] for e in it.of("text")] == ["half"]


async def test_waits_are_jittered_below_a_growing_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "FIRST_WAIT_S", 0.002)
    async with stage(tmp_path, *[ModelError("overloaded", "busy")] * 4, text("ok")) as it:
        await it.run()
    delays = [e["delay_s"] for e in it.of("retry")]
    assert len(set(delays)) > 1
    assert all(delay <= 0.002 * 2**n for n, delay in enumerate(delays))


async def test_a_service_that_asks_for_a_long_wait_is_not_waited_for(tmp_path: Path) -> None:
    async with stage(tmp_path, ModelError("rate_limit", "later", retry_after_s=3_600)) as it:
        with pytest.raises(ModelError) as caught:
            await it.run()
    assert caught.value.reason == "rate_limit"
    assert not it.of("retry")


@pytest.mark.parametrize("reason", ["authentication", "billing", "invalid_request"])
async def test_what_will_not_pass_is_not_tried_again(tmp_path: Path, reason: Any) -> None:
    async with stage(tmp_path, ModelError(reason, "no")) as it:
        with pytest.raises(ModelError):
            await it.run()
    assert len(it.model.requests) == 1


async def test_a_context_that_overflows_is_tried_once_more_with_half_of_it(
    tmp_path: Path,
) -> None:
    overflow = ModelError("context_overflow", "too long")
    async with stage(tmp_path, text("x" * 1_500), text("y" * 1_500), overflow, text("ok")) as it:
        await it.run()
        await it.run()
        await it.run()
    full, half = it.model.requests[-2:]
    assert len(half.history) < len(full.history)
    async with stage(tmp_path / "..", overflow, overflow) as it:
        with pytest.raises(ModelError):
            await it.run()


async def test_an_empty_end_after_the_tools_is_no_failure(tmp_path: Path) -> None:
    async with stage(tmp_path, call(), text()) as it:
        assert (await it.run()).text == ""
    with open_session(tmp_path, "one", resume=True) as session:
        assert isinstance(session.history[-1], Assistant)
