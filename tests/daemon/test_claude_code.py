"""What Claude Code's lines mean, and how it is started; no process needed."""

import json
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.drivers.base import (
    Adjusted,
    AwaitTools,
    Decision,
    DriverError,
    DriverEvent,
    DriverSession,
    Job,
    PermissionAsked,
    PermissionWithdrawn,
    Say,
    TakenUp,
    TextDelta,
    ToolServer,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.claude_code import CLAUDE_CODE, find_program
from cloudagent_daemon.drivers.table import detect, driver_named
from cloudagent_daemon.runs.permission import by_mode
from cloudagent_protocol.events import Ready, Reason, Retry, Text, ToolCall, ToolResult
from cloudagent_protocol.frames import RunReport, decode, encode
from cloudagent_protocol.ids import AgentId, ConversationId, RunId
from cloudagent_protocol.resources import AgentSpec

Json = dict[str, Any]
INIT: Json = {
    "type": "system",
    "subtype": "init",
    "session_id": "s-1",
    "model": "claude-opus-4-8[1m]",
    "mcp_servers": [{"name": "cloudagent", "status": "connected"}],
}
# Seen with 2.1.197: `--resume` of a session that does not exist.
UNKNOWN_SESSION: Json = {
    "type": "result",
    "subtype": "error_during_execution",
    "is_error": True,
    "num_turns": 0,
    "session_id": "s-0",
    "errors": ["No conversation found with session ID: s-0"],
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    program = tmp_path / "bin" / "claude"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '9.8.7 (Claude Code)'\n")
    program.chmod(0o755)
    return Job(
        agent=AgentSpec(id=AgentId("agent_1"), name="shop", driver="claude_code"),
        home=tmp_path,
        cwd=Path("/home/u/my_project.x"),
        sessions_dir=tmp_path / "sessions",
        run_dir=tmp_path / "run",
        tools=ToolServer(("python", "-I", "shim.py"), tmp_path / "s", tmp_path / "t"),
        system_prompt="You are shop.",
        session_id=None,
        new_session_id="11111111-1111-4111-8111-111111111111",
        environment={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": "/home/u"},
    )


def replay(turn_id: str) -> Json:
    content = [{"type": "text", "text": "x"}]
    message = {"role": "user", "content": content}
    return {"type": "user", "message": message, "uuid": turn_id, "isReplay": True}


def heard(session: DriverSession, *messages: Json) -> list[DriverEvent]:
    return [
        event for message in messages for event in session.receive(json.dumps(message).encode())
    ]


def events_of(job: Job, *messages: Json) -> list[DriverEvent]:
    """What the lines mean in a first turn whose message has come back."""
    session = CLAUDE_CODE.open(job)
    session.prompt(Turn("x", id="t-1"))
    events = heard(session, replay("t-1"), *messages)
    return [event for event in events if not isinstance(event, TakenUp)]


def result(**more: Any) -> Json:
    return {"type": "result", "subtype": "success", "is_error": False, "result": "done", **more}


def ends(events: list[DriverEvent]) -> list[TurnEnd]:
    return [event for event in events if isinstance(event, TurnEnd)]


def end_of(job: Job, *messages: Json) -> TurnEnd:
    [end] = [event for event in events_of(job, *messages) if isinstance(event, TurnEnd)]
    return end


def partial(**event: Any) -> Json:
    return {"type": "stream_event", "event": event, "parent_tool_use_id": None}


def begin(index: int = 0, kind: str = "text") -> Json:
    return partial(type="content_block_start", index=index, content_block={"type": kind})


def piece(text: str, index: int = 0) -> Json:
    delta = {"type": "text_delta", "text": text}
    return partial(type="content_block_delta", index=index, delta=delta)


def said(*blocks: Json, **more: Any) -> Json:
    message = {"model": "claude-opus-4-8", "content": list(blocks)}
    return {"type": "assistant", "message": message, "parent_tool_use_id": None, **more}


def text(value: str) -> Json:
    return {"type": "text", "text": value}


# --- starting ---


def test_a_first_turn_names_its_session_and_waits_for_our_tools(job: Job) -> None:
    command = CLAUDE_CODE.open(job).launch()
    assert command.argv[0].endswith("/bin/claude")
    assert f"--session-id={job.new_session_id}" in command.argv
    assert "--strict-mcp-config" in command.argv
    [config] = [text for path, text in command.files.items() if path.name == "mcp.json"]
    assert json.loads(config)["mcpServers"]["cloudagent"] == {
        "type": "stdio",
        "command": "python",
        "args": ["-I", "shim.py"],
        "alwaysLoad": True,
    }
    assert "You are shop." in command.files.values()
    assert command.env["DISABLE_AUTOUPDATER"] == "1"
    assert int(command.env["CLAUDE_CODE_MAX_RETRIES"]) < 10


def test_a_later_turn_resumes_in_one_word(job: Job) -> None:
    command = CLAUDE_CODE.open(replace(job, session_id="-s")).launch()
    assert "--resume=-s" in command.argv
    assert not any(word.startswith("--session-id") for word in command.argv)


def test_what_lies_beside_claude_is_found_first(job: Job) -> None:
    [folder] = {str(Path(find_program(job.environment) or "").parent)}
    assert CLAUDE_CODE.open(job).launch().env["PATH"] == f"{folder}:/usr/bin:/bin"
    agent = job.agent.model_copy(update={"env": {"PATH": "/opt/node/bin"}})
    launched = CLAUDE_CODE.open(replace(job, agent=agent)).launch()
    assert launched.env["PATH"] == f"{folder}:/opt/node/bin"


def test_a_command_of_the_agent_s_own_leaves_path_alone(job: Job) -> None:
    agent = job.agent.model_copy(update={"command": ["/opt/x/my-claude"]})
    assert "PATH" not in CLAUDE_CODE.open(replace(job, agent=agent)).launch().env


def test_neither_prompt_nor_instructions_are_on_the_command_line(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    given = session.prompt(Turn("the secret plan\n@@x \ud800", id="t-1"))
    hello, message = map(json.loads, given.splitlines())
    assert hello["request"]["subtype"] == "initialize"
    assert (message["type"], message["uuid"]) == ("user", "t-1")
    assert message["message"]["content"][0]["text"] == "the secret plan\n@@x \ud800"
    assert not any("You are shop" in word for word in session.launch().argv)


def test_mode_and_model_of_the_agent_are_passed_on(job: Job) -> None:
    agent = job.agent.model_copy(update={"mode": "acceptEdits", "model": "opus"})
    argv = CLAUDE_CODE.open(replace(job, agent=agent)).launch().argv
    assert argv[argv.index("--permission-mode") + 1] == "acceptEdits"
    assert argv[argv.index("--model") + 1] == "opus"


def test_the_journal_is_where_claude_writes_its_session(job: Job) -> None:
    journal = CLAUDE_CODE.open(replace(job, session_id="s-9")).launch().journal
    assert journal == Path("/home/u/.claude/projects/-home-u-my-project-x/s-9.jsonl")


# --- turns ---


def test_a_turn_ends_with_the_first_result_after_its_message_has_come_back(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    session.prompt(Turn("x", id="t-1"))
    # Of its own accord, before it looks at ours: what a task in the background has left behind.
    assert ends(heard(session, INIT, said(text("by myself")), result())) == []
    begun = heard(session, INIT)
    assert begun == [TakenUp("t-1")]
    [end] = ends(heard(session, replay("t-1"), said(text("ours")), result(result="ours")))
    assert (end.reason, end.final_text) == (None, "ours")


def test_the_next_turn_in_the_same_process_begins_anew(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    session.prompt(Turn("x", id="t-1"))
    heard(session, INIT, replay("t-1"), said(text("one")), result(total_cost_usd=0.02))
    [line] = session.prompt(Turn("y", id="t-2")).splitlines()  # no second hello
    assert json.loads(line)["uuid"] == "t-2"
    events = heard(session, INIT, replay("t-2"), said(text("two")), result(total_cost_usd=0.05))
    assert [event.turn_id for event in events if isinstance(event, TakenUp)] == ["t-2", "t-2"]
    assert len([event for event in events if isinstance(event, Ready)]) == 1
    assert [event.block for event in events if isinstance(event, Text)] == [0]
    [end] = ends(events)
    assert end.usage
    assert end.usage.cost_usd == pytest.approx(0.03)  # claude tells that of the whole process


def test_a_session_that_is_lost_is_told_before_any_turn_began(job: Job) -> None:
    session = CLAUDE_CODE.open(replace(job, session_id="s-0"))
    session.prompt(Turn("x", id="t-1"))
    [end] = ends(heard(session, UNKNOWN_SESSION))
    assert end.reason is Reason.SESSION_LOST


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "a turn of its own"])
def test_a_message_that_was_put_in_is_part_of_the_run_until_its_result(
    job: Job, folded: bool
) -> None:
    session = CLAUDE_CODE.open(job)
    assert session.steer(Turn("too soon", id="t-0")) == b""
    session.prompt(Turn("x", id="t-1"))
    heard(session, INIT, replay("t-1"))
    assert json.loads(session.steer(Turn("y", id="t-2")))["uuid"] == "t-2"
    if folded:
        assert heard(session, replay("t-2")) == [TakenUp("t-2")]
    else:
        assert ends(heard(session, result(result="first"))) == []
        assert TakenUp("t-2") in heard(session, INIT)
        heard(session, replay("t-2"))
    [end] = ends(heard(session, result(result="second")))
    assert end.final_text == "second"
    assert session.steer(Turn("too late", id="t-3")) == b""


# --- what is asked, and stops ---


def a_question(tool: str, **asked: Any) -> Json:
    request: Json = {"subtype": "can_use_tool", "tool_name": tool, "input": asked}
    return {"type": "control_request", "request_id": "r-1", "request": request}


def answer(asked: DriverEvent, decision: Decision) -> Json:
    assert isinstance(asked, PermissionAsked)
    [said] = asked.then(decision)
    assert isinstance(said, Say)
    response = json.loads(said.data)["response"]
    assert (response["subtype"], response["request_id"]) == ("success", "r-1")
    return response["response"]


def test_a_permission_is_asked_and_answered_by_control_requests(job: Job) -> None:
    [asked] = events_of(job, a_question("Bash", command="rm -r x"))
    assert isinstance(asked, PermissionAsked)
    assert (asked.tool, asked.kind, asked.input) == ("Bash", "execute", {"command": "rm -r x"})
    assert (asked.ours, asked.beyond_mode) == (False, True)
    allowed = answer(asked, Decision(True, "yes"))
    assert allowed == {"behavior": "allow", "updatedInput": {"command": "rm -r x"}}
    denied = answer(asked, Decision(False, "not here"))
    assert denied == {"behavior": "deny", "message": "not here"}


def test_a_question_is_answered_in_its_input(job: Job) -> None:
    [asked] = events_of(job, a_question("AskUserQuestion", questions=[1]))
    assert isinstance(asked, PermissionAsked)
    assert asked.kind == "question"
    given = {"questions": [1], "answers": {"Which?": "B"}}
    assert answer(asked, Decision(True, "", input=given))["updatedInput"] == given


@pytest.mark.parametrize("mode", ["default", "acceptEdits", "plan"])
def test_what_claude_s_own_mode_does_not_allow_nobody_allows(job: Job, mode: str) -> None:
    [asked] = events_of(job, a_question("Read", file_path="/elsewhere"))
    assert isinstance(asked, PermissionAsked)
    assert not by_mode(mode, asked).allow
    assert by_mode("bypassPermissions", asked).allow


def test_a_question_may_be_taken_back_and_an_unknown_request_is_refused(job: Job) -> None:
    taken_back = {"type": "control_cancel_request", "request_id": "r-1"}
    unknown = {"type": "control_request", "request_id": "r-2", "request": {"subtype": "hook"}}
    withdrawn, refusal = events_of(job, taken_back, unknown)
    assert withdrawn == PermissionWithdrawn("r-1")
    assert isinstance(refusal, Say)
    assert json.loads(refusal.data)["response"]["subtype"] == "error"


def test_a_turn_under_way_is_stopped_by_a_control_request(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    session.prompt(Turn("x", id="t-1"))
    # Before it begins it would not heed it, and begin; the signal is the one that ends its tools too.
    assert session.interrupt() is signal.SIGINT
    heard(session, INIT)
    said = session.interrupt()
    assert isinstance(said, bytes)
    assert json.loads(said)["request"] == {"subtype": "interrupt"}
    stopped = result(subtype="error_during_execution", terminal_reason="aborted_tools")
    [end] = ends(heard(session, replay("t-1"), {**stopped, "is_error": True}))
    assert end.reason is Reason.INTERRUPTED
    assert session.interrupt() is signal.SIGINT


# --- another model or permission mode ---


def told(said: bytes | None) -> list[Json]:
    return [json.loads(line)["request"] for line in (said or b"").splitlines()]


def agreed(said: bytes | None, **more: Any) -> list[Json]:
    """What claude answers to all of that."""
    requests = map(json.loads, (said or b"").splitlines())
    return [
        {
            "type": "control_response",
            "response": {
                "subtype": "success",
                "request_id": one["request_id"],
                "response": {"mode": one["request"]["mode"]} if "mode" in one["request"] else {},
                **more,
            },
        }
        for one in requests
    ]


def test_between_two_turns_it_is_told_of_another_model_and_mode(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    assert session.adjust(None, "default") == b""
    session.prompt(Turn("x", id="t-1"))
    heard(session, {**INIT, "permissionMode": "default"}, replay("t-1"), result())
    said = session.adjust("haiku", "acceptEdits")
    assert told(said) == [
        {"subtype": "set_model", "model": "haiku"},
        {"subtype": "set_permission_mode", "mode": "acceptEdits"},
    ]
    model, mode = agreed(said)
    assert heard(session, model) == []
    assert heard(session, mode, mode) == [Adjusted(True)]
    assert session.adjust("haiku", "acceptEdits") == b""
    # Back: to the model that it began with, by the name that it gave it.
    assert told(session.adjust(None, "acceptEdits")) == [
        {"subtype": "set_model", "model": "claude-opus-4-8[1m]"}
    ]


def test_one_that_has_not_been_spoken_to_is_greeted_first(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    said = session.adjust(None, "plan")
    assert [one["subtype"] for one in told(said)] == ["initialize", *["set_permission_mode"] * 2]
    assert heard(session, *agreed(said)) == [Adjusted(True)]
    assert [json.loads(line)["type"] for line in session.prompt(Turn("x")).splitlines()] == ["user"]


def test_it_goes_into_plan_by_way_of_default_which_an_agreed_plan_leads_back_to(job: Job) -> None:
    session = CLAUDE_CODE.open(replace(job, agent=job.agent.model_copy(update={"mode": "plan"})))
    assert session.adjust(None, "plan") == b""
    heard(session, {"type": "system", "subtype": "status", "permissionMode": "acceptEdits"})
    said = session.adjust(None, "plan")
    assert [one.get("mode") for one in told(said)[1:]] == ["default", "plan"]
    heard(session, *agreed(said))
    assert session.adjust(None, "plan") == b""
    # Where it went by itself is not where it was put: a plan would lead back to the wider mode.
    heard(session, *agreed(session.adjust(None, "acceptEdits")))
    heard(session, {"type": "system", "subtype": "status", "permissionMode": "plan"})
    assert [one["mode"] for one in told(session.adjust(None, "plan"))] == ["default", "plan"]


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [
        ({"mode": "bypassPermissions"}, (None, "plan")),
        ({"mode": "bypassPermissions"}, (None, "default")),
        ({}, (None, "bypassPermissions")),
        ({}, (None, "of tomorrow")),
        ({"model": "haiku"}, (None, "default")),
        ({}, ("haiku", "bypassPermissions")),
    ],
)
def test_what_claude_does_not_change_truly_takes_another_process(
    job: Job, begun: dict[str, str], wanted: tuple[str | None, str]
) -> None:
    session = CLAUDE_CODE.open(replace(job, agent=job.agent.model_copy(update=begun)))
    assert session.adjust(*wanted) is None


@pytest.mark.parametrize(
    "answer",
    [{"subtype": "error", "error": "no"}, {"response": {"mode": "default"}}, {"response": 7}],
)
def test_an_answer_that_is_none_or_another_is_no_agreement(job: Job, answer: Json) -> None:
    session = CLAUDE_CODE.open(job)
    said = session.adjust(None, "acceptEdits")
    assert heard(session, *agreed(said, **answer)[1:]) == [Adjusted(False)]
    assert session.adjust(None, "acceptEdits") != b""


def test_a_message_that_waits_in_it_would_outlive_an_interrupt(job: Job) -> None:
    session = CLAUDE_CODE.open(job)
    session.prompt(Turn("x", id="t-1"))
    heard(session, INIT)
    session.steer(Turn("y", id="t-2"))
    assert session.interrupt() is signal.SIGTERM
    heard(session, replay("t-1"))
    assert session.interrupt() is signal.SIGTERM
    heard(session, replay("t-2"))  # put into the turn
    assert isinstance(session.interrupt(), bytes)


def test_a_missing_program_says_how_to_install_it(job: Job) -> None:
    bare = replace(job, environment={"PATH": "/nonexistent", "HOME": "/nonexistent"})
    with pytest.raises(DriverError, match="npm install") as raised:
        CLAUDE_CODE.open(bare).launch()
    assert raised.value.reason is Reason.RUNTIME_MISSING


def test_a_driver_of_tomorrow_is_refused_by_name() -> None:
    with pytest.raises(DriverError, match="of_tomorrow"):
        driver_named("of_tomorrow")


async def test_what_is_installed_is_found_with_its_version(job: Job) -> None:
    found = {runtime.name: runtime for runtime in await detect(job.environment)}
    assert list(found) == [
        "claude_code",
        "codex",
        "opencode",
        "gemini",
        "qwen",
        "builtin",
        "scripted",
    ]
    assert (found["claude_code"].version, found["claude_code"].problem) == ("9.8.7", None)
    assert found["claude_code"].path == find_program(job.environment)


async def test_what_is_missing_or_broken_says_why(job: Job) -> None:
    program = Path(find_program(job.environment) or "")
    program.write_text("#!/bin/sh\nexit 7\n")
    assert "exited with 7" in ((await CLAUDE_CODE.detect(job.environment)).problem or "")
    program.write_text("#!/nonexistent/interpreter\n")
    assert "cannot be started" in ((await CLAUDE_CODE.detect(job.environment)).problem or "")
    program.chmod(stat.S_IRUSR)
    program.unlink()
    assert "not found" in ((await CLAUDE_CODE.detect(job.environment)).problem or "")


async def test_a_script_finds_the_node_that_was_installed_beside_it(job: Job) -> None:
    program = Path(find_program(job.environment) or "")
    program.write_text("#!/usr/bin/env nodelike\n")
    node = program.with_name("nodelike")
    node.write_text("#!/bin/sh\necho 3.2.1\n")
    node.chmod(0o755)
    elsewhere = program.parent.parent / ".local" / "bin"
    elsewhere.parent.mkdir()
    program.parent.rename(elsewhere)
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(job.home)}
    runtime = await CLAUDE_CODE.detect(bare)
    assert (runtime.version, runtime.problem) == ("3.2.1", None)


@pytest.mark.parametrize(
    ("version", "answer", "logged_in"),
    [
        ("2.1.197", '{"loggedIn": true, "authMethod": "api_key"}', True),
        ("2.1.197", '{"loggedIn": false, "authMethod": "none"}', False),
        ("2.1.41", '{"loggedIn": true}', True),
        ("2.1.197", '{"loggedIn": "perhaps"}', None),
        ("2.1.197", "error: unknown command auth", None),
        ("2.1.40", '{"loggedIn": true}', None),
        ("odd", '{"loggedIn": true}', None),
    ],
)
async def test_whether_claude_is_logged_in_is_told_where_it_tells(
    job: Job, version: str, answer: str, logged_in: bool | None
) -> None:
    program = Path(find_program(job.environment) or "")
    program.write_text(
        f"#!/bin/sh\n[ \"$1\" = auth ] || {{ echo '{version} (Claude Code)'; exit; }}\n"
        f"echo \"$ANTHROPIC_API_KEY $SOME_SECRET\" > '{job.home}/seen'\n"
        f"echo '{answer}'\n[ \"$ANTHROPIC_API_KEY\" ]\n"
    )
    environment = {**job.environment, "ANTHROPIC_API_KEY": "k", "SOME_SECRET": "s"}
    runtime = await CLAUDE_CODE.detect(environment)
    assert (runtime.logged_in, runtime.problem) == (logged_in, None)
    seen = job.home / "seen"
    assert not seen.exists() if version in ("2.1.40", "odd") else seen.read_text() == "k \n"


# --- lines ---


def test_ready_means_that_our_server_is_connected(job: Job) -> None:
    [ready] = events_of(job, INIT)
    assert isinstance(ready, Ready)
    assert (ready.session_id, ready.model) == ("s-1", "claude-opus-4-8[1m]")


@pytest.mark.parametrize(
    "servers",
    [
        [{"name": "cloudagent", "status": "pending"}],
        [{"name": "cloudagent", "status": "failed"}],
        [{"name": "other", "status": "connected"}],
        [],
        None,
        "junk",
    ],
)
def test_any_other_state_of_our_server_ends_the_turn(job: Job, servers: Any) -> None:
    [end] = events_of(job, {**INIT, "mcp_servers": servers})
    assert isinstance(end, TurnEnd)
    assert end.reason is Reason.TOOLS_UNAVAILABLE


def test_blocks_are_counted_over_all_messages_and_deltas_come_before_them(job: Job) -> None:
    events = events_of(
        job,
        INIT,
        partial(type="message_start", message={}),
        begin(0, "thinking"),
        begin(1),
        piece("one "),
        piece("𝄞"),
        piece("!"),
        said(text("one 𝄞!")),
        begin(2, "tool_use"),
        said({"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}),
        partial(type="message_start", message={}),
        begin(0),
        piece("two"),
        said(text("two")),
    )[1:]
    shown = [
        (event.block, event.offset, event.text)
        if isinstance(event, TextDelta)
        else (event.block, event.text)
        if isinstance(event, Text)
        else event.type  # type: ignore[union-attr]
        for event in events
    ]
    assert shown == [
        (0, 0, "one "),
        (0, 4, "𝄞"),
        (0, 5, "!"),
        (0, "one 𝄞!"),
        "tool_call",
        (1, 0, "two"),
        (1, "two"),
    ]


def test_an_answer_that_was_broken_off_and_begun_anew_keeps_its_block(job: Job) -> None:
    events = events_of(
        job,
        begin(),
        piece("half an ans"),
        partial(type="message_start", message={}),
        begin(),
        piece("whole"),
        said(text("whole")),
    )
    assert [event.block for event in events if isinstance(event, TextDelta | Text)] == [0, 0, 0]


def test_text_without_deltas_gets_blocks_too(job: Job) -> None:
    events = events_of(job, said(text("a"), text("b")), said(text("c")))
    assert [(e.block, e.text) for e in events if isinstance(e, Text)] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]


def test_the_words_of_a_subagent_and_of_claude_itself_are_not_the_models(job: Job) -> None:
    nested = {"parent_tool_use_id": "t1"}
    own = said(text("API Error: 401"))
    own["message"]["model"] = "<synthetic>"
    assert events_of(job, said(text("inner"), **nested), {**piece("inner"), **nested}, own) == []


def test_tool_calls_and_their_results_are_told_and_bounded(job: Job) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "Write", "input": {"content": "x" * 1_000_000}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "y" * 1_000_000, "is_error": True},
        {"type": "tool_result", "tool_use_id": "t2", "content": [text("a"), {"type": "image"}]},
    ]
    made, first, second = events_of(
        job, said(call), {"type": "user", "message": {"content": results}}
    )
    assert isinstance(made, ToolCall)
    assert len(made.input["content"]) < 31_000
    assert isinstance(first, ToolResult)
    assert (first.is_error, first.truncated, len(first.output) < 31_000) == (True, True, True)
    assert isinstance(second, ToolResult)
    assert (second.output, second.is_error, second.truncated) == ("a\n[image]", False, False)


def test_a_result_has_text_usage_and_price(job: Job) -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}
    end = end_of(
        job,
        INIT,
        {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "result": "all done",
            "session_id": "s-1",
            "total_cost_usd": 0.5,
            "usage": usage,
        },
    )
    assert (end.reason, end.final_text, end.session_id) == (None, "all done", "s-1")
    assert end.usage
    assert (end.usage.input_tokens, end.usage.output_tokens, end.usage.cost_usd) == (7, 5, 0.5)


def test_a_session_is_lost_if_we_resumed_and_no_turn_ever_began(job: Job) -> None:
    resumed = replace(job, session_id="s-0")
    assert end_of(resumed, UNKNOWN_SESSION).reason is Reason.SESSION_LOST
    # The same result in a run that resumed nothing, or after a turn began, is another matter.
    assert end_of(job, UNKNOWN_SESSION).reason is Reason.MODEL_ERROR
    assert end_of(resumed, INIT, UNKNOWN_SESSION).reason is Reason.MODEL_ERROR


def test_a_loss_is_told_by_fields_whatever_the_words(job: Job) -> None:
    resumed = replace(job, session_id="s-0")
    other_words = {**UNKNOWN_SESSION, "errors": ["Sitzung unbekannt"]}
    assert end_of(resumed, other_words).reason is Reason.SESSION_LOST
    same_words = {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "num_turns": 1,
        "result": "No conversation found with session ID: s-0",
    }
    assert end_of(resumed, INIT, same_words).reason is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"api_error_status": 401}, Reason.AUTHENTICATION),
        ({"api_error_status": 402}, Reason.BILLING),
        ({"api_error_status": 404}, Reason.INVALID_REQUEST),
        ({"api_error_status": 413}, Reason.CONTEXT_OVERFLOW),
        ({"api_error_status": 429}, Reason.RATE_LIMIT),
        ({"api_error_status": 418}, Reason.MODEL_ERROR),
        ({"api_error_status": 502}, Reason.SERVER_ERROR),
        ({"api_error_status": 529}, Reason.OVERLOADED),
        ({"terminal_reason": "prompt_too_long", "api_error_status": 400}, Reason.CONTEXT_OVERFLOW),
        ({"terminal_reason": "of_tomorrow"}, Reason.MODEL_ERROR),
        ({"subtype": "error_max_turns"}, Reason.MAX_TURNS),
        ({"subtype": "error_max_budget_usd"}, Reason.BILLING),
        ({"subtype": "of_tomorrow", "is_error": False}, Reason.MODEL_ERROR),
    ],
)
def test_an_error_result_is_told_apart_by_its_fields(
    job: Job, fields: Json, reason: Reason
) -> None:
    result = {"type": "result", "subtype": "success", "is_error": True, "num_turns": 1, **fields}
    end = end_of(job, INIT, {**result, "result": "Everything is fine."})
    assert (end.reason, end.detail, end.final_text) == (reason, "Everything is fine.", "")


def test_no_answer_at_all_is_a_matter_of_the_connection(job: Job) -> None:
    retry: Json = {
        "type": "system",
        "subtype": "api_retry",
        "attempt": 2,
        "retry_delay_ms": 584.2,
        "error_status": None,
        "error": "unknown",
    }
    result = {"type": "result", "subtype": "success", "is_error": True, "api_error_status": None}
    events = events_of(job, INIT, retry, said(text("x"), error="unknown"), result)
    retries = [event for event in events if isinstance(event, Retry)]
    assert [(r.attempt, r.reason) for r in retries] == [(2, Reason.CONNECTION)]
    assert isinstance(events[-1], TurnEnd)
    assert events[-1].reason is Reason.CONNECTION


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Warning: something",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"type": 5}',
        b'{"type": "of_tomorrow", "x": 1}',
        b'{"type": "system"}',
        b'{"type": "system", "subtype": "status"}',
        b'{"type": "stream_event"}',
        b'{"type": "stream_event", "event": {"type": "content_block_delta", "delta": 5}}',
        b'{"type": "assistant", "message": "text"}',
        b'{"type": "assistant", "message": {"content": "text"}}',
        b'{"type": "user", "message": {"content": [5, null]}}',
    ],
)
def test_lines_that_are_not_understood_mean_nothing_and_break_nothing(
    job: Job, line: bytes
) -> None:
    session = CLAUDE_CODE.open(job)
    assert list(session.receive(line)) == []
    assert list(session.receive(json.dumps(INIT).encode()))


# --- what no honest claude prints ---


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "system", "subtype": "api_retry", "attempt": NaN, "retry_delay_ms": Infinity}',
        '{"type": "result", "subtype": "success", "usage": {"input_tokens": 1e400}}',
        '{"type": "result", "subtype": "success", "total_cost_usd": ' + "9" * 400 + "}",
        '{"type": "result", "subtype": ["x"], "is_error": true, "terminal_reason": {"a": [1]}}',
        '{"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t", "name": "n",'
        ' "input": ' + '{"a":' * 300 + "1" + "}" * 301 + "]}}",
        json.dumps(said({"type": "tool_use", "id": "t" * 3_000_000, "name": "n" * 3_000_000})),
        json.dumps({**INIT, "session_id": "s" * 3_000_000, "model": "m" * 3_000_000}),
        json.dumps({"type": "result", "is_error": True, "result": "e" * 5_000_000}),
    ],
)
def test_what_it_may_print_becomes_frames_that_fit_the_link(job: Job, line: str) -> None:
    events = list(CLAUDE_CODE.open(job).receive(line.encode()))
    assert events
    for event in events:
        if isinstance(event, TurnEnd):
            assert len(event.detail) + len(event.session_id or "") < 5_000
        elif not isinstance(
            event,
            TextDelta
            | Say
            | AwaitTools
            | PermissionAsked
            | PermissionWithdrawn
            | TakenUp
            | Adjusted,
        ):
            frame = RunReport(
                seq=1,
                run_id=RunId("r"),
                agent_id=job.agent.id,
                conversation_id=ConversationId("c"),
                delivery_ids=[],
                event=event,
            )
            assert decode(encode(frame)) == frame


def test_blocks_that_are_begun_and_never_finished_do_not_pile_up(job: Job) -> None:
    texts = [e for e in events_of(job, *[begin()] * 3_000, said(text("x"))) if isinstance(e, Text)]
    assert [one.block for one in texts] == [2_000]
