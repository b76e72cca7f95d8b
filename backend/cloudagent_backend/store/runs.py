"""Runs of agents and their numbered events."""

import json
import sqlite3
from dataclasses import dataclass, replace
from typing import Any

from cloudagent_backend.store import clock
from cloudagent_protocol.events import Usage
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, HostId, RunId, UserId
from cloudagent_protocol.resources import Run, RunState


@dataclass(frozen=True)
class RunRow:
    id: RunId
    user_id: UserId
    host_id: HostId
    agent_id: AgentId
    conversation_id: ConversationId
    delivery_ids: list[DeliveryId]
    driver: str
    state: RunState
    outcome: str | None
    reason: str | None
    attempt: int
    session_id: str | None
    #: JSON of `Usage`.
    usage: str | None
    #: Whether the model has begun to answer.
    seen: bool
    started_us: int
    ended_us: int | None
    #: JSON of `ChangeCount`.
    changes: str | None = None

    @property
    def resource(self) -> Run:
        return Run.model_validate(
            {
                **self.__dict__,
                "usage": json.loads(self.usage) if self.usage else None,
                "changes": json.loads(self.changes) if self.changes else None,
                "started_at": clock.at(self.started_us),
                "ended_at": clock.at_or_none(self.ended_us),
            }
        )


def _row(row: sqlite3.Row) -> RunRow:
    return RunRow(
        id=row["id"],
        user_id=row["user_id"],
        host_id=row["host_id"],
        agent_id=row["agent_id"],
        conversation_id=row["conversation_id"],
        delivery_ids=json.loads(row["delivery_ids"]),
        driver=row["driver"],
        state=RunState(row["state"]),
        outcome=row["outcome"],
        reason=row["reason"],
        attempt=row["attempt"],
        session_id=row["session_id"],
        usage=row["usage"],
        seen=bool(row["seen"]),
        started_us=row["started_us"],
        ended_us=row["ended_us"],
        changes=row["changes"],
    )


def insert(c: sqlite3.Connection, row: RunRow) -> None:
    c.execute(
        "INSERT INTO runs (id, user_id, host_id, agent_id, conversation_id, delivery_ids, driver,"
        " state, attempt, session_id, started_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.id,
            row.user_id,
            row.host_id,
            row.agent_id,
            row.conversation_id,
            json.dumps(row.delivery_ids),
            row.driver,
            row.state.value,
            row.attempt,
            row.session_id,
            row.started_us,
        ),
    )


def load(c: sqlite3.Connection, run_id: RunId) -> RunRow | None:
    row = c.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    return _row(row) if row else None


def of_conversation(
    c: sqlite3.Connection, conversation_id: ConversationId, *, limit: int, after: str = ""
) -> list[RunRow]:
    """Newest first, below the id `after`."""
    rows = c.execute(
        "SELECT * FROM runs WHERE conversation_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
        (conversation_id, after or "~", limit),
    )
    return [_row(row) for row in rows]


def live_of_host(c: sqlite3.Connection, host_id: HostId) -> list[RunRow]:
    rows = c.execute("SELECT * FROM runs WHERE host_id = ? AND state <> 'finished'", (host_id,))
    return [_row(row) for row in rows]


def has_live(c: sqlite3.Connection, host_id: HostId, agent_id: AgentId) -> bool:
    return (
        c.execute(
            "SELECT 1 FROM runs WHERE host_id = ? AND agent_id = ? AND state <> 'finished' LIMIT 1",
            (host_id, agent_id),
        ).fetchone()
        is not None
    )


def join(c: sqlite3.Connection, run: RunRow, delivery_id: DeliveryId) -> RunRow:
    """The run, which works on this delivery too from now on."""
    joined = [*run.delivery_ids, delivery_id]
    c.execute("UPDATE runs SET delivery_ids = ? WHERE id = ?", (json.dumps(joined), run.id))
    return replace(run, delivery_ids=joined)


def see(c: sqlite3.Connection, run_id: RunId) -> bool:
    """The model has begun to answer; returns whether that is news."""
    sql = "UPDATE runs SET seen = 1 WHERE id = ? AND seen = 0"
    return c.execute(sql, (run_id,)).rowcount > 0


def set_session(c: sqlite3.Connection, run_id: RunId, session_id: str) -> None:
    c.execute("UPDATE runs SET session_id = ? WHERE id = ?", (session_id, run_id))


def set_usage(c: sqlite3.Connection, run_id: RunId, usage: Usage) -> None:
    c.execute("UPDATE runs SET usage = ? WHERE id = ?", (usage.model_dump_json(), run_id))


def set_state(c: sqlite3.Connection, run_id: RunId, state: RunState) -> None:
    """A run that is not over works or waits."""
    c.execute(
        "UPDATE runs SET state = ? WHERE id = ? AND state <> 'finished'", (state.value, run_id)
    )


def finish(
    c: sqlite3.Connection,
    run_id: RunId,
    *,
    outcome: str,
    reason: str | None,
    ended_us: int,
    session_id: str | None = None,
    usage: Usage | None = None,
) -> None:
    """It is over; what is not told of its session and its usage stays as it was."""
    c.execute(
        "UPDATE runs SET state = 'finished', outcome = ?, reason = ?, ended_us = ?,"
        " session_id = coalesce(?, session_id), usage = coalesce(?, usage) WHERE id = ?",
        (outcome, reason, ended_us, session_id, usage and usage.model_dump_json(), run_id),
    )


def add_event(c: sqlite3.Connection, run_id: RunId, seq: int, body: str) -> bool:
    """Keep an event (JSON text); false if this number is known already."""
    return (
        c.execute(
            "INSERT INTO run_events (run_id, seq, body) VALUES (?, ?, ?)"
            " ON CONFLICT (run_id, seq) DO NOTHING",
            (run_id, seq, body),
        ).rowcount
        > 0
    )


def events(c: sqlite3.Connection, run_id: RunId, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Events numbered above `after`, in order."""
    rows = c.execute(
        "SELECT body FROM run_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (run_id, after, limit),
    )
    return [json.loads(body) for (body,) in rows]
