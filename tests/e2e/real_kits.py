"""The real coding agents from npm as kits of the contract; only their model is scripted."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from cloudagent_protocol.events import Reason
from contracts.kits import scripted
from e2e.real_cli import claude_environment
from fakes.model import StubModel
from fakes.runs import World

CLIS: Final = Path(__file__).parent / "clis"


def found(name: str) -> str:
    folder = CLIS / name / "node_modules" / ".bin"
    assert folder.exists(), "run  sh tests/needs.sh agents"
    return f"{folder}:/usr/local/bin:/usr/bin:/bin"


def write(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def qwen_environment(model: StubModel) -> dict[str, str]:
    return {
        "PATH": found("qwen"),
        "OPENAI_API_KEY": "dummy",
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "OPENAI_MODEL": "stub-model",
    }


def qwen_call(tool: str, given: dict[str, Any]) -> str:
    # It hides the tools of MCP servers behind a search, and has a send_message of its own.
    tool = f"mcp__cloudagent__{tool}"
    found = f"@@call tool_search {json.dumps({'query': f'select:{tool}'})}"
    return f"{found}\n@@call {tool} {json.dumps(given)}"


def qwen_reply(text: str) -> str:
    return qwen_call("send_message", {"text": text})


def opencode_environment(model: StubModel) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Stub",
        "options": {"baseURL": f"{model.url}/v1", "apiKey": "dummy"},
        "models": {
            "stub-model": {
                "name": "Stub",
                "tool_call": True,
                "attachment": True,
                "modalities": {"input": ["text", "image"], "output": ["text"]},
            }
        },
    }
    config = {
        "autoupdate": False,
        "share": "disabled",
        "model": "stub/stub-model",
        "small_model": "stub/stub-model",
        "permission": {"bash": "ask"},
        "provider": {"stub": provider},
    }
    off = ("MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    return {
        "PATH": found("opencode"),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        **{f"OPENCODE_DISABLE_{what}": "true" for what in off},
    }


def opencode_settings(home: Path, model: StubModel) -> None:
    # It would have npm install what its plugins need, from the network, at each start.
    folder = home / ".config" / "opencode"
    (folder / "node_modules").mkdir(parents=True)
    there = {"dependencies": {"@opencode-ai/plugin": "*"}}
    write(folder / "package-lock.json", {"packages": {"": there}})


def gemini_environment(model: StubModel) -> dict[str, str]:
    return {
        "PATH": found("gemini"),
        "GEMINI_API_KEY": "dummy",
        "GOOGLE_GEMINI_BASE_URL": model.url,
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
    }


def gemini_call(tool: str, given: dict[str, Any]) -> str:
    # It leaves out whatever is called as its own tool is, which needs its screen.
    tool = "ask_person" if tool == "ask_user" else tool
    return f"@@call {tool} {json.dumps(given)}"


def gemini_settings(home: Path, model: StubModel) -> None:
    auth = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    quiet = {"privacy": {"usageStatisticsEnabled": False}, "telemetry": {"enabled": False}}
    # It would ask its model ten times, for minutes.
    general = {"general": {"enableAutoUpdate": False, "maxAttempts": 2}}
    write(home / ".gemini" / "settings.json", {**auth, **quiet, **general})


def qwen_settings(home: Path, model: StubModel) -> None:
    # It would ask its model seventy times: seven that go on for minutes, ten times over.
    once = {"model": {"generationConfig": {"maxRetries": 0, "modalities": {"image": True}}}}
    auth = {"security": {"auth": {"selectedType": "openai"}}}
    write(home / ".qwen" / "settings.json", {**auth, **once})


def codex_environment(model: StubModel) -> dict[str, str]:
    # Codex refuses a CODEX_HOME below TMPDIR.
    return {"PATH": found("codex"), "OPENAI_API_KEY": "dummy", "TMPDIR": "/var/tmp"}


def codex_settings(home: Path, model: StubModel) -> None:
    path = home / ".codex" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        'model = "stub-model"\nmodel_provider = "stub"\napproval_policy = "on-request"\n'
        "[analytics]\nenabled = false\n"
        f'[model_providers.stub]\nname = "Stub"\nbase_url = "{model.url}/v1"\n'
        'env_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
        "request_max_retries = 1\nstream_max_retries = 1\n"
    )


def by(tool: str, key: str, command: str, **more: Any) -> str:
    """The order that has the program run a command by its own tool."""
    return f"@@call {tool} {json.dumps({key: command, **more})}"


def left_file(world: World, command: str) -> bool:
    return (world.workspace / "workspace" / command.split()[-1]).exists()


def lonely_child(act: Callable[[str], str], effects: Path) -> str:
    """A child in a session of its own and without an environment, that lives when the command is over.

    The command waits for that: with its terminal gone, it would end with it before.
    """
    says = f"echo child $$ >>{effects}; : >$0; exec /bin/sleep 3600"
    child = f"setsid env -i /bin/sh -c {shlex.quote(says)} {effects}.$$"
    there = f"until [ -e {effects}.$$ ]; do sleep 0.05; done"
    return act(f"{child} </dev/null >/dev/null 2>&1 & {there}")


def acting(act: Callable[[str], str], **more: Any) -> dict[str, Any]:
    return {"act": act, "acted": left_file, "child": partial(lonely_child, act), **more}


def codex_acting() -> dict[str, Any]:
    # It asks for what is to be done outside of its sandbox, and may not ask where there is none.
    asks = {"sandbox_permissions": "require_escalated", "justification": "May I?"}
    act = partial(by, "exec_command", "cmd")
    return acting(partial(act, **asks), child=partial(lonely_child, act))


def for_all(home: Path, model: StubModel) -> dict[str, str]:
    """The environment of a daemon whose home is made ready for all of them."""
    settings = (codex_settings, qwen_settings, opencode_settings, gemini_settings)
    for prepare in settings:
        prepare(home, model)
    ways = (
        claude_environment(model),
        codex_environment(model),
        qwen_environment(model),
        opencode_environment(model),
        gemini_environment(model),
    )
    merged = {name: value for way in ways for name, value in way.items()}
    return {**merged, "PATH": ":".join(way["PATH"] for way in ways)}


REAL: Final = {
    "claude": scripted(
        "claude", "claude_code", lambda model: claude_environment(model, CLAUDE_CODE_MAX_RETRIES="1"),
        patience_s=10.0, deadline_s=60.0, warm=True, steers=True, hold="@@stream 20 0.1",
        **acting(lambda command: by("Bash", "command", command, description="x")),
    ),
    "codex": scripted(
        "codex", "codex", codex_environment, codex_settings, patience_s=5.0, deadline_s=60.0,
        steers=True, hold="@@stream 20 0.1", **codex_acting(),
    ),
    "qwen": scripted(
        "qwen", "qwen", qwen_environment, qwen_settings, call=qwen_call,
        reply=qwen_reply, patience_s=25.0, deadline_s=150.0,
        **acting(lambda command: by("run_shell_command", "command", command, is_background=False)),
    ),
    "opencode": scripted(
        "opencode", "opencode", opencode_environment, opencode_settings, patience_s=45.0, deadline_s=150.0,
        goes_on=False,
        # It passes on that a request failed, and not how. Told to wait for less, it asks again at once.
        reasons=dict.fromkeys((401, 429, 529), Reason.MODEL_ERROR), error="@@error {} 99 0.1".format,
        **acting(lambda command: by("bash", "command", command, description="x")),
    ),
    "gemini": scripted(
        "gemini", "gemini", gemini_environment, gemini_settings,
        agent={"model": "gemini-2.5-pro"}, resumes=False, tells_input=False, patience_s=25.0, deadline_s=300.0,
        call=gemini_call, **acting(lambda command: by("run_shell_command", "command", command)),
    ),
}  # fmt: skip
#: What needs a process that stays, or takes a message into its turn: one behaviour at a time.
SINGLY: Final = {
    "claude": (
        "the next message in the same process",
        "the first message in a process that waits for it",
        "a message put into its turn",
        "a stop that its process survives",
    ),
    "codex": ("a message put into its turn",),
}
