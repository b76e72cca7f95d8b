"""What can go wrong for a caller of the client.

CloudAgentError
├── ConfigurationError          a setting or a file of ours cannot be used
│   └── NotLoggedInError        no server or token is known
├── OccupiedError               somebody else has what we need: a port, a profile
├── ConnectionFailedError       the server was not reached, or broke off, as often as we tried
├── UnexpectedAnswerError       something answered that does not speak this API
├── WaitTimeoutError            the time given for a turn is over; the turn itself goes on
├── AmbiguousNameError          more than one agent is called that
└── APIError                    the server refused (RFC 9457): status, code, next step
    ├── InvalidRequestError     400, 405, 413, 422
    ├── AuthenticationError     401
    ├── PermissionDeniedError   403
    ├── NotFoundError           404, also what belongs to somebody else
    ├── ConflictError           409
    ├── RateLimitedError        429
    └── ServerError             5xx
"""

from typing import Final

from cloudagent_protocol.errors import ErrorCode, Problem


class CloudAgentError(Exception):
    """Something failed; `why` holds the value seen, `next_step` what the reader can do."""

    def __init__(self, message: str, *, why: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.why = why
        self.next_step = next_step


class ConfigurationError(CloudAgentError):
    """A setting, or a file of ours, cannot be used."""


class NotLoggedInError(ConfigurationError):
    """The client does not know where to go, or as whom."""


class OccupiedError(CloudAgentError):
    """Somebody else has what we need, and we do not take it away."""


class ConnectionFailedError(CloudAgentError):
    """The server could not be reached, or the connection broke, after all retries."""


class UnexpectedAnswerError(CloudAgentError):
    """The answer is none of this API: another program, or a proxy between."""


class WaitTimeoutError(CloudAgentError):
    """The turn is not over yet; it goes on, and may be waited for again."""


class AmbiguousNameError(CloudAgentError):
    """A name that several agents have; their ids tell them apart."""


class APIError(CloudAgentError):
    """The server's refusal. Branch on the class or on `code`, never on the text."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(problem.detail or problem.title, next_step=problem.next or "")
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.request_id = problem.request_id
        #: What `Retry-After` asked for, in seconds.
        self.retry_after_s = retry_after_s
        self.why = f"{problem.status} {problem.code}" + (
            f", request {problem.request_id}" if problem.request_id else ""
        )


class InvalidRequestError(APIError):
    """The request does not fit; the same request will never do."""


class AuthenticationError(APIError):
    """The token is missing, unknown or no longer valid."""


class PermissionDeniedError(APIError):
    """Known, but not allowed to do this."""


class NotFoundError(APIError):
    """There is no such thing, or it belongs to somebody else."""


class ConflictError(APIError):
    """Something else is in the way: a name, a state, a request with the same key."""


class RateLimitedError(APIError):
    """Too much at once, or a host's backlog is full."""


class ServerError(APIError):
    """The server failed, and went on failing as often as we tried."""


_BY_STATUS: Final[dict[int, type[APIError]]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: InvalidRequestError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}


def refusal(problem: Problem, retry_after_s: float | None = None) -> APIError:
    """The error that stands for a problem."""
    default = ServerError if problem.status >= 500 else APIError
    return _BY_STATUS.get(problem.status, default)(problem, retry_after_s)


def not_found(detail: str, next_step: str) -> NotFoundError:
    """The same error for what we looked up ourselves, such as an agent's name."""
    return NotFoundError(
        Problem(
            title="Not found",
            status=404,
            code=ErrorCode.NOT_FOUND,
            detail=detail,
            next=next_step,
        )
    )
