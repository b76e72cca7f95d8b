"""Agents: who they are, and on which host they live."""

import json
import sqlite3
from dataclasses import dataclass, replace
from typing import Any, Final

from cloudagent_backend.store import clock, deliveries, hosts, usage
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.ids import AgentId, HostId, UserId, new_agent_id
from cloudagent_protocol.resources import (
    Agent,
    AgentCreate,
    AgentLimits,
    AgentPause,
    AgentRef,
    AgentSpec,
    AgentStatus,
    HostState,
)

#: Of an agent that nobody has set any for.
NO_LIMITS: Final = AgentLimits()


class NameTakenError(Exception):
    """The user has another agent of this name."""


#: Faster than the enumeration's own look-up.
_STATUS: Final = {status.value: status for status in AgentStatus}


@dataclass(slots=True)
class AgentRow:
    """An agent as it was read. It is replaced, not changed (frozen, it takes ten times as long)."""

    id: AgentId
    user_id: UserId
    host_machine_id: HostId
    name: str
    driver: str
    model: str | None
    instructions: str | None
    mode: str
    command: list[str] | None
    env: dict[str, str]
    cwd: str | None
    hang_timeout_s: float | None
    unattended: str | None
    worktree: str | None
    limits: AgentLimits
    #: As of its last run; see `resource`.
    status: AgentStatus
    created_us: int
    deleted_us: int | None


def _row(row: sqlite3.Row) -> AgentRow:
    values: dict[str, Any] = dict(row)
    values["status"] = _STATUS[row["status"]]
    values["command"] = None if row["command"] is None else json.loads(row["command"])
    values["env"] = json.loads(row["env"])
    limits = row["limits"]
    values["limits"] = AgentLimits.model_validate_json(limits) if limits else NO_LIMITS
    return AgentRow(**values)


def ref(row: AgentRow) -> AgentRef:
    return AgentRef(id=row.id, name=row.name, driver=row.driver)


def spec(row: AgentRow) -> AgentSpec:
    return AgentSpec(
        id=row.id,
        name=row.name,
        driver=row.driver,
        model=row.model,
        instructions=row.instructions,
        mode=row.mode,
        command=row.command,
        env=row.env,
        cwd=row.cwd,
        hang_timeout_s=row.hang_timeout_s,
        unattended=row.unattended,
        worktree=row.worktree,
    )


def resource(c: sqlite3.Connection, row: AgentRow) -> Agent:
    """The agent as people see it: where no machine that serves it is here, it is offline."""
    return Agent(
        **spec(row).model_dump(),
        limits=row.limits,
        pause=_pause(c, row),
        host_machine_id=row.host_machine_id,
        status=row.status if reachable(c, row) else AgentStatus.OFFLINE,
        created_at=clock.at(row.created_us),
    )


def _pause(c: sqlite3.Connection, row: AgentRow) -> AgentPause | None:
    """Of one whose budget of the day is used up."""
    if row.limits.day_tokens is None and row.limits.day_cost_usd is None:
        return None
    day = usage.load(c, row.id, usage.today())
    if day.paused_us is None:
        return None
    return AgentPause(
        reason="budget",
        detail=f"{day.tokens:,} tokens and ${day.cost_usd:,.2f} are used today.",
        since=clock.at(day.paused_us),
        until=clock.at(usage.end_of(day.day)),
        waiting=deliveries.waiting_for(c, row.host_machine_id, row.id, "budget"),
        pause=day.pauses,
    )


def reachable(c: sqlite3.Connection, row: AgentRow) -> bool:
    """Whether its host is here, or an ephemeral one that serves it."""
    host = hosts.load_any(c, row.host_machine_id)
    here = host is not None and host.state is not HostState.OFFLINE
    return here or hosts.has_helper(c, row.host_machine_id, row.id)


def create(c: sqlite3.Connection, user_id: UserId, body: AgentCreate) -> AgentRow:
    """A new agent; the caller has checked that the host is the user's.

    Raises:
        NameTakenError: see there.
    """
    _check_name(c, user_id, body.name)
    agent_id = new_agent_id()
    c.execute(
        "INSERT INTO agents (id, user_id, host_machine_id, name, driver, model, instructions,"
        " mode, command, env, cwd, hang_timeout_s, unattended, worktree, limits, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            agent_id,
            user_id,
            body.host_machine_id,
            body.name,
            body.driver.value,
            body.model,
            body.instructions,
            body.mode,
            _encode(body.command),
            _encode(body.env),
            body.cwd,
            body.hang_timeout_s,
            body.unattended,
            body.worktree,
            body.limits.model_dump_json() if body.limits else None,
            clock.now_us(),
        ),
    )
    row = load(c, user_id, agent_id)
    assert row is not None
    return row


def update(c: sqlite3.Connection, row: AgentRow, changes: dict[str, Any]) -> AgentRow:
    """Change the fields that are given (names of `AgentUpdate`).

    Raises:
        NameTakenError: see there.
    """
    if "name" in changes and changes["name"] != row.name:
        _check_name(c, row.user_id, changes["name"])
    if "limits" in changes:
        given = changes["limits"]
        changes["limits"] = AgentLimits.model_validate(given) if given else NO_LIMITS
    after = replace(row, **changes)
    c.execute(
        "UPDATE agents SET name = ?, driver = ?, model = ?, instructions = ?, mode = ?,"
        " command = ?, env = ?, cwd = ?, hang_timeout_s = ?, unattended = ?, worktree = ?,"
        " limits = ? WHERE id = ?",
        (
            after.name,
            after.driver,
            after.model,
            after.instructions,
            after.mode,
            _encode(after.command),
            _encode(after.env),
            after.cwd,
            after.hang_timeout_s,
            after.unattended,
            after.worktree,
            None if after.limits == NO_LIMITS else after.limits.model_dump_json(),
            row.id,
        ),
    )
    changed = load(c, row.user_id, row.id)
    assert changed is not None
    return changed


def load(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> AgentRow | None:
    row = c.execute(
        "SELECT * FROM agents WHERE id = ? AND user_id = ? AND deleted_us IS NULL",
        (agent_id, user_id),
    ).fetchone()
    return _row(row) if row else None


def load_any(c: sqlite3.Connection, agent_id: AgentId) -> AgentRow | None:
    """Whosever it is, and removed or not: for our own steps, never for a caller's id."""
    row = c.execute("SELECT * FROM agents WHERE id = ?", (agent_id,)).fetchone()
    return _row(row) if row else None


def of_host(c: sqlite3.Connection, host_id: HostId) -> list[AgentRow]:
    rows = c.execute(
        "SELECT * FROM agents WHERE host_machine_id = ? AND deleted_us IS NULL ORDER BY id",
        (host_id,),
    )
    return [_row(row) for row in rows]


def served_by(c: sqlite3.Connection, host: HostRow) -> list[AgentRow]:
    """The agents that a host may run: its own, or of an ephemeral one those of its parent."""
    found = of_host(c, host.parent_id or host.id)
    return [agent for agent in found if host.serves in (None, agent.id)]


def page(
    c: sqlite3.Connection,
    user_id: UserId,
    *,
    limit: int,
    after: str,
    host_id: HostId | None = None,
    name: str | None = None,
) -> list[AgentRow]:
    rows = c.execute(
        "SELECT * FROM agents WHERE user_id = :user AND id > :after AND deleted_us IS NULL"
        " AND (:host IS NULL OR host_machine_id = :host) AND (:name IS NULL OR name = :name)"
        " ORDER BY id LIMIT :limit",
        {"user": user_id, "after": after, "host": host_id, "name": name, "limit": limit},
    )
    return [_row(row) for row in rows]


def set_status(c: sqlite3.Connection, agent_id: AgentId, status: AgentStatus) -> None:
    c.execute("UPDATE agents SET status = ? WHERE id = ?", (status.value, agent_id))


def delete(c: sqlite3.Connection, agent_id: AgentId) -> None:
    """Its name is free again; the row stays, for its messages' sake."""
    c.execute("UPDATE agents SET deleted_us = ? WHERE id = ?", (clock.now_us(), agent_id))


def _check_name(c: sqlite3.Connection, user_id: UserId, name: str) -> None:
    taken = c.execute(
        "SELECT 1 FROM agents WHERE user_id = ? AND name = ? AND deleted_us IS NULL",
        (user_id, name),
    ).fetchone()
    if taken:
        raise NameTakenError(name)


def _encode(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
