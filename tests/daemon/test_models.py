"""Which models programs offer: asked of scripted ones that answer as the real ones were seen to."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudagent_daemon.drivers.models import Models
from cloudagent_daemon.drivers.probe import ask
from cloudagent_protocol.resources import MAX_MODELS, Runtime
from e2e.harness import processes_with

CLAUDE = """\
import json, sys
wanted = json.loads(sys.stdin.readline())
assert "--strict-mcp-config" in sys.argv and '{"disableAllHooks":true}' in sys.argv
print("[SandboxDebug] words")
print(json.dumps({"type": "system", "subtype": "init"}))
offered = [{"value": "opus", "displayName": "Opus"}, {"value": "haiku"}, {"displayName": "odd"}, 7]
response = {"commands": [], "models": offered}
print(json.dumps({"type": "control_response", "response":
    {"subtype": "success", "request_id": wanted["request_id"], "response": response}}), flush=True)
sys.stdin.read()
"""
CODEX = """\
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        print(json.dumps({"id": asked["id"], "result": {"userAgent": "codex/1"}}), flush=True)
        print(json.dumps({"method": "remoteControl/status/changed", "params": {}}), flush=True)
    if asked["method"] == "model/list":
        models = [{"id": "a", "model": "gpt-6"}, {"id": "b", "model": "gpt-6-mini"}]
        print(json.dumps({"id": asked["id"], "result": {"data": models}}), flush=True)
"""
#: What gemini and qwen answer to `session/new`, beside what is of no use here.
GEMINI = {"models": {"availableModels": [
    {"modelId": "auto", "name": "Auto"}, {"modelId": "gemini-2.5-pro", "name": "gemini-2.5-pro"}]}}  # fmt: skip
QWEN = {
    "models": {"availableModels": [{"modelId": "coder-model(qwen-oauth)", "name": "coder-model"}]},
    "configOptions": [{"id": "model", "category": "model", "type": "select", "options": [
        {"value": "coder-model(qwen-oauth)", "name": "coder-model"}, {"value": "bare"}]}],
}  # fmt: skip
ACP = """\
import json, os, sys
assert sys.argv[-4:] == ["--allowed-mcp-server-names", "cloudagent", "--extensions", "none"]
assert "--acp" in sys.argv and any("NO_RELAUNCH" in name for name in os.environ)
for line in sys.stdin:
    asked = json.loads(line)
    assert asked["method"] in ("initialize", "session/new"), "nothing is said in the session"
    if asked["method"] == "session/new":
        print("no JSON")
        print(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "fs/read_text_file"}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **(ANSWER)}), flush=True)
"""
REFUSED = {"error": {"code": -32000, "message": "Authentication required"}}


def speaks_acp(answer: dict[str, Any]) -> str:
    return ACP.replace("ANSWER", repr(answer))


OPENCODE = "print('free/pickle'); print('stub/stub-model'); print()"


def program(folder: Path, name: str, code: str) -> Runtime:
    """A program that plays the one of this driver."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return Runtime(name=name, version="1", path=str(path))


@pytest.mark.parametrize(
    ("name", "code", "offered"),
    [
        ("claude_code", CLAUDE, ["opus", "haiku"]),
        ("codex", CODEX, ["gpt-6", "gpt-6-mini"]),
        ("opencode", OPENCODE, ["free/pickle", "stub/stub-model"]),
        ("claude_code", "print('no JSON')", None),
        ("opencode", "raise SystemExit(3)", None),
        ("gemini", speaks_acp({"result": GEMINI}), ["auto", "gemini-2.5-pro"]),
        ("qwen", speaks_acp({"result": QWEN}), ["coder-model", "bare"]),
        ("gemini", speaks_acp(REFUSED), None),
        ("builtin", "raise SystemExit('is not asked')", None),
    ],
)
async def test_a_program_is_asked_in_its_own_way(
    tmp_path: Path, name: str, code: str, offered: list[str] | None
) -> None:
    runtime, models = program(tmp_path, name, code), Models()
    await models.ask([runtime], {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert models.added([runtime])[0].models == offered
    # Another version may offer others.
    assert models.added([runtime.model_copy(update={"version": "2"})])[0].models is None


async def test_what_cannot_be_used_is_not_asked_and_of_many_models_some_are_told(
    tmp_path: Path,
) -> None:
    many = program(
        tmp_path, "opencode", "for n in range(200): print(f'a/{n}'); print('a/' + 'x' * 200)"
    )
    broken = Runtime(name="claude_code", path="/nonexistent", problem="is broken")
    models = Models()
    await models.ask([broken, many], {"PATH": "/usr/bin:/bin"})
    told = models.added([broken, many])
    assert told[0].models is None
    assert told[1].models == [f"a/{n}" for n in range(MAX_MODELS)]


async def test_a_program_that_never_answers_is_ended_in_time(tmp_path: Path) -> None:
    silent = program(
        tmp_path, "silent", "import time\nprint('{\"a\": 1}', flush=True)\ntime.sleep(600)"
    )
    heard: list[dict[str, Any]] = []
    environment = {"PATH": "/usr/bin:/bin", "XDG_MARK": str(tmp_path)}
    words = json.dumps({"hello": 1}).encode() + b"\n"
    assert await ask([silent.path or ""], environment, words, heard.append, timeout_s=4.0) is None
    assert heard == [{"a": 1}]
    assert processes_with(f"XDG_MARK={tmp_path}") == []
