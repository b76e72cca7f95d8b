"""What can go wrong, by code: problems over HTTP (RFC 9457), close codes of the link.

A code is never reused for a new meaning, and nobody branches on the text beside it.
"""

from enum import IntEnum, StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict


class ErrorCode(StrEnum):
    """The `code` of a problem; each stands for one HTTP status (`STATUS`)."""

    BAD_REQUEST = "bad_request"
    INVALID = "invalid"  # the body or a parameter does not fit the schema
    UNAUTHORIZED = "unauthorized"
    REVOKED = "revoked"  # a machine key that was good once: its host was removed
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    GONE = "gone"  # a file that was sent, and that its owner removed since
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    STORAGE_FULL = "storage_full"  # the person's files take all the room that they may have
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    RATE_LIMITED = "rate_limited"
    BACKLOG_FULL = "backlog_full"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    # Of the device login, with the names of RFC 8628 §3.5 and RFC 6749 §5.2.
    AUTHORIZATION_PENDING = "authorization_pending"
    SLOW_DOWN = "slow_down"
    ACCESS_DENIED = "access_denied"
    EXPIRED_TOKEN = "expired_token"  # noqa: S105 - a name, not a secret
    INVALID_GRANT = "invalid_grant"


STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.INVALID: 422,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.REVOKED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.GONE: 410,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.STORAGE_FULL: 413,
    ErrorCode.IDEMPOTENCY_MISMATCH: 422,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.BACKLOG_FULL: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.AUTHORIZATION_PENDING: 400,
    ErrorCode.SLOW_DOWN: 400,
    ErrorCode.ACCESS_DENIED: 400,
    ErrorCode.EXPIRED_TOKEN: 400,
    ErrorCode.INVALID_GRANT: 400,
}


class Problem(BaseModel):
    """The body of every error answer, `application/problem+json` (RFC 9457).

    `detail` says what happened and to what, `next` what the reader can do about it.
    """

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    code: ErrorCode | str
    detail: str
    next: str | None = None
    request_id: str | None = None


class CloseCode(IntEnum):
    """Why a link was closed. 4000-4999 is the range for applications (RFC 6455 §7.4.2)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    RESTART = 1012
    BAD_FRAME = 4400
    UNAUTHORIZED = 4401
    REVOKED = 4403
    HEARTBEAT_MISSED = 4408
    SUPERSEDED = 4409
    TOO_LARGE = 4413
    UPGRADE_NEEDED = 4426
    SLOW_DOWN = 4429


#: After these the daemon stays up, says so, and tries again only every five minutes.
FATAL_CLOSE_CODES: Final = frozenset(
    {CloseCode.UNAUTHORIZED, CloseCode.REVOKED, CloseCode.UPGRADE_NEEDED}
)


class ProtocolError(Exception):
    """The peer broke the protocol; the link closes with `close_code`."""

    def __init__(self, message: str, close_code: CloseCode = CloseCode.BAD_FRAME) -> None:
        super().__init__(message)
        self.close_code = close_code
