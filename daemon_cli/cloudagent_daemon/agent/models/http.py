"""How both hosted APIs are spoken to: HTTP/2 where the server can, Server-Sent Events, typed errors."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import httpx2

from cloudagent_daemon.agent.errors import ModelError, Reason

#: A model may think for minutes before its first word; both services send pings meanwhile.
TIMEOUT: Final = httpx2.Timeout(connect=15, read=300, write=60, pool=15)
#: Characters of a service's own error text that are shown.
MAX_DETAIL_CHARS: Final = 500

_STATUS: Final[Mapping[int, Reason]] = {
    401: "authentication",
    402: "billing",
    403: "authentication",
    408: "server_error",
    409: "server_error",
    413: "context_overflow",
    429: "rate_limit",
    503: "overloaded",
    529: "overloaded",
}
#: The `type` of Anthropic's errors, the `code` or `type` of OpenAI's; finer than the status.
_TYPES: Final[Mapping[str, Reason]] = {
    "authentication_error": "authentication",
    "invalid_api_key": "authentication",
    "permission_error": "authentication",
    "billing_error": "billing",
    "insufficient_quota": "billing",
    "rate_limit_error": "rate_limit",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "server_error": "server_error",
    "timeout_error": "server_error",
    "context_length_exceeded": "context_overflow",
    "request_too_large": "context_overflow",
}


class Client:
    """A connection to one service.

    Args:
        secrets: values that no error text may show, whatever a server echoes.
    """

    def __init__(self, headers: Mapping[str, str], secrets: tuple[str, ...]) -> None:
        self._client = httpx2.AsyncClient(http2=True, timeout=TIMEOUT, headers=headers)
        self._secrets = secrets

    @asynccontextmanager
    async def events(
        self, url: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[AsyncGenerator[dict[str, Any]]]:
        """The events that the service streams in answer, each a JSON object; `[DONE]` is left out.

        Raises:
            ModelError: it cannot be reached, refuses, or the stream breaks.
        """
        # Not `json=`: that spells text as UTF-8, which a lone surrogate in an old session has not.
        content = json.dumps(body).encode()
        try:
            async with self._client.stream(
                "POST", url, content=content, headers={"content-type": "application/json"}
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._refusal(response)
                yield self._objects(response)
        except httpx2.TimeoutException as error:
            raise ModelError("connection", f"{_origin(url)} did not answer in time.") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.SSEError) as error:
            detail = self._clean(str(error)) or type(error).__name__
            raise ModelError("connection", f"{_origin(url)}: {detail}") from error

    def failure(self, said: Any, status: int | None = None) -> ModelError:
        """What the `error` of an answer or of an event means, an object by both APIs' word."""
        error = cast("dict[str, Any]", said) if isinstance(said, dict) else {"message": said}
        message = self._clean(str(error.get("message") or error.get("type") or "no reason given"))
        kinds = (error.get("code"), error.get("type"))
        known: Reason | None = next(
            (_TYPES[k] for k in kinds if isinstance(k, str) and k in _TYPES), None
        )
        # The one place that goes by a text: Anthropic's API has no type for this error.
        if message.startswith("prompt is too long"):
            known = "context_overflow"
        shown = f"{message} (HTTP {status})" if status else message
        return ModelError(known or reason_of(status), shown)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _refusal(self, response: httpx2.Response) -> ModelError:
        try:
            body: Any = response.json()
        except ValueError:
            body = None
        said = cast("dict[str, Any]", body).get("error") if isinstance(body, dict) else None
        failure = self.failure(said or response.text.strip(), response.status_code)
        wait_s = retry_after(response.headers.get("retry-after"))
        if wait_s is None:
            return failure
        detail = f"{failure} The service asks to wait {wait_s:.0f} s."
        return ModelError(failure.reason, detail, retry_after_s=wait_s)

    async def _objects(self, response: httpx2.Response) -> AsyncGenerator[dict[str, Any]]:
        async for event in httpx2.EventSource(response):
            if event.data in {"", "[DONE]"}:
                continue
            try:
                value: Any = json.loads(event.data)
            except (ValueError, RecursionError) as error:
                raise ModelError("connection", "The service streamed no JSON.") from error
            if isinstance(value, dict):
                yield cast("dict[str, Any]", value)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:MAX_DETAIL_CHARS]


def reason_of(status: int | None) -> Reason:
    """What an HTTP status means where the body says nothing finer."""
    if status is None:
        return "model_error"
    return _STATUS.get(status) or ("server_error" if status >= 500 else "invalid_request")


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number, or a date (RFC 9110 §10.2.3)."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _origin(url: str) -> str:
    parsed = httpx2.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}"
