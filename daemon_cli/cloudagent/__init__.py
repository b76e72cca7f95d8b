"""The Python client: `from cloudagent import CloudAgent, AsyncCloudAgent`.

Names are imported when they are first used, so that the `cloudagent` command, which begins by
importing this package, starts without an HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cloudagent.async_client import AsyncAgentHandle, AsyncCloudAgent, AsyncTurn
    from cloudagent.client import AgentHandle, CloudAgent, Turn
    from cloudagent.errors import (
        AmbiguousNameError,
        APIError,
        AuthenticationError,
        CloudAgentError,
        ConfigurationError,
        ConflictError,
        ConnectionFailedError,
        InvalidRequestError,
        NotFoundError,
        NotLoggedInError,
        PermissionDeniedError,
        RateLimitedError,
        ServerError,
        UnexpectedAnswerError,
        WaitTimeoutError,
    )
    from cloudagent.turn import Delta, TurnEvent, TurnResult
    from cloudagent_protocol.resources import DeliveryMode

_HOMES: Final = {
    "cloudagent.client": ("AgentHandle", "CloudAgent", "Turn"),
    "cloudagent.async_client": ("AsyncAgentHandle", "AsyncCloudAgent", "AsyncTurn"),
    "cloudagent.turn": ("Delta", "TurnEvent", "TurnResult"),
    "cloudagent_protocol.resources": ("DeliveryMode",),
    "cloudagent.errors": (
        "APIError",
        "AmbiguousNameError",
        "AuthenticationError",
        "CloudAgentError",
        "ConfigurationError",
        "ConflictError",
        "ConnectionFailedError",
        "InvalidRequestError",
        "NotFoundError",
        "NotLoggedInError",
        "PermissionDeniedError",
        "RateLimitedError",
        "ServerError",
        "UnexpectedAnswerError",
        "WaitTimeoutError",
    ),
}

__all__ = [
    "APIError",
    "AgentHandle",
    "AmbiguousNameError",
    "AsyncAgentHandle",
    "AsyncCloudAgent",
    "AsyncTurn",
    "AuthenticationError",
    "CloudAgent",
    "CloudAgentError",
    "ConfigurationError",
    "ConflictError",
    "ConnectionFailedError",
    "DeliveryMode",
    "Delta",
    "InvalidRequestError",
    "NotFoundError",
    "NotLoggedInError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ServerError",
    "Turn",
    "TurnEvent",
    "TurnResult",
    "UnexpectedAnswerError",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
