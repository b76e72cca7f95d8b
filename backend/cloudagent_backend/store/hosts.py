"""Host machines: computers that hold a machine key."""

import hmac
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from cloudagent_backend.store import clock, keys
from cloudagent_protocol.ids import AgentId, HostId, UserId, new_host_id
from cloudagent_protocol.resources import (
    EphemeralHostCreate,
    Hold,
    HostMachine,
    HostMachineCreate,
    HostMachineWithKey,
    HostState,
    Runtime,
)

_HOLDS: Final = TypeAdapter(list[Hold])


@dataclass(frozen=True)
class HostRow:
    id: HostId
    user_id: UserId
    name: str
    hostname: str
    os: str
    daemon_version: str
    state: HostState
    last_seen_us: int | None
    #: JSON.
    runtimes: str
    key_last_four: str
    created_us: int
    deleted_us: int | None
    #: As of its last word; of one that is offline they say nothing.
    holds: list[Hold]
    #: The rest is of ephemeral hosts: whose key made it, and whose agents it serves.
    parent_id: HostId | None = None
    #: Its one agent; null: all of the parent's.
    serves: AgentId | None = None
    #: Deliveries that it may still take.
    takes: int = 0


def _row(row: sqlite3.Row) -> HostRow:
    return HostRow(
        id=row["id"],
        user_id=row["user_id"],
        name=row["name"],
        hostname=row["hostname"],
        os=row["os"],
        daemon_version=row["daemon_version"],
        state=HostState(row["state"]),
        last_seen_us=row["last_seen_us"],
        runtimes=row["runtimes"],
        key_last_four=row["key_last_four"],
        created_us=row["created_us"],
        deleted_us=row["deleted_us"],
        holds=_HOLDS.validate_json(row["holds"]),
        parent_id=row["parent_id"],
        serves=row["serves"],
        takes=row["takes"] or 0,
    )


def resource(row: HostRow) -> HostMachine:
    return HostMachine(
        id=row.id,
        name=row.name,
        hostname=row.hostname,
        os=row.os,
        daemon_version=row.daemon_version,
        state=row.state,
        last_seen_at=clock.at_or_none(row.last_seen_us),
        runtimes=[Runtime.model_validate(one) for one in json.loads(row.runtimes)],
        holds=[] if row.state is HostState.OFFLINE else row.holds,
        key_last_four=row.key_last_four,
        created_at=clock.at(row.created_us),
        parent_id=row.parent_id,
    )


def with_key(row: HostRow, raw_key: str) -> HostMachineWithKey:
    return HostMachineWithKey(**resource(row).model_dump(), raw_key=raw_key)


def create(c: sqlite3.Connection, user_id: UserId, body: HostMachineCreate) -> HostMachineWithKey:
    """A new host, with `raw_key`: the only time it can be seen."""
    raw, host_id = keys.new_key(keys.MACHINE), new_host_id()
    c.execute(
        "INSERT INTO host_machines (id, user_id, name, hostname, os, daemon_version, key_hash,"
        " key_last_four, created_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            host_id,
            user_id,
            body.name,
            body.hostname,
            body.os,
            body.daemon_version,
            keys.digest(raw),
            raw[-4:],
            clock.now_us(),
        ),
    )
    row = load(c, user_id, host_id)
    assert row is not None
    return with_key(row, raw)


def create_ephemeral(
    c: sqlite3.Connection, parent: HostRow, body: EphemeralHostCreate, serves: AgentId | None
) -> HostMachineWithKey:
    """A host of the parent's owner that lives as long as a job."""
    made = create(c, parent.user_id, body)
    c.execute(
        "UPDATE host_machines SET parent_id = ?, serves = ?, takes = ? WHERE id = ?",
        (parent.id, serves, body.takes, made.id),
    )
    return made.model_copy(update={"parent_id": parent.id})


def load(c: sqlite3.Connection, user_id: UserId, host_id: HostId) -> HostRow | None:
    row = c.execute(
        "SELECT * FROM host_machines WHERE id = ? AND user_id = ? AND deleted_us IS NULL",
        (host_id, user_id),
    ).fetchone()
    return _row(row) if row else None


def load_any(c: sqlite3.Connection, host_id: HostId) -> HostRow | None:
    """Whosever it is, and removed or not: for our own steps, never for a caller's id."""
    row = c.execute("SELECT * FROM host_machines WHERE id = ?", (host_id,)).fetchone()
    return _row(row) if row else None


def by_key(c: sqlite3.Connection, raw_key: str) -> HostRow | None:
    """The host that this key opens; the caller has looked at its form."""
    wanted = keys.digest(raw_key)
    row = c.execute("SELECT * FROM host_machines WHERE key_hash = ?", (wanted,)).fetchone()
    if row is None or not hmac.compare_digest(row["key_hash"], wanted):
        return None
    return _row(row)


def by_former_key(c: sqlite3.Connection, raw_key: str) -> HostRow | None:
    """The host that this key opened once, removed or not; the caller has looked at its form."""
    row = c.execute(
        "SELECT * FROM host_machines WHERE former_key_hash = ?", (keys.digest(raw_key),)
    ).fetchone()
    return _row(row) if row else None


def page(c: sqlite3.Connection, user_id: UserId, *, limit: int, after: str) -> list[HostRow]:
    rows = c.execute(
        "SELECT * FROM host_machines WHERE user_id = ? AND id > ? AND deleted_us IS NULL"
        " ORDER BY id LIMIT ?",
        (user_id, after, limit),
    )
    return [_row(row) for row in rows]


def rotate_key(c: sqlite3.Connection, host_id: HostId) -> str:
    """Give the host another key; the old one opens nothing from now on."""
    raw = keys.new_key(keys.MACHINE)
    c.execute(
        "UPDATE host_machines SET former_key_hash = key_hash, key_hash = ?, key_last_four = ?"
        " WHERE id = ?",
        (keys.digest(raw), raw[-4:], host_id),
    )
    return raw


def rename(c: sqlite3.Connection, host_id: HostId, name: str) -> None:
    c.execute("UPDATE host_machines SET name = ? WHERE id = ?", (name, host_id))


def delete(c: sqlite3.Connection, host_id: HostId) -> None:
    """Its key opens nothing more; the row stays, for the names in what it did."""
    c.execute(
        "UPDATE host_machines SET deleted_us = ?, former_key_hash = key_hash, key_hash = NULL,"
        " state = ? WHERE id = ?",
        (clock.now_us(), HostState.OFFLINE.value, host_id),
    )


# --- ephemeral hosts ---------------------------------------------------------------------


def children(c: sqlite3.Connection, parent_id: HostId) -> list[HostRow]:
    """The ephemeral hosts that this one's key has made, and that are not gone."""
    rows = c.execute(
        "SELECT * FROM host_machines WHERE parent_id = ? AND deleted_us IS NULL ORDER BY id",
        (parent_id,),
    )
    return [_row(row) for row in rows]


def has_helper(c: sqlite3.Connection, host_id: HostId, agent_id: AgentId) -> bool:
    """Whether an ephemeral host is here that serves this agent of the host's."""
    row = c.execute(
        "SELECT 1 FROM host_machines WHERE parent_id = ? AND deleted_us IS NULL"
        " AND state <> 'offline' AND (serves IS NULL OR serves = ?) LIMIT 1",
        (host_id, agent_id),
    ).fetchone()
    return row is not None


def took(c: sqlite3.Connection, host_id: HostId) -> None:
    """An ephemeral host was given a delivery: one less that it may take."""
    c.execute("UPDATE host_machines SET takes = takes - 1 WHERE id = ?", (host_id,))


def away_since(c: sqlite3.Connection, before_us: int) -> list[HostRow]:
    """Ephemeral hosts that have had no connection since then."""
    rows = c.execute(
        "SELECT * FROM host_machines WHERE parent_id IS NOT NULL AND deleted_us IS NULL"
        " AND state = 'offline' AND coalesce(last_seen_us, created_us) < ? ORDER BY id",
        (before_us,),
    )
    return [_row(row) for row in rows]


# --- what the link tells -----------------------------------------------------------------


def here(*, draining: bool) -> HostState:
    """The state of a host that is connected."""
    return HostState.DRAINING if draining else HostState.ONLINE


def greet(
    c: sqlite3.Connection,
    host_id: HostId,
    state: HostState,
    *,
    hostname: str,
    os: str,
    daemon_version: str,
    runtimes: Sequence[Runtime],
) -> None:
    """Its daemon has said hello: this is what it is, and how it stands."""
    c.execute(
        "UPDATE host_machines SET state = ?, last_seen_us = ?, hostname = ?, os = ?,"
        " daemon_version = ? WHERE id = ?",
        (state.value, clock.now_us(), hostname, os, daemon_version, host_id),
    )
    set_runtimes(c, host_id, runtimes)


def set_state(c: sqlite3.Connection, host_id: HostId, state: HostState) -> None:
    """Where it stands; it was seen just now."""
    c.execute(
        "UPDATE host_machines SET state = ?, last_seen_us = ? WHERE id = ?",
        (state.value, clock.now_us(), host_id),
    )


def set_runtimes(c: sqlite3.Connection, host_id: HostId, runtimes: Sequence[Runtime]) -> None:
    text = json.dumps([one.model_dump(exclude_none=True) for one in runtimes])
    c.execute("UPDATE host_machines SET runtimes = ? WHERE id = ?", (text, host_id))


def set_holds(c: sqlite3.Connection, host_id: HostId, holds: Sequence[Hold]) -> None:
    text = _HOLDS.dump_json(list(holds), exclude_none=True).decode()
    c.execute("UPDATE host_machines SET holds = ? WHERE id = ?", (text, host_id))


def all_offline(c: sqlite3.Connection) -> None:
    """At the start: whoever was connected is not any more."""
    c.execute(
        "UPDATE host_machines SET state = ? WHERE state <> ?",
        (HostState.OFFLINE.value, HostState.OFFLINE.value),
    )
