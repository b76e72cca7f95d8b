"""Passwords: argon2id, few at once, and few guesses a minute."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cloudagent_backend.api.errors import ApiError
from cloudagent_protocol.errors import ErrorCode

T = TypeVar("T")

_MINUTE_S: Final = 60.0
#: Of a password that nobody has: compared with where there is no account, to take as long.
NOBODY: Final = (
    "$argon2id$v=19$m=65536,t=3,p=4$MYWKcQU3T3qzOrlSUeSDKw$"
    "7zMebqXQraHkm9bIQ0VIngl4dvOwa0yxp+TsUA/w8Q4"
)
#: Accounts whose failures are counted; beyond it the oldest are forgotten.
_MAX_COUNTED: Final = 10_000


class Passwords:
    """A hash takes half a second of one core and 64 MiB: it is the server's most costly favour."""

    def __init__(self, *, at_once: int, failures_per_minute: int) -> None:
        self._hasher = PasswordHasher()
        self._slots = anyio.CapacityLimiter(at_once)
        self._failures_per_minute = failures_per_minute
        self._failures: dict[str, deque[float]] = {}

    async def hash(self, password: str) -> str:
        """Raises: ApiError: too many are being hashed."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, account: str, password_hash: str | None, password: str) -> bool:
        """Whether it is the account's password; the account need not exist.

        Raises:
            ApiError: too many wrong ones lately, or too many are being hashed.
        """
        failures = self._lately(account)
        if len(failures) >= self._failures_per_minute:
            raise ApiError(
                ErrorCode.RATE_LIMITED,
                "Too many failed logins of this account.",
                next="Wait a minute, then try again.",
                headers={"Retry-After": str(int(_MINUTE_S))},
            )
        # Counted before it is checked, so that guesses sent all at once count too.
        failures.append(time.monotonic())
        try:
            right = await self._run(lambda: self._matches(password_hash, password))
        except ApiError:
            failures.pop()
            raise
        if right:
            self._failures.pop(account, None)
        return right

    def _matches(self, password_hash: str | None, password: str) -> bool:
        try:
            self._hasher.verify(password_hash or NOBODY, password)
        except (VerificationError, InvalidHashError):
            return False
        return password_hash is not None

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            self._slots.acquire_on_behalf_of_nowait(work)
        except anyio.WouldBlock:
            raise ApiError(
                ErrorCode.RATE_LIMITED,
                "Too many people sign in at this moment.",
                next="Try again in a second.",
                headers={"Retry-After": "1"},
            ) from None
        try:
            return await anyio.to_thread.run_sync(work)
        finally:
            self._slots.release_on_behalf_of(work)

    def _lately(self, account: str) -> deque[float]:
        if account not in self._failures and len(self._failures) >= _MAX_COUNTED:
            del self._failures[next(iter(self._failures))]
        failures = self._failures.setdefault(account, deque())
        while failures and failures[0] < time.monotonic() - _MINUTE_S:
            failures.popleft()
        return failures
