"""Answers to requests that carried an `Idempotency-Key`, kept for a day."""

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.store import clock
from cloudagent_protocol.ids import UserId

KEPT_US: Final = 86_400_000_000


@dataclass(frozen=True)
class Answer:
    #: SHA-256 of the request's method, path and body.
    request_hash: bytes
    status: int
    #: JSON; null where the answer held a secret, which is not kept.
    body: str | None


def find(c: sqlite3.Connection, user_id: UserId, key: str) -> Answer | None:
    row = c.execute(
        "SELECT request_hash, status, body FROM idempotency"
        " WHERE user_id = ? AND key_hash = ? AND created_us > ?",
        (user_id, _hash(key), clock.now_us() - KEPT_US),
    ).fetchone()
    return Answer(row["request_hash"], row["status"], row["body"]) if row else None


def keep(c: sqlite3.Connection, user_id: UserId, key: str, answer: Answer) -> None:
    """Remember the answer, in the transaction of what it answers."""
    c.execute(
        "REPLACE INTO idempotency (user_id, key_hash, request_hash, status, body, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (user_id, _hash(key), answer.request_hash, answer.status, answer.body, clock.now_us()),
    )


def forget_old(c: sqlite3.Connection) -> None:
    c.execute("DELETE FROM idempotency WHERE created_us <= ?", (clock.now_us() - KEPT_US,))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
