"""The spool's file: how it is made and brought up to date, and what becomes of one that is of no use."""

import json
import sqlite3
from pathlib import Path
from typing import Any, Final, cast

from cloudagent_daemon.aside import set_aside
from cloudagent_daemon.link import asked, lanes
from cloudagent_daemon.link.committer import SpoolError

_SCHEMA = """
CREATE TABLE link (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    host_id TEXT,                         -- the host whose memory this is; NULL if not known
    epoch TEXT,
    accepted INTEGER NOT NULL DEFAULT 0,  -- the backend's last frame that is here
    acked INTEGER NOT NULL DEFAULT 0,     -- our last frame that is there
    last INTEGER NOT NULL DEFAULT 0,      -- our last frame
    changes INTEGER NOT NULL DEFAULT 0    -- counts what happened to the inbox from outside
) STRICT;
INSERT INTO link (one) VALUES (1);
CREATE TABLE inbox (
    id TEXT PRIMARY KEY,
    delivery_seq INTEGER NOT NULL,
    changed INTEGER NOT NULL,             -- link.changes, when the backend last had a say in it
    frame TEXT NOT NULL,                  -- Deliver; emptied at the end
    attempts INTEGER NOT NULL DEFAULT 0,
    interrupted_by TEXT,
    finished_at REAL,                     -- Unix seconds
    ending TEXT                           -- the report that ended it; NULL if it was dropped
) STRICT;
CREATE INDEX inbox_open ON inbox (changed) WHERE ending IS NULL;
CREATE INDEX inbox_finished ON inbox (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE outbox (seq INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE launches (
    launch_id TEXT PRIMARY KEY,
    delivery_id TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at REAL NOT NULL
) STRICT;
CREATE INDEX launches_delivery ON launches (delivery_id);
CREATE TABLE handled_before (message_id TEXT PRIMARY KEY) STRICT;
"""
_SAID = """
CREATE TABLE said (
    number INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL UNIQUE,
    agent_id TEXT NOT NULL,
    caused_by TEXT,                       -- the message that its run worked on
    body TEXT NOT NULL                    -- Send
) STRICT;
CREATE INDEX said_of ON said (caused_by, agent_id);
"""
_ENDED: Final = "ALTER TABLE inbox ADD COLUMN ended_by TEXT;"
#: The delivery whose turn it was put into, and which has left because people are asked in it.
_RIDES: Final = "ALTER TABLE inbox ADD COLUMN rides_with TEXT;"
#: Step n brings a spool from version n to n + 1; a step is never edited.
_MIGRATIONS: Final = (_SCHEMA, _SAID, asked.SCHEMA, lanes.SCHEMA, _ENDED, _RIDES)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


class NewerSpoolError(Exception):
    """A newer daemon has written this file; an older one must not touch it."""


def connect(path: Path | None, host_id: str | None = None) -> tuple[sqlite3.Connection, str | None]:
    """The spool in `path` (None: in memory), and a note if the file that was there is of no use.

    One that is unreadable is set aside as `state.db.corrupt-<time>`. So is one of another host: what
    it would say is about agents that this host may not speak for. Nothing is overwritten.

    Raises:
        NewerSpoolError: its schema is newer than this daemon.
        SpoolError: it cannot be opened: rights, a full disk, a lock.
    """
    if path is None:
        return _open(":memory:"), None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    note: str | None = None
    if path.exists() and not path.stat().st_size:
        # For SQLite a new file, with which it would throw away the log of changes beside it.
        note = f"{path.name} was empty; set aside as {_set_aside(path, 'corrupt')}"
    try:
        connection = _open(str(path))
    except sqlite3.OperationalError as error:
        raise SpoolError(f"{path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        note = f"{path.name} was unreadable ({error}); set aside as {_set_aside(path, 'corrupt')}"
        connection = _open(str(path))
    if host_id is not None and (owner := _owner(connection, host_id)) != host_id:
        connection.close()
        note = f"{path.name} was that of {owner}; set aside as {_set_aside(path, owner)}"
        connection = _open(str(path))
        _owner(connection, host_id)
    return connection, note


def _set_aside(path: Path, why: str) -> str:
    return set_aside(path, why, tails=("", "-wal", "-shm")).name


def _owner(connection: sqlite3.Connection, host_id: str) -> str:
    """The host whose memory it is: this one, if it was nobody's yet."""
    [(owner,)] = connection.execute("SELECT host_id FROM link").fetchall()
    if owner is None:
        connection.execute("UPDATE link SET host_id = ?", (host_id,))
    return owner or host_id


def _open(name: str) -> sqlite3.Connection:
    # The committer uses it from one thread at a time, but not always the same one.
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _check(connection)
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    if name != ":memory:":
        Path(name).chmod(0o600)
    return connection


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise NewerSpoolError(
            f"state.db has schema {version}; this daemon knows {SCHEMA_VERSION}. Update the daemon."
        )
    for number, step in enumerate(_MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT")


def import_old_state(connection: sqlite3.Connection, path: Path) -> int:
    """Takes over which messages a daemon before 0.3 had handled; returns how many.

    Its `last_seq` counted another history, so it is not taken over. The file is renamed, so that
    this happens once.
    """
    raw: Any = json.loads(path.read_text("utf-8"))
    lists = [cast("list[Any]", value) for value in raw.values() if isinstance(value, list)]
    ids = {item for values in lists for item in values if isinstance(item, str)}
    with connection:
        connection.executemany(
            "INSERT OR IGNORE INTO handled_before VALUES (?)", [(item,) for item in sorted(ids)]
        )
    path.rename(path.with_name(f"{path.name}.imported"))
    return len(ids)
