"""What can go wrong in the built-in agent, and by which name the rest of the project knows it."""

from typing import Final, Literal, TypeAlias

#: The values of `cloudagent_protocol.events.Reason` that this program uses (a test compares them);
#: spelled out because that module costs a start-up 0.2 s of pydantic.
Reason: TypeAlias = Literal[
    "tools_unavailable",
    "session_lost",
    "authentication",
    "billing",
    "rate_limit",
    "overloaded",
    "server_error",
    "connection",
    "invalid_request",
    "context_overflow",
    "max_turns",
    "model_error",
    "no_result",
    "interrupted",
    "internal",
]

#: Failures that may well be gone a moment later.
PASSING: Final[frozenset[Reason]] = frozenset(
    {"rate_limit", "overloaded", "server_error", "connection"}
)


class AgentError(Exception):
    """The turn cannot go on; `str()` says why, for a person."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


class ModelError(AgentError):
    """The model did not answer."""

    def __init__(self, reason: Reason, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        #: What the service itself asks to wait.
        self.retry_after_s = retry_after_s


class ToolError(Exception):
    """A tool call that cannot be done; the model reads `str()`."""
