"""Who is it: tokens, cookies and machine keys to people and hosts.

What was found is remembered for a few seconds, so that a busy client does not cost a query per
request; whatever ends a login or a token here empties that memory at once.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from cloudagent_backend.config import Settings
from cloudagent_backend.store import hosts, keys, tokens, users
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import User

_ALGORITHM: Final = "HS256"
_REMEMBERED_S: Final = 5.0
_MAX_REMEMBERED: Final = 4_096


@dataclass(frozen=True)
class Principal:
    """The person behind a request."""

    user: User
    #: Of a login (cookie or access token); null for a personal access token.
    login_id: str | None = None

    @property
    def user_id(self) -> UserId:
        return self.user.id

    @property
    def name(self) -> str:
        return self.user.name


class Authenticator:
    def __init__(self, database: Database, settings: Settings, secret: bytes) -> None:
        self._database = database
        self._settings = settings
        self._secret = secret
        self.ages = users.Ages(
            settings.login_idle_s * 1_000_000, settings.login_absolute_s * 1_000_000
        )
        self._remembered: dict[bytes, tuple[Principal, float]] = {}

    def access_token(self, user_id: UserId, login_id: str) -> str:
        """A JWT for this login; it is over when the login is."""
        now = datetime.now(UTC)
        claims: dict[str, Any] = {
            "sub": user_id,
            "sid": login_id,
            "iat": now,
            "exp": now + timedelta(seconds=self._settings.access_token_s),
        }
        return jwt.encode(claims, self._secret, _ALGORITHM)

    async def bearer(self, token: str) -> Principal | None:
        """The owner of a personal access token or an access token."""
        if token.startswith(keys.PERSONAL):
            if not keys.well_formed(keys.PERSONAL, token):
                return None
            return await self._remember(token, self._by_personal_token)
        login_id = self._login_of(token)
        return await self._remember(login_id, self._by_login) if login_id else None

    async def session(self, cookie: str) -> Principal | None:
        """The owner of a page session."""
        return await self._remember(cookie, self._by_session)

    async def machine(self, key: str) -> HostRow | None:
        """The host of a machine key; one with a wrong checksum costs no query."""
        if not keys.well_formed(keys.MACHINE, key):
            return None
        return await self._database.read(lambda c: hosts.by_key(c, key))

    async def was_revoked(self, key: str) -> bool:
        """Whether it is the key of a host that was removed."""
        if not keys.well_formed(keys.MACHINE, key):
            return False
        host = await self._database.read(lambda c: hosts.by_former_key(c, key))
        return host is not None and host.deleted_us is not None

    def forget(self) -> None:
        """Something was revoked: ask the store again for everybody."""
        # Another one: what is being looked up right now is remembered where nobody looks.
        self._remembered = {}

    async def _remember(
        self, secret: str, find: Callable[[str], Awaitable[Principal | None]]
    ) -> Principal | None:
        now = time.monotonic()
        name = keys.digest(secret)
        remembered = self._remembered
        known = remembered.get(name)
        if known and known[1] > now:
            return known[0]
        found = await find(secret)
        if found is not None:
            if len(remembered) >= _MAX_REMEMBERED:
                remembered.clear()
            remembered[name] = (found, now + _REMEMBERED_S)
        return found

    def _login_of(self, token: str) -> str | None:
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={"require": ["sub", "sid", "exp"]},
            )
        except jwt.InvalidTokenError:
            return None
        return str(claims["sid"])

    async def _by_personal_token(self, token: str) -> Principal | None:
        use = await self._database.read(lambda c: tokens.by_raw(c, token))
        if use is None:
            return None
        if use.stale:
            await self._database.write(lambda c: tokens.used(c, use.token_id))
        return Principal(use.user)

    async def _by_login(self, login_id: str) -> Principal | None:
        login = await self._database.read(lambda c: users.login(c, login_id, self.ages))
        return await self._in_use(login)

    async def _by_session(self, cookie: str) -> Principal | None:
        login = await self._database.read(lambda c: users.login_by_session(c, cookie, self.ages))
        return await self._in_use(login)

    async def _in_use(self, login: users.Login | None) -> Principal | None:
        if login is None:
            return None
        if login.stale:
            await self._database.write(lambda c: users.seen(c, login.id))
        return Principal(login.user, login.id)
