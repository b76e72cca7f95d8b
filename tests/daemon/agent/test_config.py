"""Which model answers."""

from typing import get_args

import pytest

from cloudagent_daemon.agent.config import read
from cloudagent_daemon.agent.errors import AgentError
from cloudagent_daemon.agent.errors import Reason as AgentReason
from cloudagent_protocol.events import Reason

ANTHROPIC = {"ANTHROPIC_API_KEY": "a"}
OPENAI = {"OPENAI_API_KEY": "o"}
LOCAL = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1/"}


@pytest.mark.parametrize(
    ("environment", "model", "expected"),
    [
        (ANTHROPIC, None, ("anthropic", "claude-sonnet-4-5")),
        (OPENAI, None, ("openai", "gpt-5")),
        (ANTHROPIC | OPENAI, None, ("anthropic", "claude-sonnet-4-5")),
        (ANTHROPIC | OPENAI, "gpt-5-mini", ("openai", "gpt-5-mini")),
        (ANTHROPIC | OPENAI, "claude-opus-4-1", ("anthropic", "claude-opus-4-1")),
        (ANTHROPIC, "gateway-model", ("anthropic", "gateway-model")),
        (OPENAI, "claude-via-gateway", ("openai", "claude-via-gateway")),
        (LOCAL, "llama3", ("openai", "llama3")),
        (LOCAL, "org/llama3", ("openai", "org/llama3")),
        (ANTHROPIC | OPENAI, "openai/gpt-5", ("openai", "gpt-5")),
        (ANTHROPIC | OPENAI, "anthropic/x", ("anthropic", "x")),
        (OPENAI, "anthropic/x", ("openai", "anthropic/x")),
        ({"ANTHROPIC_AUTH_TOKEN": "t"}, None, ("anthropic", "claude-sonnet-4-5")),
        (OPENAI | {"CLOUDAGENT_BUILTIN_MODEL": "m"}, None, ("openai", "m")),
        (OPENAI | {"CLOUDAGENT_BUILTIN_MODEL": "m"}, "n", ("openai", "n")),
    ],
)
def test_the_model_says_who_answers_or_whichever_key_is_there(
    environment: dict[str, str], model: str | None, expected: tuple[str, str]
) -> None:
    assert read(environment).choose(model) == expected


def test_without_a_key_nobody_does_but_the_scripted_model() -> None:
    with pytest.raises(AgentError, match="OPENAI_API_KEY"):
        read({}).choose(None)
    assert read({}).choose(None, "scripted") == ("scripted", "scripted")


def test_base_urls_may_end_in_a_slash() -> None:
    assert read(LOCAL).openai.base_url == "http://127.0.0.1:1/v1"


def test_keys_do_not_show_in_what_is_printed() -> None:
    assert "secret" not in repr(read({"ANTHROPIC_API_KEY": "secret", "OPENAI_API_KEY": "secret"}))


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_limit_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(AgentError, match="CLOUDAGENT_BUILTIN_MAX_CALLS"):
        read({"CLOUDAGENT_BUILTIN_MAX_CALLS": value})


def test_our_reasons_are_the_protocols() -> None:
    assert set(get_args(AgentReason)) <= set(Reason)
