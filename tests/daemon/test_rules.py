"""What a person's leave covers: that and no more."""

from typing import Any

import pytest

from cloudagent_daemon.runs import rules
from cloudagent_daemon.runs.rules import Rule, rule_for
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec

CWD = "/src/shop"


def rule(tool: str, action: str, given: dict[str, Any], **more: Any) -> Rule | None:
    about: dict[str, Any] = {"cwd": CWD, "context": "c", "files": dict[str, str]()} | more
    return rule_for(tool, action, given, **about)


@pytest.mark.parametrize(
    ("action", "given", "words"),
    [
        ("execute", {"command": "make test", "description": "Runs"}, "exactly the command `make test` in /src/shop"),
        ("edit", {"file_path": "/src/shop/a.py", "new_string": "x"}, "to change the file /src/shop/a.py with T, whatever it is to hold"),
        ("edit", {"path": "lib/a.py"}, "to change the file /src/shop/lib/a.py with T, whatever it is to hold"),
        ("read", {"path": "lib/a.py"}, "to read the file /src/shop/lib/a.py with T, whatever it is to hold"),
        ("fetch", {"url": "https://docs.python.org/3/", "prompt": "?"}, "T from any page of https://docs.python.org"),
        ("fetch", {"url": "http://localhost:8000/x"}, "T from any page of http://localhost:8000"),
        ("other", {"ticket": 7}, 'T with exactly {"ticket":7}'),
    ],
)  # fmt: skip
def test_a_rule_says_what_it_allows(action: str, given: dict[str, Any], words: str) -> None:
    found = rule("T", action, given)
    assert found is not None
    assert found.words == words


@pytest.mark.parametrize(
    ("action", "given"),
    [
        ("execute", {}),
        ("execute", {"command": "  "}),
        ("execute", {"command": "echo \u202e cod"}),
        ("execute", {"command": "ls\x1b[2K"}),
        ("execute", {"command": "ls" + " " * 120 + "; rm -rf ~"}),
        ("execute", {"command": "one\ntwo"}),
        ("execute", {"command": "x" * 5_000}),
        ("edit", {"file_path": "/etc/passwd"}),
        ("edit", {"file_path": "/src/shop/../other/a.py"}),
        ("edit", {"file_path": ".git/hooks/pre-commit"}),
        ("edit", {"file_path": ".env"}),
        ("edit", {"file_path": ".claude/settings.json"}),
        ("read", {"file_path": "deploy.pem"}),
        ("read", {"file_path": "/src/shopping/list"}),
        ("delete", {"path": "a.py"}),
        ("edit", {"new_string": "x"}),
        ("fetch", {"url": "file:///etc/passwd"}),
        ("fetch", {"url": "https://a@b.example/"}),
        ("fetch", {"url": "https://x:99999999/"}),
        ("fetch", {}),
        ("other", {}),
        ("other", {"description": "nothing else"}),
    ],
)
def test_what_no_rule_should_allow_is_asked_for_each_time(
    action: str, given: dict[str, Any]
) -> None:
    assert rule("T", action, given) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"tool": "U"},
        {"given": {"command": "make test; reboot"}},
        {"cwd": "/src/other"},
        {"context": "other"},
        {"files": {"/src/shop/run.sh": "b"}},
    ],
)
def test_leave_is_void_when_anything_that_it_binds_has_changed(changed: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "tool": "Bash",
        "action": "execute",
        "given": {"command": "make test"},
        "cwd": CWD,
        "context": "c",
        "files": {"/src/shop/run.sh": "a"},
    }
    other: dict[str, Any] = asked | changed
    made = rule_for(**asked)
    assert made is not None
    same: dict[str, Any] = asked | {
        "given": {"command": "make test", "description": "in other words"}
    }
    assert made.covers(rule_for(**same))
    assert not made.covers(rule_for(**other))
    assert rules.digest(**asked) == rules.digest(**same)
    assert rules.digest(**asked) != rules.digest(**other)


def test_an_agents_settings_are_part_of_what_was_allowed() -> None:
    agent = AgentSpec(id=AgentId("agent_1"), name="shop", driver="acp", env={"A": "1"})
    before = rules.context_of(agent)
    assert before == rules.context_of(agent.model_copy(update={"name": "other"}))
    for changed in ({"env": {"A": "2"}}, {"mode": "acceptEdits"}, {"command": ["x"]}):
        assert before != rules.context_of(agent.model_copy(update=changed))


@pytest.mark.parametrize(
    "tool", ["WebFetch", "WebSearch", "web_fetch", "google_web_search", "fetch"]
)
def test_after_strangers_words_no_rule_opens_a_way_out(tool: str) -> None:
    assert rules.taints(tool)
    assert not rules.applies("execute", tainted=True)
    assert not rules.applies("fetch", tainted=True)
    assert rules.applies("edit", tainted=True)
    assert rules.applies("execute", tainted=False)


def test_other_tools_bring_in_no_strangers_words() -> None:
    assert not any(rules.taints(tool) for tool in ("Bash", "Read", "mcp__cloudagent__send_message"))


def test_the_words_of_a_command_may_name_what_it_runs() -> None:
    assert rules.named_files("bash -x 'run it.sh' && ./b") == ["bash", "run it.sh", "&&", "./b"]
    assert rules.named_files("echo 'open") == ["echo", "'open"]
