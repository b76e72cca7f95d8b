"""People: their accounts, their logins, and the one-time links that let them in."""

import secrets
import sqlite3
from dataclasses import dataclass
from typing import Final, Literal

from cloudagent_backend.store import clock, keys
from cloudagent_protocol.ids import UserId, new_user_id
from cloudagent_protocol.resources import User

_USER: Final = "SELECT id, email, name, is_admin, created_us FROM users"
_LOGIN: Final = (
    "SELECT l.id AS login_id, l.seen_us, l.created_us AS login_us, u.* FROM logins l"
    " JOIN users u ON u.id = l.user_id"
)
#: A client that lost the answer to a refresh may ask once more within this time.
REUSE_GRACE_US: Final = 10_000_000
#: A login's last use is written down at most this often.
SEEN_STEP_US: Final = 60_000_000


class EmailTakenError(Exception):
    """There is an account with this address already."""


@dataclass(frozen=True)
class Login:
    id: str
    user: User
    #: Whether its last use is so long ago that `seen` should be called.
    stale: bool


@dataclass(frozen=True)
class LoginSecrets:
    """What a new login hands out; only hashes of them are kept."""

    login_id: str
    session: str
    refresh: str


@dataclass(frozen=True)
class Ages:
    """How long a login lives without use, and at most."""

    idle_us: int
    absolute_us: int


def server_secret(c: sqlite3.Connection, name: str) -> bytes:
    """A secret of the server's own, made when it is first asked for."""
    c.execute(
        "INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (name, secrets.token_bytes(32)),
    )
    value: bytes = c.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()[0]
    return value


# --- accounts -------------------------------------------------------------------------


def _user(row: sqlite3.Row) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        name=row["name"],
        is_admin=bool(row["is_admin"]),
        created_at=clock.at(row["created_us"]),
    )


def create(
    c: sqlite3.Connection,
    email: str,
    *,
    name: str | None = None,
    password_hash: str | None = None,
    is_admin: bool = False,
) -> User:
    """A new account.

    Raises:
        EmailTakenError: see there.
    """
    email = email.lower()
    if by_email(c, email):
        raise EmailTakenError(email)
    user_id = new_user_id()
    c.execute(
        "INSERT INTO users (id, email, name, password_hash, is_admin, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            user_id,
            email,
            name or email.partition("@")[0],
            password_hash,
            is_admin,
            clock.now_us(),
        ),
    )
    user = load(c, user_id)
    assert user is not None
    return user


def load(c: sqlite3.Connection, user_id: UserId) -> User | None:
    row = c.execute(f"{_USER} WHERE id = ?", (user_id,)).fetchone()
    return _user(row) if row else None


def by_email(c: sqlite3.Connection, email: str) -> User | None:
    row = c.execute(f"{_USER} WHERE email = ?", (email.lower(),)).fetchone()
    return _user(row) if row else None


def password_hash(c: sqlite3.Connection, email: str) -> str | None:
    """Null where there is no such account, or it has no password."""
    row = c.execute("SELECT password_hash FROM users WHERE email = ?", (email.lower(),)).fetchone()
    return row[0] if row else None


def any_user(c: sqlite3.Connection) -> bool:
    return c.execute("SELECT 1 FROM users LIMIT 1").fetchone() is not None


# --- logins ---------------------------------------------------------------------------


def log_in(c: sqlite3.Connection, user_id: UserId) -> LoginSecrets:
    made = LoginSecrets(secrets.token_hex(16), keys.new_secret(), keys.new_key(keys.RENEWAL))
    now = clock.now_us()
    c.execute(
        "INSERT INTO logins (id, user_id, session_hash, created_us, seen_us) VALUES (?, ?, ?, ?, ?)",
        (made.login_id, user_id, keys.digest(made.session), now, now),
    )
    _keep_refresh(c, made.login_id, made.refresh)
    return made


def log_out(c: sqlite3.Connection, login_id: str) -> None:
    """End the login: its cookie, its refresh tokens and its access tokens."""
    c.execute("DELETE FROM logins WHERE id = ?", (login_id,))


def login(c: sqlite3.Connection, login_id: str, ages: Ages) -> Login | None:
    """The login with this id, unless it has ended or grown too old."""
    return _alive(c.execute(f"{_LOGIN} WHERE l.id = ?", (login_id,)).fetchone(), ages)


def login_by_session(c: sqlite3.Connection, session: str, ages: Ages) -> Login | None:
    found = c.execute(f"{_LOGIN} WHERE l.session_hash = ?", (keys.digest(session),))
    return _alive(found.fetchone(), ages)


def _alive(row: sqlite3.Row | None, ages: Ages) -> Login | None:
    now = clock.now_us()
    if row is None or row["seen_us"] + ages.idle_us <= now:
        return None
    if row["login_us"] + ages.absolute_us <= now:
        return None
    return Login(row["login_id"], _user(row), stale=row["seen_us"] < now - SEEN_STEP_US)


def seen(c: sqlite3.Connection, login_id: str) -> None:
    now = clock.now_us()
    c.execute("UPDATE logins SET seen_us = ? WHERE id = ?", (now, login_id))


def refresh(c: sqlite3.Connection, token: str, ages: Ages) -> tuple[Login, str] | None:
    """Take a refresh token for a new one; null if it is none, or was used before.

    A token that comes a second time was stolen from one of the two who showed it: the login ends.
    """
    row = c.execute(
        "SELECT login_id, used_us FROM refresh_tokens WHERE hash = ?", (keys.digest(token),)
    ).fetchone()
    if row is None:
        return None
    now = clock.now_us()
    if row["used_us"] is not None and row["used_us"] < now - REUSE_GRACE_US:
        log_out(c, row["login_id"])
        return None
    found = login(c, row["login_id"], ages)
    if found is None:
        return None
    c.execute(
        "UPDATE refresh_tokens SET used_us = coalesce(used_us, ?) WHERE hash = ?",
        (now, keys.digest(token)),
    )
    seen(c, found.id)
    fresh = keys.new_key(keys.RENEWAL)
    _keep_refresh(c, found.id, fresh)
    return found, fresh


def _keep_refresh(c: sqlite3.Connection, login_id: str, token: str) -> None:
    c.execute(
        "INSERT INTO refresh_tokens (hash, login_id) VALUES (?, ?)", (keys.digest(token), login_id)
    )


def forget_old_logins(c: sqlite3.Connection, ages: Ages) -> None:
    now = clock.now_us()
    c.execute(
        "DELETE FROM logins WHERE seen_us <= ? OR created_us <= ?",
        (now - ages.idle_us, now - ages.absolute_us),
    )


# --- one-time links ---------------------------------------------------------------------


def new_link(
    c: sqlite3.Connection, kind: Literal["setup", "page"], user_id: UserId | None, life_s: int
) -> str:
    """The key of a link that works once, within its time. A new set-up link replaces the last."""
    if kind == "setup":
        c.execute("DELETE FROM one_time_links WHERE kind = 'setup'")
    c.execute("DELETE FROM one_time_links WHERE expires_us < ?", (clock.now_us(),))
    key = keys.new_secret()
    c.execute(
        "INSERT INTO one_time_links (hash, kind, user_id, expires_us) VALUES (?, ?, ?, ?)",
        (keys.digest(key), kind, user_id, clock.now_us() + life_s * 1_000_000),
    )
    return key


def link_is_open(c: sqlite3.Connection, kind: Literal["setup", "page"], key: str) -> bool:
    found = c.execute(
        "SELECT 1 FROM one_time_links WHERE hash = ? AND kind = ? AND expires_us > ?",
        (keys.digest(key), kind, clock.now_us()),
    )
    return found.fetchone() is not None


def use_link(c: sqlite3.Connection, kind: Literal["setup", "page"], key: str) -> sqlite3.Row | None:
    """The link's row (`user_id`), which is gone now; null if there is no such link any more."""
    row: sqlite3.Row | None = c.execute(
        "DELETE FROM one_time_links WHERE hash = ? AND kind = ? AND expires_us > ?"
        " RETURNING user_id",
        (keys.digest(key), kind, clock.now_us()),
    ).fetchone()
    return row
