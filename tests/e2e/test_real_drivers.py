"""The real coding agents from npm do what every driver has to do; only their model is scripted.

Each takes seconds of CPU per start, so that a default round looks at a few behaviours of each, and all of those that
`REAL_CLIS` names: `REAL_CLIS="claude codex opencode gemini qwen"`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloudagent_protocol.events import Reason
from contracts.drivers import BEHAVIOURS, Kit, scripted
from e2e.real_cli import claude_environment
from fakes.model import StubModel

pytestmark = [pytest.mark.slow, pytest.mark.real_cli, pytest.mark.timeout(400)]

CLIS = Path(__file__).parent / "clis"
WANTED = os.environ.get("REAL_CLIS", "claude codex opencode gemini qwen").split()
#: What a default round looks at: a reply by our tool, text that is published, and a second process that
#: goes on. With `REAL_CLIS` set, all is.
SHORT = ("a session resumed",)


def found(name: str) -> str:
    folder = CLIS / name / "node_modules" / ".bin"
    assert folder.exists(), f"run  REAL_CLIS='{' '.join(WANTED)}' sh tests/needs.sh"
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


def qwen_reply(text: str) -> str:
    # It hides the tools of MCP servers behind a search, and has a send_message of its own.
    tool = "mcp__cloudagent__send_message"
    found = f"@@call tool_search {json.dumps({'query': f'select:{tool}'})}"
    return f"{found}\n@@call {tool} {json.dumps({'text': text})}"


def opencode_environment(model: StubModel) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Stub",
        "options": {"baseURL": f"{model.url}/v1", "apiKey": "dummy"},
        "models": {"stub-model": {"name": "Stub", "tool_call": True}},
    }
    config = {
        "autoupdate": False,
        "share": "disabled",
        "model": "stub/stub-model",
        "small_model": "stub/stub-model",
        "provider": {"stub": provider},
    }
    off = ("MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    return {
        "PATH": found("opencode"),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        **{f"OPENCODE_DISABLE_{what}": "true" for what in off},
    }


def gemini_environment(model: StubModel) -> dict[str, str]:
    return {
        "PATH": found("gemini"),
        "GEMINI_API_KEY": "dummy",
        "GOOGLE_GEMINI_BASE_URL": model.url,
        "GEMINI_CLI_TRUST_WORKSPACE": "true",
    }


def gemini_settings(home: Path, model: StubModel) -> None:
    auth = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    quiet = {"privacy": {"usageStatisticsEnabled": False}, "telemetry": {"enabled": False}}
    general = {"general": {"enableAutoUpdate": False}}
    write(home / ".gemini" / "settings.json", {**auth, **quiet, **general})


def qwen_settings(home: Path, model: StubModel) -> None:
    write(home / ".qwen" / "settings.json", {"security": {"auth": {"selectedType": "openai"}}})


def codex_environment(model: StubModel) -> dict[str, str]:
    # Codex refuses a CODEX_HOME below TMPDIR.
    return {"PATH": found("codex"), "OPENAI_API_KEY": "dummy", "TMPDIR": "/var/tmp"}


def codex_settings(home: Path, model: StubModel) -> None:
    path = home / ".codex" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        'model = "stub-model"\nmodel_provider = "stub"\n[analytics]\nenabled = false\n'
        f'[model_providers.stub]\nname = "Stub"\nbase_url = "{model.url}/v1"\n'
        'env_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
        "request_max_retries = 1\nstream_max_retries = 1\n"
    )


REAL = {
    "claude": scripted(
        "claude", "claude_code", lambda model: claude_environment(model, CLAUDE_CODE_MAX_RETRIES="1"),
        patience_s=10.0, deadline_s=60.0, warm=True, steers=True, hold="@@stream 20 0.1",
    ),
    "codex": scripted(
        "codex", "codex", codex_environment, codex_settings, patience_s=5.0, deadline_s=60.0,
        steers=True, hold="@@stream 20 0.1",
    ),
    "qwen": scripted(
        "qwen", "qwen", qwen_environment, qwen_settings,
        reply=qwen_reply, patience_s=25.0, deadline_s=150.0,
    ),
    "opencode": scripted(
        "opencode", "opencode", opencode_environment, patience_s=45.0, deadline_s=150.0,
        # It passes on that a request failed, and not how.
        reasons=dict.fromkeys((401, 429, 529), Reason.MODEL_ERROR),
    ),
    "gemini": scripted(
        "gemini", "gemini", gemini_environment, gemini_settings,
        agent={"model": "gemini-2.5-pro"}, resumes=False, tells_input=False, patience_s=25.0, deadline_s=300.0,
    ),
}  # fmt: skip


#: And of those that can more than take one message after the other.
MORE = {
    "claude": (
        "401: log in",
        "the next message in the same process",
        "the first message in a process that waits for it",
        "a message put into its turn",
        "a stop that its process survives",
    ),
    "codex": ("401: log in", "a message put into its turn"),
}
LOOKED_AT = [
    pytest.param(REAL[name], words, id=f"{name}-{words}")
    for name in WANTED
    for words in (BEHAVIOURS if "REAL_CLIS" in os.environ else (*SHORT, *MORE.get(name, ())))
]


@pytest.mark.parametrize(("kit", "words"), LOOKED_AT)
async def test_the_real_program(kit: Kit, words: str, tmp_path: Path) -> None:
    await BEHAVIOURS[words](kit, tmp_path)
