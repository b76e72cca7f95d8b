"""Makes and removes the host of one job, over HTTP with the machine key (protocol.md §8)."""

import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import httpx2
from pydantic import ValidationError

from cloudagent_daemon.link.http import client, why_no_answer
from cloudagent_daemon.link.transport import KeyRejectedError, LinkError, UnreachableError
from cloudagent_daemon.link.way import Way
from cloudagent_protocol.resources import EphemeralHost, EphemeralHostCreate
from cloudagent_protocol.version import DISTRIBUTION

_MAKE: Final = "/v1/daemon/ephemeral-hosts"
_OWN: Final = "/v1/daemon/host"


class RefusedError(LinkError):
    """The backend understands and will not: there is no such agent."""

    def __init__(self, why: str, next_step: str) -> None:
        super().__init__(why)
        self.next_step = next_step


@dataclass(frozen=True)
class Backend:
    """Where jobs' hosts are made.

    `ready` returns when the way is open, or raises UnreachableError.
    """

    way: Way
    ready: Callable[[], Awaitable[None]] | None = None

    @property
    def server_url(self) -> str:
        return self.way.server_url

    async def make(self, machine_key: str, hostname: str, agent: str | None) -> EphemeralHost:
        """A host for one message, which serves `agent` (its id or name) or all of the key's.

        Raises:
            KeyRejectedError: the key opens nothing there.
            RefusedError: see there.
            UnreachableError: no answer that could be used; it may be tried again.
        """
        body = EphemeralHostCreate(
            name=_name(hostname),
            hostname=hostname[:255],
            os=platform.system().lower()[:50],
            daemon_version=DISTRIBUTION,
            agent=agent,
        )
        answer = await self._ask("POST", _MAKE, machine_key, body.model_dump(mode="json"))
        try:
            if answer.status_code == 201:
                return EphemeralHost.model_validate_json(answer.content)
        except ValidationError as error:
            raise UnreachableError(f"{self.server_url} answers what we do not know") from error
        raise self._unusable(answer)

    async def remove(self, host_key: str) -> None:
        """Removes the host whose key it is; one that is gone already is fine.

        Raises:
            UnreachableError: it could not be done.
        """
        answer = await self._ask("DELETE", _OWN, host_key)
        if answer.status_code not in (204, 401):
            raise self._unusable(answer)

    async def _ask(
        self, method: str, path: str, key: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        if self.ready:
            await self.ready()
        headers = {"Authorization": f"Bearer {key}"}
        try:
            async with client(self.way) as http:
                return await http.request(method, path, json=body, headers=headers)
        except (httpx2.HTTPError, OSError) as error:
            why = why_no_answer(error, self.way)
            raise UnreachableError(f"{self.server_url} cannot be reached: {why}") from error

    def _unusable(self, answer: httpx2.Response) -> LinkError:
        problem = _problem(answer)
        status = f"{answer.status_code} {answer.reason_phrase}".strip()
        if problem is None:
            kind = answer.headers.get("content-type", "no type")
            return UnreachableError(f"{self.server_url} answers {status} with {kind}")
        detail, next_step = problem
        if answer.status_code in (401, 403):
            return KeyRejectedError(f"{status}: {detail}")
        if 400 <= answer.status_code < 500 and answer.status_code != 429:
            return RefusedError(f"{status}: {detail}", next_step)
        return UnreachableError(f"{self.server_url} answers {status}: {detail}")


def _name(hostname: str) -> str:
    shown = "".join(c for c in hostname if c.isprintable()).strip()
    return shown[:100] or "job"


def _problem(answer: httpx2.Response) -> tuple[str, str] | None:
    """Detail and next step of a problem (RFC 9457); None if the answer is none."""
    try:
        body: Any = answer.json()
    except ValueError:
        return None
    if not isinstance(body, dict) or "detail" not in body:
        return None
    told = cast("dict[str, Any]", body)
    return str(told["detail"]), str(told.get("next") or "")
