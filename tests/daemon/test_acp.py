"""What the lines of the Agent Client Protocol mean, and what is answered; no process needed."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.drivers.acp import ACP, AcpSession
from cloudagent_daemon.drivers.acp_programs import GEMINI, OPENCODE, PROGRAMS, Program
from cloudagent_daemon.drivers.acp_updates import our_tool
from cloudagent_daemon.drivers.base import (
    AwaitTools,
    Decision,
    DriverError,
    DriverEvent,
    Job,
    PermissionAsked,
    PermissionWithdrawn,
    Say,
    TextDelta,
    ToolServer,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.runs.permission import by_mode
from cloudagent_protocol.events import (
    Ready,
    Reason,
    Stderr,
    Text,
    ToolCall,
    ToolResult,
    UnknownEvent,
)
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec

Json = dict[str, Any]
NAMES = frozenset({"send_message", "stay_silent"})
LOADS = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        agent=AgentSpec(id=AgentId("agent_1"), name="shop", driver="acp", command=["/x/agent"]),
        home=tmp_path,
        cwd=tmp_path / "w",
        sessions_dir=tmp_path / "sessions",
        run_dir=tmp_path / "run",
        tools=ToolServer(("python", "-I", "shim.py"), tmp_path / "s", tmp_path / "t", NAMES),
        system_prompt="You are shop.",
        session_id=None,
        new_session_id="11111111-1111-4111-8111-111111111111",
        environment={"PATH": "/nonexistent", "HOME": "/nonexistent"},
    )


class Talk:
    """A session and what was said to its program."""

    def __init__(self, job: Job, program: Program | None = None) -> None:
        self.session = AcpSession(job, program)
        self.events: list[DriverEvent] = []
        self.said: list[Json] = [json.loads(self.session.prompt(Turn("do it")))]
        self.has_tools = True

    def hears(self, **message: Any) -> list[DriverEvent]:
        """What comes of a line, beside what is said in answer to it."""
        line = json.dumps({"jsonrpc": "2.0", **message}).encode()
        told = self._take(self.session.receive(line))
        self.events += told
        return told

    def _take(self, events: Iterable[DriverEvent]) -> list[DriverEvent]:
        told: list[DriverEvent] = []
        for event in events:
            match event:
                case Say():
                    self.said.append(json.loads(event.data))
                case AwaitTools():
                    told += self._take(event.then(self.has_tools))
                case _:
                    told.append(event)
        return told

    def answers(self, result: Json | None = None, error: Json | None = None) -> list[DriverEvent]:
        """The program's answer to what it was asked last."""
        request = self.said[-1]["id"]
        return self.hears(id=request, **({"error": error} if error else {"result": result or {}}))

    def updates(self, what: str, /, **more: Any) -> list[DriverEvent]:
        update = {"sessionUpdate": what, **more}
        return self.hears(method="session/update", params={"sessionId": "s-1", "update": update})

    def decides(self, asked: DriverEvent, decision: Decision) -> Json:
        assert isinstance(asked, PermissionAsked)
        self._take(asked.then(decision))
        return self.said[-1]["result"]["outcome"]

    def begun(self, **session: Any) -> "Talk":
        """With the prompt put to it."""
        self.answers(LOADS)
        self.answers({"sessionId": "s-1", **session})
        assert self.said[-1]["method"] == "session/prompt"
        return self


def end_of(events: list[DriverEvent]) -> TurnEnd:
    [end] = [event for event in events if isinstance(event, TurnEnd)]
    return end


# --- the session ---


def test_a_turn_is_begun_with_our_tools_and_the_instructions_first(job: Job) -> None:
    talk = Talk(job).begun()
    hello, opened, prompted = talk.said
    assert hello["params"]["clientCapabilities"] == {
        "fs": {"readTextFile": False, "writeTextFile": False},
        "terminal": False,
    }
    assert opened["params"] == {
        "cwd": str(job.cwd),
        "mcpServers": [
            {"name": "cloudagent", "command": "python", "args": ["-I", "shim.py"], "env": []}
        ],
    }
    texts = [block["text"] for block in prompted["params"]["prompt"]]
    assert texts == ["You are shop.", "do it"]
    [ready] = talk.events
    assert isinstance(ready, Ready)
    assert ready.session_id == "s-1"


def test_a_program_that_never_lists_our_tools_is_prompted_but_not_ready(job: Job) -> None:
    talk = Talk(job)
    talk.has_tools = False
    talk.begun()
    [note] = talk.events
    assert isinstance(note, Stderr)


@pytest.mark.parametrize(
    ("can", "method"),
    [
        ({"loadSession": True}, "session/load"),
        ({"loadSession": True, "sessionCapabilities": {"resume": {}}}, "session/resume"),
    ],
)
def test_a_session_is_resumed_as_the_program_can(job: Job, can: Json, method: str) -> None:
    talk = Talk(replace(job, session_id="s-0"))
    talk.answers({"protocolVersion": 1, "agentCapabilities": can})
    assert talk.said[-1]["method"] == method
    assert talk.said[-1]["params"]["sessionId"] == "s-0"
    # What it replays of the session is not of this turn.
    assert talk.updates("agent_message_chunk", content={"type": "text", "text": "of old"}) == []
    talk.answers({})
    talk.updates("agent_message_chunk", content={"type": "text", "text": "new"})
    end = end_of(talk.answers({"stopReason": "end_turn"}))
    assert (end.session_id, end.final_text) == ("s-0", "new")


def test_a_way_to_resume_that_is_told_of_and_not_there_gives_way_to_the_other(job: Job) -> None:
    talk = Talk(replace(job, session_id="s-0"))
    can = {"loadSession": True, "sessionCapabilities": {"resume": {}}}
    talk.answers({"protocolVersion": 1, "agentCapabilities": can})
    gone = {"code": -32601, "message": "Method not found"}
    assert talk.answers(error=gone) == []
    assert talk.said[-1]["method"] == "session/load"
    assert end_of(talk.answers(error=gone)).reason is Reason.SESSION_LOST


@pytest.mark.parametrize("error", [None, {"code": -32002, "message": "not found"}])
def test_a_session_that_cannot_be_resumed_is_lost(job: Job, error: Json | None) -> None:
    talk = Talk(replace(job, session_id="s-0"))
    if error is None:
        events = talk.answers({"protocolVersion": 1, "agentCapabilities": {}})
    else:
        talk.answers(LOADS)
        events = talk.answers(error=error)
    assert end_of(events).reason is Reason.SESSION_LOST
    assert end_of(events).session_id is None


def test_a_session_that_is_loaded_without_a_past_is_lost(job: Job) -> None:
    talk = Talk(replace(job, session_id="s-0"))
    talk.answers(LOADS)
    talk.updates("available_commands_update", availableCommands=[])
    assert end_of(talk.answers({})).reason is Reason.SESSION_LOST


def test_a_login_that_is_missing_is_no_lost_session(job: Job) -> None:
    talk = Talk(replace(job, session_id="s-0"))
    talk.answers(LOADS)
    end = end_of(talk.answers(error={"code": -32000, "message": "Authentication required"}))
    assert end.reason is Reason.AUTHENTICATION


def test_another_version_of_the_protocol_is_told(job: Job) -> None:
    end = end_of(Talk(job).answers({"protocolVersion": 2}))
    assert end.reason is Reason.RUNTIME_MISSING
    assert "version 2" in end.detail


# --- what is chosen ---

MODELS = {"availableModels": [{"modelId": "small-1", "name": "Small"}, {"modelId": "large-1"}]}
SELECT = {
    "id": "m",
    "category": "model",
    "type": "select",
    "options": [{"group": "g", "options": [{"value": "x/large-1", "name": "large-1"}]}],
}


@pytest.mark.parametrize(
    ("session", "wish"),
    [
        ({"models": MODELS}, ("session/set_model", {"modelId": "large-1"})),
        (
            {"configOptions": [SELECT]},
            ("session/set_config_option", {"configId": "m", "value": "x/large-1"}),
        ),
    ],
)
def test_a_model_is_chosen_by_its_id_or_name(
    job: Job, session: Json, wish: tuple[str, Json]
) -> None:
    talk = Talk(replace(job, agent=job.agent.model_copy(update={"model": "large-1"})))
    talk.answers(LOADS)
    talk.answers({"sessionId": "s-1", **session})
    asked = talk.said[-1]
    assert (asked["method"], asked["params"]) == (wish[0], {"sessionId": "s-1", **wish[1]})
    talk.answers()
    assert talk.said[-1]["method"] == "session/prompt"


def test_a_model_that_is_not_offered_is_refused_with_those_that_are(job: Job) -> None:
    talk = Talk(replace(job, agent=job.agent.model_copy(update={"model": "huge"})))
    talk.answers(LOADS)
    end = end_of(talk.answers({"sessionId": "s-1", "models": MODELS}))
    assert end.reason is Reason.INVALID_REQUEST
    assert "'huge'" in end.detail
    assert "large-1, small-1" in end.detail


def test_planning_only_is_the_programs_own_mode_or_none(job: Job) -> None:
    plans = replace(job, agent=job.agent.model_copy(update={"mode": "plan"}))
    talk = Talk(plans)
    talk.answers(LOADS)
    talk.answers({"sessionId": "s-1", "modes": {"availableModes": [{"id": "plan"}]}})
    assert talk.said[-1]["params"] == {"sessionId": "s-1", "modeId": "plan"}
    talk = Talk(plans)
    talk.answers(LOADS)
    assert end_of(talk.answers({"sessionId": "s-1"})).reason is Reason.INVALID_REQUEST


# --- the turn ---


def test_text_is_told_as_it_comes_and_as_blocks(job: Job) -> None:
    talk = Talk(job).begun()
    for text in ("one ", "two"):
        talk.updates("agent_message_chunk", content={"type": "text", "text": text})
    talk.updates("tool_call", toolCallId="c", title="Look", kind="read", status="in_progress")
    talk.updates("agent_message_chunk", content={"type": "text", "text": "three"})
    end = end_of(talk.answers({"stopReason": "end_turn"}))
    deltas = [(e.block, e.offset, e.text) for e in talk.events if isinstance(e, TextDelta)]
    assert deltas == [(0, 0, "one "), (0, 4, "two"), (1, 0, "three")]
    assert [e.text for e in talk.events if isinstance(e, Text)] == ["one two", "three"]
    assert end.final_text == "three"


def test_a_call_is_told_once_with_its_input_and_its_result(job: Job) -> None:
    talk = Talk(job).begun()
    # As opencode says it: the input comes with a later update.
    talk.updates("tool_call", toolCallId="c", title="bash", kind="execute", status="pending")
    known = {"toolCallId": "c", "title": "echo hi", "rawInput": {"command": "echo hi"}}
    talk.updates("tool_call_update", status="in_progress", **known)
    talk.updates("tool_call_update", status="in_progress", **known)
    part = {"type": "content", "content": {"type": "text", "text": "hi"}}
    talk.updates("tool_call_update", toolCallId="c", status="completed", content=[part])
    call, result = talk.events[1:]
    assert isinstance(call, ToolCall)
    assert (call.name, call.input) == ("echo hi", {"command": "echo hi"})
    assert isinstance(result, ToolResult)
    assert (result.output, result.is_error) == ("hi", False)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", None),
        ("cancelled", Reason.INTERRUPTED),
        ("max_turn_requests", Reason.MAX_TURNS),
        ("max_tokens", Reason.MODEL_ERROR),
        ("refusal", Reason.MODEL_ERROR),
        ("of_tomorrow", Reason.MODEL_ERROR),
    ],
)
def test_a_stop_reason_is_a_reason(job: Job, stop: str, reason: Reason | None) -> None:
    assert end_of(Talk(job).begun().answers({"stopReason": stop})).reason is reason


@pytest.mark.parametrize(
    "told",
    [
        {"usage": {"inputTokens": 20, "outputTokens": 10}},  # opencode
        {"_meta": {"quota": {"token_count": {"input_tokens": 20, "output_tokens": 10}}}},  # gemini
    ],
)
def test_tokens_are_told_in_the_draft_s_words_or_gemini_s(job: Job, told: Json) -> None:
    end = end_of(Talk(job).begun().answers({"stopReason": "end_turn", **told}))
    assert end.usage is not None
    assert (end.usage.input_tokens, end.usage.output_tokens) == (20, 10)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 429, "message": "Rate limit"}, Reason.RATE_LIMIT),  # as gemini says it
        ({"code": -32603, "data": {"details": "401 wrong key"}}, Reason.AUTHENTICATION),  # qwen
        ({"code": -32603, "data": {"statusCode": 529}}, Reason.OVERLOADED),
        ({"code": -32603, "message": "it said 401 words"}, Reason.MODEL_ERROR),
        ({"code": "odd", "data": "odd"}, Reason.MODEL_ERROR),
    ],
)
def test_an_error_has_the_reason_of_its_status(job: Job, error: Json, reason: Reason) -> None:
    assert end_of(Talk(job).begun().answers(error=error)).reason is reason


def test_what_a_newer_program_says_is_kept_or_refused(job: Job) -> None:
    talk = Talk(job).begun()
    [kept] = talk.updates("of_tomorrow", what="x")
    assert isinstance(kept, UnknownEvent)
    assert kept.type == "acp.of_tomorrow"
    assert talk.hears(id="7", method="fs/read_text_file", params={}) == []
    assert talk.said[-1]["error"]["code"] == -32601
    for line in (b"not json", b"[]", b'{"id": 99, "result": 1}', b'{"method": 3}', b'{"id": null}'):
        assert list(talk.session.receive(line)) == []


def test_a_cancel_answers_what_was_asked_and_then_nothing_more(job: Job) -> None:
    talk = Talk(job)
    assert talk.session.interrupt() == b""
    talk.begun()
    [_, asked] = ask(talk, "execute", "rm -rf /")
    told = [json.loads(line) for line in bytes(talk.session.interrupt()).splitlines()]
    assert told[0]["result"] == {"outcome": {"outcome": "cancelled"}}
    assert told[1]["method"] == "session/cancel"
    said = len(talk.said)
    assert isinstance(asked, PermissionAsked)
    assert list(asked.then(Decision(True, "too late"))) == []
    assert len(talk.said) == said


# --- permissions ---

OPTIONS = [
    {"optionId": "ever", "kind": "allow_always"},
    {"optionId": "yes", "kind": "allow_once"},
    {"optionId": "no", "kind": "reject_once"},
]


def ask(talk: Talk, kind: str, title: str, options: list[Json] = OPTIONS) -> list[DriverEvent]:
    call = {"toolCallId": "p", "kind": kind, "title": title, "rawInput": {"command": title}}
    params = {"sessionId": "s-1", "toolCall": call, "options": options}
    return talk.hears(id=7, method="session/request_permission", params=params)


def test_a_permission_is_given_for_once_or_refused(job: Job) -> None:
    talk = Talk(job).begun()
    call, asked = ask(talk, "execute", "make test")
    assert isinstance(call, ToolCall)
    assert isinstance(asked, PermissionAsked)
    assert (asked.tool, asked.kind, asked.ours) == ("make test", "execute", False)
    assert talk.decides(asked, Decision(True, "")) == {"outcome": "selected", "optionId": "yes"}
    for options, outcome in (
        (OPTIONS, {"outcome": "selected", "optionId": "no"}),
        (OPTIONS[:2], {"outcome": "cancelled"}),
    ):
        [asked] = ask(talk, "execute", "make test", options)
        assert talk.decides(asked, Decision(False, "")) == outcome


def test_a_permission_may_be_taken_back_and_is_answered_once(job: Job) -> None:
    talk = Talk(job).begun()
    [_, asked] = ask(talk, "execute", "make test")
    assert isinstance(asked, PermissionAsked)
    other = {"requestId": 8}
    assert talk.hears(method="$/cancel_request", params=other) == []
    withdrawn = talk.hears(method="$/cancel_request", params={"requestId": 7})
    assert withdrawn == [PermissionWithdrawn(asked.id)]
    assert (talk.said[-1]["id"], talk.said[-1]["result"]["outcome"]) == (
        7,
        {"outcome": "cancelled"},
    )
    assert list(asked.then(Decision(True, "too late"))) == []
    assert talk.hears(method="$/cancel_request", params={"requestId": 7}) == []


def test_for_ever_is_never_chosen(job: Job) -> None:
    talk = Talk(job).begun()
    [_, asked] = ask(talk, "edit", "x", OPTIONS[:1])
    assert talk.decides(asked, Decision(True, "")) == {"outcome": "cancelled"}


@pytest.mark.parametrize(
    ("title", "kind", "tool"),
    [
        ("cloudagent_send_message", "other", "send_message"),
        ("mcp__cloudagent__stay_silent", None, "stay_silent"),
        ("mcp_cloudagent_send_message", "other", "send_message"),
        ("send_message (cloudagent MCP Server)", "other", "send_message"),
        # Whatever a command or another tool's words look like, they are no tool of ours.
        ("cloudagent_send_message", "execute", None),
        ("cloudagent_send_message_all", "other", None),
        ("run cloudagent_send_message", "other", None),
        ("delete (cloudagent MCP Server)", "other", None),
        ("other_send_message (cloudagent MCP Server)", "other", None),
        ("ToolSearch: select:mcp__cloudagent__send_message", "other", None),
    ],
)
def test_our_own_tools_are_known_by_how_their_title_begins(
    title: str, kind: str | None, tool: str | None
) -> None:
    call = {"title": title} if kind is None else {"title": title, "kind": kind}
    assert our_tool(call, NAMES) == tool


def test_a_call_of_ours_has_the_name_that_it_has_everywhere(job: Job) -> None:
    talk = Talk(job).begun()
    [call] = talk.updates(
        "tool_call", toolCallId="c", title="cloudagent_send_message", status="in_progress"
    )
    assert isinstance(call, ToolCall)
    assert call.name == "mcp__cloudagent__send_message"


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [
        ("default", {"read", "search", "think"}),
        ("plan", {"read", "search", "think"}),
        ("of_tomorrow", {"read", "search", "think"}),
        ("acceptEdits", {"read", "search", "think", "edit"}),
        ("bypassPermissions", None),
    ],
)
def test_a_mode_allows_what_it_says(mode: str, allowed: set[str] | None) -> None:
    kinds = ("read", "search", "think", "edit", "delete", "move", "execute", "fetch", "other")
    nothing: Callable[[Decision], list[DriverEvent]] = lambda _: []  # noqa: E731
    got = {
        kind
        for kind in kinds
        if by_mode(mode, PermissionAsked("x", kind, {}, ours=False, then=nothing)).allow
    }
    assert got == (set(kinds) if allowed is None else allowed)
    assert by_mode(mode, PermissionAsked("send", "other", {}, ours=True, then=nothing)).allow


# --- starting ---


def test_the_driver_for_any_program_needs_a_command(job: Job) -> None:
    bare = replace(job, agent=job.agent.model_copy(update={"command": None}))
    with pytest.raises(DriverError, match="needs a command"):
        AcpSession(bare, None).launch()
    assert AcpSession(job, None).launch().argv == ("/x/agent",)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.driver)
async def test_a_known_program_is_found_with_its_version(
    job: Job, tmp_path: Path, program: Program
) -> None:
    bare = replace(job, agent=job.agent.model_copy(update={"command": None}))
    with pytest.raises(DriverError, match="npm install") as raised:
        AcpSession(bare, program).launch()
    assert raised.value.reason is Reason.RUNTIME_MISSING
    [driver] = [driver for driver in ACP if driver.name == program.driver]
    missing = await driver.detect(bare.environment)
    assert missing is not None
    assert program.package in (missing.problem or "")

    folder = tmp_path / "lib" / "node_modules" / program.package
    (folder / "bin").mkdir(parents=True)
    (folder / "package.json").write_text(
        json.dumps({"name": program.package, "version": "7.8.9"}), encoding="utf-8"
    )
    real = folder / "bin" / "it.js"
    real.write_text("#!/bin/sh\nexit 9\n")  # its version is read, not asked for
    real.chmod(0o755)
    link = tmp_path / "bin" / program.name
    link.parent.mkdir()
    link.symlink_to(real)
    environment = {"PATH": str(link.parent), "HOME": str(tmp_path)}
    found = await driver.detect(environment)
    assert found is not None
    assert (found.version, found.path, found.problem) == ("7.8.9", str(link), None)
    assert found.logged_in is None
    (tmp_path / program.credentials[0]).parent.mkdir(parents=True)
    (tmp_path / program.credentials[0]).touch()
    again = await driver.detect(environment)
    assert again is not None
    assert again.logged_in is True
    command = AcpSession(replace(bare, environment=environment), program).launch()
    assert command.argv == (str(link), *program.arguments)
    assert command.env["PATH"].startswith(str(link.parent))


async def test_the_driver_for_any_program_has_nothing_to_detect() -> None:
    assert await ACP[-1].detect({}) is None


def test_gemini_gets_its_model_as_a_flag_and_is_never_asked_to_load(job: Job) -> None:
    agent = job.agent.model_copy(update={"model": "gemini-2.5-pro"})
    command = AcpSession(replace(job, agent=agent), GEMINI).launch()
    assert command.argv == ("/x/agent", "-m", "gemini-2.5-pro")
    assert [driver.name for driver in ACP if not driver.resumes] == ["gemini"]
    assert OPENCODE.model_flag is None


def test_what_is_said_is_what_the_protocols_own_schema_takes(job: Job) -> None:
    """Against the models of `agent-client-protocol`, which are made from the published schema."""
    from acp import schema

    plans = job.agent.model_copy(update={"mode": "plan"})
    talk = Talk(replace(job, session_id="s-0", agent=plans))
    talk.answers(LOADS)
    talk.updates("user_message_chunk", content={"type": "text", "text": "of old"})
    talk.answers({"modes": {"currentModeId": "x", "availableModes": [{"id": "plan"}]}})
    talk.answers()
    ask(talk, "execute", "make")
    [answer, cancel] = [json.loads(line) for line in bytes(talk.session.interrupt()).splitlines()]
    new = Talk(job)
    new.answers(LOADS)
    for said, model in [
        (talk.said[0]["params"], schema.InitializeRequest),
        (talk.said[1]["params"], schema.LoadSessionRequest),
        (talk.said[2]["params"], schema.SetSessionModeRequest),
        (talk.said[3]["params"], schema.PromptRequest),
        (new.said[1]["params"], schema.NewSessionRequest),
        (cancel["params"], schema.CancelNotification),
        (answer["result"], schema.RequestPermissionResponse),
    ]:
        taken = model.model_validate(said).model_dump(by_alias=True, exclude_unset=True)
        assert taken == said  # nothing of it was unknown
