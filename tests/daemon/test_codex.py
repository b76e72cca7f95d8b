"""What codex's app-server says, and what is answered; where its program is. Most needs no process."""

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.drivers.base import (
    AwaitTools,
    Decision,
    DriverError,
    Job,
    PermissionAsked,
    PermissionWithdrawn,
    Say,
    ToolServer,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.codex import CODEX, CodexSession
from cloudagent_daemon.drivers.codex_items import reason
from cloudagent_daemon.drivers.codex_program import native
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.events import Outcome, Reason, Retry, UnknownEvent
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec
from contracts.kits import FAKE_CODEX

Json = dict[str, Any]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        agent=AgentSpec(id=AgentId("agent_1"), name="shop", driver="codex", command=["/x/codex"]),
        home=tmp_path,
        cwd=tmp_path / "w",
        sessions_dir=tmp_path / "sessions",
        run_dir=tmp_path / "run",
        tools=ToolServer(("python", "-I", "shim.py"), tmp_path / "s", tmp_path / "t"),
        system_prompt="You are shop.",
        session_id=None,
        new_session_id="11111111-1111-4111-8111-111111111111",
        environment={"PATH": "/nonexistent", "HOME": "/nonexistent"},
    )


def test_our_tools_are_required_and_need_no_approval(job: Job) -> None:
    words = CodexSession(job).launch().argv
    assert words[:2] == ("/x/codex", "app-server")
    settings = dict(word.split("=", 1) for word in words if word.startswith("mcp_servers."))
    told = {key.removeprefix("mcp_servers.cloudagent."): v for key, v in settings.items()}
    assert json.loads(told["command"]) == "python"
    assert json.loads(told["args"]) == ["-I", "shim.py"]
    assert told["required"] == "true"
    assert told["default_tools_approval_mode"] == '"approve"'


@pytest.mark.parametrize(
    ("mode", "sandbox", "policy"),
    [
        ("default", None, None),  # as it is configured
        ("plan", "read-only", "on-request"),
        ("acceptEdits", "workspace-write", "on-request"),
        ("bypassPermissions", "danger-full-access", "never"),
    ],
)
def test_a_mode_is_a_sandbox_and_a_policy(
    job: Job, mode: str, sandbox: str | None, policy: str | None
) -> None:
    session = CodexSession(replace(job, agent=job.agent.model_copy(update={"mode": mode})))
    session.prompt(Turn("do it"))
    said = said_to(session, id=1, result={})
    assert [one["method"] for one in said] == ["initialized", "thread/start"]
    params = said[1]["params"]
    assert (params.get("sandbox"), params.get("approvalPolicy")) == (sandbox, policy)
    assert params["developerInstructions"] == "You are shop."


def said_to(session: CodexSession, **message: Any) -> list[Json]:
    events = session.receive(json.dumps(message).encode())
    return [json.loads(event.data) for event in events if isinstance(event, Say)]


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("unauthorized", Reason.AUTHENTICATION),
        ("usageLimitExceeded", Reason.RATE_LIMIT),
        ("contextWindowExceeded", Reason.CONTEXT_OVERFLOW),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, Reason.RATE_LIMIT),
        ({"responseStreamDisconnected": {"httpStatusCode": 529}}, Reason.OVERLOADED),
        ({"httpConnectionFailed": {"httpStatusCode": 503}}, Reason.SERVER_ERROR),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, Reason.CONNECTION),
        ({"responseStreamDisconnected": {"httpStatusCode": None}}, Reason.MODEL_ERROR),
        ("of_tomorrow", Reason.MODEL_ERROR),
        (None, Reason.MODEL_ERROR),
        ([7], Reason.MODEL_ERROR),
    ],
)
def test_an_error_has_the_reason_of_its_kind_or_status(info: Any, expected: Reason) -> None:
    assert reason({"message": "401 words", "codexErrorInfo": info}) is expected


async def test_a_thread_that_is_another_than_asked_for_is_a_lost_session(tmp_path: Path) -> None:
    async with FAKE_CODEX.world(tmp_path) as world:
        world.agent.env["FAKE_CODEX"] = "other-thread"
        workspace = Workspace(world.settings.agents_dir, world.agent)
        workspace.prepare()
        workspace.keep_session(world.conversation, "gone")
        seen = await world.run("@@reply still here")
        starts = [line for line in world.effects() if line.startswith("start ")]
    assert [e.reason for e in seen.events if isinstance(e, Retry)] == [Reason.SESSION_LOST]
    assert seen.end.outcome is Outcome.REPLIED
    assert len(starts) == 1  # the message was put to one thread only


async def test_without_our_tools_no_turn_begins(tmp_path: Path) -> None:
    async with FAKE_CODEX.world(tmp_path) as world:
        world.agent.env["FAKE_CODEX"] = "no-tools"
        seen = await world.run("@@reply never")
    assert (seen.end.outcome, seen.end.reason) == (Outcome.DEAD, Reason.TOOLS_UNAVAILABLE)
    assert not any(line.startswith("start ") for line in world.effects())


async def test_what_a_mode_does_not_allow_is_declined_and_the_turn_goes_on(tmp_path: Path) -> None:
    orders = "@@ask command\n@@ask file\n@@ask tool"
    async with FAKE_CODEX.world(tmp_path) as world:
        shy = await world.run(f"{orders}\n@@reply ok")
        bold = await world.run(world.deliver(f"{orders}\n@@reply ok", mode="bypassPermissions"))
    for seen, decided in (
        (shy, ["decline", "decline", "accept"]),
        (bold, ["accept", "accept", "accept"]),
    ):
        assert [event.text for event in seen.events if event.type == "text"] == decided
        assert seen.end.outcome is Outcome.REPLIED


async def test_what_a_newer_codex_says_is_kept_or_refused(tmp_path: Path) -> None:
    async with FAKE_CODEX.world(tmp_path) as world:
        seen = await world.run("@@odd\n@@again 529\n@@reply ok")
    assert [e.type for e in seen.events if isinstance(e, UnknownEvent)] == ["codex.ofTomorrow"]
    assert [e.reason for e in seen.events if isinstance(e, Retry)] == [Reason.OVERLOADED]
    assert [e.text for e in seen.events if e.type == "text"] == ["refused with -32601"]
    assert seen.end.outcome is Outcome.REPLIED


def test_a_codex_that_never_lists_our_tools_is_not_prompted(job: Job) -> None:
    session = CodexSession(job)
    session.prompt(Turn("do it"))
    said_to(session, id=1, result={})
    [waits] = session.receive(json.dumps({"id": 2, "result": {"thread": {"id": "t"}}}).encode())
    assert isinstance(waits, AwaitTools)
    [end] = waits.then(False)
    assert isinstance(end, TurnEnd)
    assert end.reason is Reason.TOOLS_UNAVAILABLE


def test_an_answer_after_the_end_is_not_said(job: Job) -> None:
    session = CodexSession(job)
    session.prompt(Turn("do it"))
    said_to(session, id=1, result={})
    [waits] = session.receive(json.dumps({"id": 2, "result": {"thread": {"id": "t"}}}).encode())
    assert isinstance(waits, AwaitTools)
    asked = {"id": 5, "method": "item/commandExecution/requestApproval", "params": {"command": "x"}}
    [question] = session.receive(json.dumps(asked).encode())
    assert isinstance(question, PermissionAsked)
    resolved = {
        "method": "serverRequest/resolved",
        "params": {"threadId": "t", "requestId": 5},
    }
    assert list(session.receive(json.dumps(resolved).encode())) == [
        PermissionWithdrawn(question.id)
    ]
    done = {
        "method": "turn/completed",
        "params": {"threadId": "t", "turn": {"status": "completed"}},
    }
    [end] = session.receive(json.dumps(done).encode())
    assert isinstance(end, TurnEnd)
    assert list(question.then(Decision(True, "late"))) == []
    assert list(waits.then(True)) == []
    assert session.interrupt() == b""


# --- where it is ---


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "beside"])
async def test_the_program_behind_npms_script_is_started(
    job: Job, tmp_path: Path, nested: bool
) -> None:
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
    scope = tmp_path / "lib" / "node_modules" / "@openai"
    package = scope / "codex"
    inner = package / "node_modules" / "@openai" if nested else scope
    real = inner / f"codex-{sys.platform}-{machine}" / "vendor" / "some-triple" / "bin" / "codex"
    script = package / "bin" / "codex.js"
    for path, text in ((real, "#!/bin/sh\n[ $2 = status ] && exit 1\n"), (script, "not for sh")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (package / "package.json").write_text('{"name": "@openai/codex", "version": "0.169.0"}')
    link = tmp_path / "bin" / "codex"
    link.parent.mkdir()
    link.symlink_to(script)
    environment = {"PATH": f"{link.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    bare = replace(
        job, agent=job.agent.model_copy(update={"command": None}), environment=environment
    )
    assert CodexSession(bare).launch().argv[0] == str(real)
    found = await CODEX.detect(environment)
    assert (found.path, found.version, found.logged_in) == (str(link), "0.169.0", False)
    assert native("/usr/bin/env") == "/usr/bin/env"


async def test_a_codex_that_is_missing_says_how_to_install_it(job: Job) -> None:
    bare = replace(job, agent=job.agent.model_copy(update={"command": None}))
    with pytest.raises(DriverError, match="npm install -g @openai/codex"):
        CodexSession(bare).launch()
    assert "not found" in ((await CODEX.detect(bare.environment)).problem or "")
