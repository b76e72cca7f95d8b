"""A key that would switch what a logged-in program is billed to is told of, and agents do not get it."""

import json
from pathlib import Path

import pytest

from cloudagent_daemon.drivers import keys
from cloudagent_daemon.drivers.keys import stray, warning
from cloudagent_daemon.drivers.table import detect
from cloudagent_protocol.events import Text
from fakes.runs import a_world

KEY = {"ANTHROPIC_API_KEY": "sk-secret"}
OPENAI = {"OPENAI_API_KEY": "sk-secret"}


def login(home: Path, name: str, content: object) -> dict[str, str]:
    """The environment of who has logged in so."""
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return {"HOME": str(home)}


CREDENTIALS = {"claudeAiOauth": {"accessToken": "x"}}
ACCOUNT = {"oauthAccount": {"emailAddress": "ana@example.com"}}
TOKENS = {"tokens": {"access_token": "x"}}


def test_a_key_beside_a_login_of_claude_is_stray(tmp_path: Path) -> None:
    home = login(tmp_path, ".claude/.credentials.json", CREDENTIALS)
    assert stray("claude_code", {**home, **KEY}) == ["ANTHROPIC_API_KEY"]
    said = warning("claude_code", {**home, **KEY})
    assert said is not None
    assert "ANTHROPIC_API_KEY" in said
    assert keys.KEEP in said
    assert "sk-secret" not in said
    assert stray("claude_code", home) == []
    assert stray("builtin", {**home, **KEY}) == []


def test_a_login_whose_token_is_in_a_keychain_is_known_by_its_account(tmp_path: Path) -> None:
    home = login(tmp_path, ".claude.json", ACCOUNT)
    assert stray("claude_code", {**home, **KEY}) == ["ANTHROPIC_API_KEY"]
    elsewhere = {**KEY, "HOME": "/nonexistent", "CLAUDE_CONFIG_DIR": str(tmp_path)}
    assert stray("claude_code", elsewhere) == ["ANTHROPIC_API_KEY"]


@pytest.mark.parametrize(
    "more",
    [
        {"ANTHROPIC_BASE_URL": "http://gateway"},
        {"CLAUDE_CODE_USE_BEDROCK": "1"},
        {keys.KEEP: "1"},
        {"ANTHROPIC_API_KEY": ""},
        {"HOME": "/nonexistent"},
    ],
)
def test_a_key_that_is_wanted_or_for_something_else_is_not(
    tmp_path: Path, more: dict[str, str]
) -> None:
    home = login(tmp_path, ".claude/.credentials.json", CREDENTIALS)
    assert stray("claude_code", {**home, **KEY, **more}) == []
    assert warning("claude_code", {**home, **KEY, **more}) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", {"claudeAiOauth": None}, "\x00" * 50])
def test_a_file_that_tells_no_login_is_none(tmp_path: Path, content: object) -> None:
    home = login(tmp_path, ".claude/.credentials.json", content)
    assert stray("claude_code", {**home, **KEY}) == []


def test_codex_s_login_and_a_provider_of_its_own(tmp_path: Path) -> None:
    home = login(tmp_path, ".codex/auth.json", TOKENS)
    assert stray("codex", {**home, **OPENAI}) == ["OPENAI_API_KEY"]
    by_key = login(tmp_path / "by-key", ".codex/auth.json", {"OPENAI_API_KEY": "x", "tokens": None})
    assert stray("codex", {**by_key, **OPENAI}) == []
    (tmp_path / ".codex" / "config.toml").write_text('model = "x"\nmodel_provider = "azure"\n')
    assert stray("codex", {**home, **OPENAI}) == []


@pytest.mark.parametrize(
    ("env", "agent", "seen"),
    [
        ({}, {}, "unset"),
        ({keys.KEEP: "1"}, {}, "sk-secret"),
        ({}, {keys.KEEP: "1"}, "sk-secret"),
        ({}, {"ANTHROPIC_API_KEY": "sk-own"}, "sk-own"),
        ({}, {"CLAUDE_CONFIG_DIR": "/nonexistent"}, "sk-secret"),
    ],
)
async def test_an_agent_gets_the_key_only_where_that_is_said(
    tmp_path: Path, env: dict[str, str], agent: dict[str, str], seen: str
) -> None:
    login(tmp_path, ".claude/.credentials.json", CREDENTIALS)
    async with a_world(tmp_path, env={**KEY, **env}) as world:
        world.agent = world.agent.model_copy(update={"env": {**world.agent.env, **agent}})
        uplink = await world.run("@@env ANTHROPIC_API_KEY")
    assert [event.text for event in uplink.events if isinstance(event, Text)] == [seen]


async def test_detection_tells_of_the_key(tmp_path: Path) -> None:
    login(tmp_path, ".claude/.credentials.json", CREDENTIALS)
    program = tmp_path / "bin" / "claude"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '2.1.22 (Claude Code)'\n")
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:/usr/bin:/bin", **KEY}
    [found] = [one for one in await detect(environment) if one.name == "claude_code"]
    assert found.problem is None
    assert found.warning is not None
    assert "anthropics/claude-code#21506" in found.warning
    assert "ANTHROPIC_API_KEY is set" in found.warning
