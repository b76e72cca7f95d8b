"""One request until it is answered: what to try again, when, and what the answer means. No I/O."""

import contextlib
import email.utils
import random
import socket
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import httpx2
from pydantic import ValidationError

from cloudagent.calls import Call
from cloudagent.config import Settings
from cloudagent.errors import ConnectionFailedError, UnexpectedAnswerError, refusal
from cloudagent_protocol.errors import Problem
from cloudagent_protocol.version import DISTRIBUTION

T = TypeVar("T")

_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
#: Waiting longer than this is the caller's decision, not ours.
MAX_RETRY_AFTER_S: Final = 60.0
_RANDOM: Final = random.SystemRandom()


def jitter(attempt: int, base_s: float = 0.5, cap_s: float = 8.0) -> float:
    """Full jitter: anything from now to a bound that doubles with each attempt (from 0)."""
    return _RANDOM.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 16)))


def retry_after_s(response: httpx2.Response) -> float | None:
    """What `Retry-After` asks for: seconds, or a date (RFC 9110 §10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


class Attempts:
    """The tries of one request. Both verbs answer with the seconds to wait before the next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed = 0

    def refused(self, response: httpx2.Response) -> float:
        """An answer that is no success, with its body read.

        Raises:
            APIError: trying again would not help, or not any more.
            UnexpectedAnswerError: it is not an answer of this API.
        """
        wanted = retry_after_s(response)
        # A 409 with Retry-After means that the first try of this very request still runs.
        again = response.status_code in _RETRIED or (
            response.status_code == 409 and wanted is not None
        )
        if not again or self._used_up() or (wanted or 0) > MAX_RETRY_AFTER_S:
            raise refusal(problem_of(response), wanted)
        return max(wanted or 0.0, self._pause())

    def broken(self, error: httpx2.TransportError) -> float:
        """No answer at all.

        Raises:
            ConnectionFailedError: that was the last try.
        """
        if self._used_up():
            raise unreachable(self._settings.url, error) from error
        return self._pause()

    def _used_up(self) -> bool:
        return self._failed >= self._settings.max_retries

    def _pause(self) -> float:
        self._failed += 1
        return jitter(self._failed - 1)


def unreachable(url: str, error: Exception) -> ConnectionFailedError:
    return ConnectionFailedError(
        f"cannot reach {url}",
        why=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        next_step="cloudagent up   (or check CLOUDAGENT_URL)",
    )


def read_answer(call: Call[T], response: httpx2.Response) -> T:
    """The value of a successful answer.

    Raises:
        UnexpectedAnswerError: the body is not what this call answers with.
    """
    try:
        return call.read(response.content)
    except ValidationError as error:
        raise _unexpected(response, f"{error.error_count()} fields do not fit") from error


def problem_of(response: httpx2.Response) -> Problem:
    """The problem that an error answer holds, or one made from its status.

    Raises:
        UnexpectedAnswerError: it is not an error at all, such as a redirect of a proxy.
    """
    if response.status_code < 400:
        raise _unexpected(response, f"status {response.status_code}")
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        text = response.text.strip().splitlines()
        return Problem(
            title=response.reason_phrase,
            status=response.status_code,
            code="unknown",
            detail=text[0][:200] if text else f"{response.status_code} {response.reason_phrase}",
        )


def _unexpected(response: httpx2.Response, why: str) -> UnexpectedAnswerError:
    kind = response.headers.get("Content-Type", "no content type")
    return UnexpectedAnswerError(
        f"{response.request.url} did not answer like a CloudAgent server",
        why=f"{why} ({kind})",
        next_step="check CLOUDAGENT_URL",
    )


def url_of(settings: Settings, path: str) -> str:
    return settings.url + path


def client_options(settings: Settings) -> dict[str, Any]:
    """How both clients open their connections."""
    # A proxy from the environment would be asked for 127.0.0.1 and look at the wrong machine.
    return {
        "timeout": settings.timeout_s,
        "trust_env": not is_loopback(settings.url),
        "headers": {"User-Agent": f"cloudagent-python/{DISTRIBUTION}"},
    }


def is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
    return host in {"localhost", "::1"} or host.startswith("127.")


def shut_connection(response: httpx2.Response) -> None:
    """End the connection under a response, so that a read that waits for it ends too."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    with contextlib.suppress(OSError):
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)
