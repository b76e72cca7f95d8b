"""What the built-in agent takes from its environment; the only module of it that reads there."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from cloudagent_daemon.agent.errors import AgentError

ModelKind: TypeAlias = Literal["anthropic", "openai", "scripted"]

#: For an agent without a model of its own.
DEFAULT_MODELS: Final[Mapping[ModelKind, str]] = {
    "anthropic": "claude-sonnet-4-5",
    "openai": "gpt-5",
    "scripted": "scripted",
}
#: Variables that the program needs besides the usual ones (`*` stands for any rest).
VARIABLES: Final = ("ANTHROPIC_*", "OPENAI_*", "CLOUDAGENT_BUILTIN_*")
NOT_CONFIGURED: Final = (
    "No model is configured. Set ANTHROPIC_API_KEY or OPENAI_API_KEY (for a server of your own "
    "OPENAI_BASE_URL) in the daemon's environment or in the agent's env."
)


@dataclass(frozen=True)
class Service:
    """Where a model answers, and the key to it."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    #: Anthropic's alternative to the key: a bearer token, as gateways use it.
    auth_token: str | None = field(default=None, repr=False)
    configured: bool = False

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.api_key, self.auth_token)))


@dataclass(frozen=True)
class Config:
    anthropic: Service
    openai: Service
    model: str | None = None
    #: Tokens of history that a request may carry.
    context_tokens: int = 100_000
    #: Tokens of one answer; Anthropic's API wants a limit. OpenAI's is left to the service.
    max_output_tokens: int = 16_000
    #: Requests to the model in one turn.
    max_calls: int = 50

    def choose(self, model: str | None, kind: ModelKind | None = None) -> tuple[ModelKind, str]:
        """The API to speak and the model to name.

        `anthropic/x` and `openai/x` say it themselves, if that service is configured (routers have
        names of the same form); `claude…` is Anthropic's; any other name goes to the
        OpenAI-compatible service if there is one; without a name, whichever is configured,
        Anthropic's first.

        Raises:
            AgentError: nothing is configured.
        """
        name = model or self.model or ""
        if kind is None:
            prefix, slash, rest = name.partition("/")
            if slash and prefix == "anthropic" and self.anthropic.configured:
                kind, name = "anthropic", rest
            elif slash and prefix == "openai" and self.openai.configured:
                kind, name = "openai", rest
            else:
                kind = self._kind_for(name)
        return kind, name or DEFAULT_MODELS[kind]

    def _kind_for(self, model: str) -> ModelKind:
        if not (self.anthropic.configured or self.openai.configured):
            raise AgentError("authentication", NOT_CONFIGURED)
        if model and not model.startswith("claude") and self.openai.configured:
            return "openai"
        return "anthropic" if self.anthropic.configured else "openai"


def read(environment: Mapping[str, str]) -> Config:
    """The configuration in an environment.

    Raises:
        AgentError: a number is none.
    """
    get = environment.get
    anthropic_key, token = get("ANTHROPIC_API_KEY"), get("ANTHROPIC_AUTH_TOKEN")
    openai_key, openai_url = get("OPENAI_API_KEY"), get("OPENAI_BASE_URL")
    return Config(
        anthropic=Service(
            (get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com").rstrip("/"),
            anthropic_key,
            token,
            configured=bool(anthropic_key or token),
        ),
        openai=Service(
            (openai_url or "https://api.openai.com/v1").rstrip("/"),
            openai_key,
            # A server on one's own machine often wants no key.
            configured=bool(openai_key or openai_url),
        ),
        model=get("CLOUDAGENT_BUILTIN_MODEL"),
        context_tokens=_number(environment, "CLOUDAGENT_BUILTIN_CONTEXT_TOKENS", 100_000),
        max_output_tokens=_number(environment, "CLOUDAGENT_BUILTIN_MAX_OUTPUT_TOKENS", 16_000),
        max_calls=_number(environment, "CLOUDAGENT_BUILTIN_MAX_CALLS", 50),
    )


def from_environment() -> Config:
    """The configuration of this process.

    Raises:
        AgentError: a number is none.
    """
    return read(os.environ)


def without_models() -> dict[str, str]:
    """This process's environment for a program that has no use for the keys to the model."""
    return {
        name: value
        for name, value in os.environ.items()
        if not any(fnmatchcase(name, pattern) for pattern in VARIABLES)
    }


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name)
    if value is None:
        return default
    if not value.isdecimal() or not int(value):
        raise AgentError("invalid_request", f"{name} must be a whole number from 1, not {value!r}.")
    return int(value)
