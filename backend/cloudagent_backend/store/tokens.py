"""Personal access tokens: for scripts, until they are revoked."""

import sqlite3
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.store import clock, keys, users
from cloudagent_protocol.ids import TokenId, UserId, new_token_id
from cloudagent_protocol.resources import Token, User

#: A token's last use is written down at most this often.
_USED_STEP_US: Final = 60_000_000


@dataclass(frozen=True)
class TokenUse:
    token_id: TokenId
    user: User
    #: Whether its last use is so long ago that `used` should be called.
    stale: bool


def _resource(row: sqlite3.Row) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        last_four=row["last_four"],
        created_at=clock.at(row["created_us"]),
        last_used_at=clock.at_or_none(row["last_used_us"]),
    )


def create(c: sqlite3.Connection, user_id: UserId, name: str) -> Token:
    """A new token, with `raw_token`: the only time it can be seen."""
    raw, token_id, now = keys.new_key(keys.PERSONAL), new_token_id(), clock.now_us()
    c.execute(
        "INSERT INTO tokens (id, user_id, name, hash, last_four, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (token_id, user_id, name, keys.digest(raw), raw[-4:], now),
    )
    return Token(
        id=token_id, name=name, last_four=raw[-4:], created_at=clock.at(now), raw_token=raw
    )


def page(c: sqlite3.Connection, user_id: UserId, *, limit: int, after: str) -> list[Token]:
    rows = c.execute(
        "SELECT * FROM tokens WHERE user_id = ? AND id > ? ORDER BY id LIMIT ?",
        (user_id, after, limit),
    )
    return [_resource(row) for row in rows]


def delete(c: sqlite3.Connection, user_id: UserId, token_id: TokenId) -> bool:
    """Revoke it; false if the user has no such token."""
    done = c.execute("DELETE FROM tokens WHERE id = ? AND user_id = ?", (token_id, user_id))
    return done.rowcount == 1


def keep_newest(c: sqlite3.Connection, user_id: UserId, name: str, number: int) -> None:
    """Revoke the tokens of this name, but for the newest ones."""
    c.execute(
        "DELETE FROM tokens WHERE user_id = :user AND name = :name AND id NOT IN"
        " (SELECT id FROM tokens WHERE user_id = :user AND name = :name"
        " ORDER BY id DESC LIMIT :number)",
        {"user": user_id, "name": name, "number": number},
    )


def by_raw(c: sqlite3.Connection, raw: str) -> TokenUse | None:
    row = c.execute("SELECT * FROM tokens WHERE hash = ?", (keys.digest(raw),)).fetchone()
    if row is None or (user := users.load(c, row["user_id"])) is None:
        return None
    stale = (row["last_used_us"] or 0) < clock.now_us() - _USED_STEP_US
    return TokenUse(row["id"], user, stale)


def used(c: sqlite3.Connection, token_id: TokenId) -> None:
    c.execute("UPDATE tokens SET last_used_us = ? WHERE id = ?", (clock.now_us(), token_id))
