"""A person's event log: numbered lines, appended in the transaction of the change they tell of."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from cloudagent_backend.store import clock
from cloudagent_backend.store.text import json_text
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import EventType

#: Lines looked at in one trimming step; keeps its transaction short.
_TRIM_STEP: Final = 1_000
#: One statement for each line: its number follows the newest one's, or, in a log that was trimmed
#: to nothing, the newest that was there.
_APPEND: Final = (
    "INSERT INTO events (user_id, id, type, at_us, data) VALUES (?1, 1 + coalesce("
    "(SELECT max(id) FROM events WHERE user_id = ?1),"
    " (SELECT trimmed FROM event_logs WHERE user_id = ?1), 0), ?2, ?3, ?4)"
)
_EXTENT: Final = (
    "SELECT (SELECT max(id) FROM events WHERE user_id = ?1),"
    " (SELECT trimmed FROM event_logs WHERE user_id = ?1)"
)


@dataclass(frozen=True)
class EventRow:
    """One line; `data` is JSON text."""

    id: int
    type: str
    at_us: int
    data: str

    @property
    def json(self) -> str:
        """The line as the API shows it: `Event` in resources.py."""
        at = clock.rfc3339(self.at_us)
        return f'{{"id":{self.id},"type":"{self.type}","at":"{at}","data":{self.data}}}'


@dataclass(frozen=True)
class Extent:
    """Which lines of a log exist: those above `trimmed`, up to `last`."""

    last: int
    trimmed: int


def append(
    c: sqlite3.Connection, user_id: UserId, event: EventType, data: BaseModel | dict[str, Any] | str
) -> None:
    """Add a line (`data` as text is JSON already).

    Followers are woken by `Fanout.notify` after the commit.
    """
    text = data if isinstance(data, str) else json_text(data)
    c.execute(_APPEND, (user_id, event.value, clock.now_us(), text))


def append_all(
    c: sqlite3.Connection, event: EventType, lines: Iterable[tuple[UserId, str]]
) -> None:
    """As `append`, of JSON texts, in their order."""
    at_us = clock.now_us()
    c.executemany(_APPEND, [(user_id, event.value, at_us, text) for user_id, text in lines])


def extent(c: sqlite3.Connection, user_id: UserId) -> Extent:
    [(last, trimmed)] = c.execute(_EXTENT, (user_id,)).fetchall()
    return Extent(last or trimmed or 0, trimmed or 0)


def after(c: sqlite3.Connection, user_id: UserId, cursor: int, limit: int) -> list[EventRow]:
    """The lines after `cursor`, oldest first."""
    rows = c.execute(
        "SELECT id, type, at_us, data FROM events WHERE user_id = ? AND id > ? ORDER BY id LIMIT ?",
        (user_id, cursor, limit),
    )
    return [EventRow(*row) for row in rows]


def users(c: sqlite3.Connection) -> list[UserId]:
    """Everybody who may have a log."""
    return [user_id for (user_id,) in c.execute("SELECT id FROM users")]


def trim(c: sqlite3.Connection, user_id: UserId, *, keep: int, before_us: int) -> bool:
    """Forget some of the oldest lines: those older than `before_us`, and all but the last `keep`.

    Returns whether there may be more to forget; a step is bounded.
    """
    end = extent(c, user_id)
    oldest = c.execute(
        "SELECT id FROM events WHERE user_id = ?1 AND id <= ?2 AND (at_us < ?3 OR id <= ?4)"
        " ORDER BY id LIMIT ?5",
        (user_id, end.trimmed + _TRIM_STEP, before_us, end.last - keep, _TRIM_STEP),
    ).fetchall()
    if not oldest:
        return False
    newest = oldest[-1][0]
    c.execute("DELETE FROM events WHERE user_id = ? AND id <= ?", (user_id, newest))
    c.execute(
        "INSERT INTO event_logs (user_id, trimmed) VALUES (?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET trimmed = excluded.trimmed",
        (user_id, newest),
    )
    return len(oldest) == _TRIM_STEP
