"""The drivers `builtin` and `scripted`: a job in, a command out; lines in, events out."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.agent.wire import parse_turn
from cloudagent_daemon.drivers.base import Driver, Job, TextDelta, ToolServer, Turn, TurnEnd
from cloudagent_daemon.drivers.builtin import BUILTIN, SCRIPTED
from cloudagent_protocol.events import (
    Ready,
    Reason,
    Retry,
    Text,
    ToolCall,
    ToolResult,
    UnknownEvent,
    UsageReported,
)
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec


def job(session_id: str | None = None) -> Job:
    return Job(
        agent=AgentSpec(id=AgentId("agent_1"), name="Ada", driver="builtin", model="m"),
        home=Path("/a"),
        cwd=Path("/a/workspace"),
        sessions_dir=Path("/a/.meta/sessions"),
        run_dir=Path("/run"),
        tools=ToolServer(("python",), Path("/run/sock"), Path("/run/token")),
        system_prompt="You are Ada.",
        session_id=session_id,
        new_session_id="fresh",
        environment={},
    )


def receive(value: Any) -> list[Any]:
    line = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(BUILTIN.open(job()).receive(line))


@pytest.mark.parametrize(
    ("driver", "end"), [(BUILTIN, "agent"), (SCRIPTED, "scripted")], ids=["builtin", "scripted"]
)
def test_it_starts_our_program_apart_from_the_agents_folder(driver: Driver, end: str) -> None:
    command = driver.open(job()).launch()
    assert command.argv[:4] == (sys.executable, "-P", "-m", "cloudagent_daemon.agent")
    assert command.argv[-1].endswith(end)
    assert "ANTHROPIC_*" in command.inherits
    assert not command.files


def test_the_prompt_is_one_line_with_all_that_the_program_needs() -> None:
    line = BUILTIN.open(job()).prompt(Turn("hello\nyou"))
    assert line.count(b"\n") == 1
    turn = parse_turn(line)
    assert (turn.prompt, turn.session_id, turn.resume) == ("hello\nyou", "fresh", False)
    assert (turn.folder, turn.socket) == (Path("/a/workspace"), Path("/run/sock"))
    assert turn.model == "m"


def test_a_session_is_resumed_and_so_is_the_one_of_the_turn_before() -> None:
    turn = parse_turn(BUILTIN.open(job("old")).prompt(Turn("x")))
    assert (turn.session_id, turn.resume) == ("old", True)
    session = BUILTIN.open(job())
    session.prompt(Turn("x"))
    assert parse_turn(session.prompt(Turn("y"))).resume


def test_lines_become_events() -> None:
    (ready,) = receive({"type": "ready", "session_id": "s", "model": "m"})
    assert isinstance(ready, Ready)
    assert ready.session_id == "s"
    delta = {"type": "delta", "block": 1, "offset": 2, "text": "x"}
    assert receive(delta) == [TextDelta(1, 2, "x")]
    (text,) = receive({"type": "text", "block": 0, "text": "x"})
    assert isinstance(text, Text)
    (call,) = receive({"type": "tool_call", "id": "c", "name": "f", "input": {"a": 1}})
    assert isinstance(call, ToolCall)
    assert (call.tool_call_id, call.input) == ("c", {"a": 1})
    (result,) = receive(
        {"type": "tool_result", "id": "c", "output": "o", "is_error": True, "truncated": False}
    )
    assert isinstance(result, ToolResult)
    assert result.is_error
    (retry,) = receive(
        {"type": "retry", "attempt": 2, "reason": "overloaded", "delay_s": 1, "detail": ""}
    )
    assert isinstance(retry, Retry)
    assert retry.reason is Reason.OVERLOADED


RESULT = {"type": "result", "session_id": "s", "input_tokens": 3, "output_tokens": 4}


def test_the_last_line_says_how_it_went() -> None:
    usage, end = receive({**RESULT, "ok": True, "detail": "", "text": "bye"})
    assert isinstance(usage, UsageReported)
    assert isinstance(end, TurnEnd)
    assert (end.reason, end.final_text, end.session_id) == (None, "bye", "s")
    _, end = receive({**RESULT, "ok": False, "reason": "billing", "detail": "no", "text": ""})
    assert (end.reason, end.detail) == (Reason.BILLING, "no")


def test_what_is_not_understood_is_kept_or_skipped() -> None:
    (unknown,) = receive({"type": "compacted", "turns": 3})
    assert isinstance(unknown, UnknownEvent)
    for line in (b"", b"Traceback", b"[]", b'{"type": "delta"}', b'{"type": "result"}', b"\xff"):
        assert receive(line) == []


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_line_whatever_raises(line: bytes) -> None:
    receive(line)


@given(
    st.sampled_from(["ready", "delta", "text", "tool_call", "tool_result", "retry", "result"]),
    st.dictionaries(st.sampled_from(["id", "text", "block", "ok", "reason", "seq", "at"]), st.none() | st.text() | st.integers()),
)  # fmt: skip
def test_no_event_with_odd_fields_raises(kind: str, fields: dict[str, Any]) -> None:
    receive({"type": kind, **fields})


def test_a_signal_stops_it() -> None:
    assert BUILTIN.open(job()).interrupt() is signal.SIGTERM


async def test_detection_says_whether_a_model_is_configured() -> None:
    there = await BUILTIN.detect({"OPENAI_API_KEY": "k"})
    assert (there.name, there.path, there.logged_in, there.problem) == (
        "builtin",
        sys.executable,
        True,
        None,
    )
    missing = await BUILTIN.detect({})
    assert missing.logged_in is False
    assert "ANTHROPIC_API_KEY" in (missing.problem or "")
    assert (await SCRIPTED.detect({})).problem is None
