"""What an HTTP status of a model's service means for a turn."""

from typing import Final

from cloudagent_protocol.events import Reason

_BY_STATUS: Final = {
    400: Reason.INVALID_REQUEST,
    401: Reason.AUTHENTICATION,
    402: Reason.BILLING,
    403: Reason.AUTHENTICATION,
    404: Reason.INVALID_REQUEST,
    413: Reason.CONTEXT_OVERFLOW,
    429: Reason.RATE_LIMIT,
    529: Reason.OVERLOADED,
}


def by_status(status: int | None) -> Reason | None:
    """The reason; None if the status says nothing of the kind."""
    if status is None:
        return None
    return _BY_STATUS.get(status) or (Reason.SERVER_ERROR if 500 <= status < 600 else None)
