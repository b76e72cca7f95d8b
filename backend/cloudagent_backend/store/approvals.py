"""What agents asked people, and what became of it."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from cloudagent_backend.store import clock
from cloudagent_backend.store.deliveries import LAST
from cloudagent_protocol.events import AnyDecision, ApprovalRequested, Question
from cloudagent_protocol.ids import (
    AgentId,
    ApprovalId,
    ConversationId,
    DeliveryId,
    HostId,
    RunId,
    UserId,
)
from cloudagent_protocol.resources import Approval, ApprovalKind, ApprovalState

_ASKED: TypeAdapter[ApprovalRequested | Question] = TypeAdapter(ApprovalRequested | Question)
_EVENTS_OWN = {"seq", "at", "type", "approval_id"}


@dataclass(frozen=True)
class ApprovalRow:
    id: ApprovalId
    user_id: UserId
    host_id: HostId
    agent_id: AgentId
    conversation_id: ConversationId
    delivery_id: DeliveryId
    run_id: RunId
    kind: ApprovalKind
    state: ApprovalState
    #: The event that asked, as JSON.
    asked: str
    asked_us: int
    decision: AnyDecision | None = None
    reason: str | None = None
    answer: str | None = None
    decided_by: str | None = None
    decided_us: int | None = None
    ended_us: int | None = None
    detail: str | None = None

    @property
    def request(self) -> ApprovalRequested | Question:
        return _ASKED.validate_json(self.asked)

    @property
    def resource(self) -> Approval:
        asked = self.request.model_dump(exclude=_EVENTS_OWN)
        known = {name: value for name, value in asked.items() if name in Approval.model_fields}
        return Approval(
            **known,
            id=self.id,
            kind=self.kind,
            state=self.state,
            agent_id=self.agent_id,
            conversation_id=self.conversation_id,
            host_machine_id=self.host_id,
            delivery_id=self.delivery_id,
            run_id=self.run_id,
            requested_at=clock.at(self.asked_us),
            decision=self.decision,
            reason=self.reason,
            answer=self.answer,
            decided_by=self.decided_by,
            decided_at=clock.at_or_none(self.decided_us),
            ended_at=clock.at_or_none(self.ended_us),
            detail=self.detail,
        )


def _row(row: sqlite3.Row) -> ApprovalRow:
    values: dict[str, Any] = dict(row)
    values["kind"] = ApprovalKind(row["kind"])
    values["state"] = ApprovalState(row["state"])
    return ApprovalRow(**values)


def insert(c: sqlite3.Connection, row: ApprovalRow) -> bool:
    """Keep a request; false if it is known already."""
    return (
        c.execute(
            "INSERT INTO approvals (id, user_id, host_id, agent_id, conversation_id, delivery_id,"
            " run_id, kind, state, asked, asked_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING",
            (
                row.id,
                row.user_id,
                row.host_id,
                row.agent_id,
                row.conversation_id,
                row.delivery_id,
                row.run_id,
                row.kind.value,
                row.state.value,
                row.asked,
                row.asked_us,
            ),
        ).rowcount
        > 0
    )


def load(c: sqlite3.Connection, approval_id: str) -> ApprovalRow | None:
    row = c.execute("SELECT * FROM approvals WHERE id = ?", (approval_id,)).fetchone()
    return _row(row) if row else None


def page(
    c: sqlite3.Connection,
    user_id: UserId,
    *,
    limit: int,
    after: str = "",
    state: ApprovalState | None = None,
    conversation_id: str | None = None,
) -> list[ApprovalRow]:
    """The user's, newest first, below the id `after`."""
    sql = "SELECT * FROM approvals WHERE user_id = ? AND id < ?"
    values: list[object] = [user_id, after or LAST]
    if state is ApprovalState.PENDING:  # spelled out, so that the index of those serves it
        sql += " AND state = 'pending'"
    elif state is not None:
        sql += " AND state = ?"
        values.append(state.value)
    if conversation_id is not None:
        sql += " AND conversation_id = ?"
        values.append(conversation_id)
    rows = c.execute(f"{sql} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [_row(row) for row in rows]


def open_of(c: sqlite3.Connection, delivery_id: DeliveryId) -> list[ApprovalRow]:
    """What the work on a delivery still waits for, or has not acted on yet."""
    rows = c.execute(
        "SELECT * FROM approvals WHERE delivery_id = ? AND state IN ('pending', 'answered')"
        " ORDER BY id",
        (delivery_id,),
    )
    return [_row(row) for row in rows]


def agent_waits(c: sqlite3.Connection, agent_id: AgentId) -> bool:
    """Whether the agent waits for a person."""
    sql = "SELECT 1 FROM approvals WHERE agent_id = ? AND state = 'pending' LIMIT 1"
    return c.execute(sql, (agent_id,)).fetchone() is not None


def decide(
    c: sqlite3.Connection,
    approval_id: ApprovalId,
    decision: AnyDecision,
    by: str,
    *,
    reason: str | None = None,
    answer: str | None = None,
) -> ApprovalRow | None:
    """Keep the first decision; null if it is not the first."""
    rows = c.execute(
        "UPDATE approvals SET state = 'answered', decision = ?, decided_by = ?, decided_us = ?,"
        " reason = ?, answer = ? WHERE id = ? AND state = 'pending' RETURNING *",
        (str(decision), by, clock.now_us(), reason, answer, approval_id),
    ).fetchall()
    return _row(rows[0]) if rows else None


def end(
    c: sqlite3.Connection,
    approval_id: ApprovalId,
    state: ApprovalState,
    at_us: int,
    detail: str | None = None,
) -> ApprovalRow | None:
    """It is over, whether somebody has decided or not; null if that is known."""
    rows = c.execute(
        "UPDATE approvals SET state = ?, ended_us = ?, detail = ?"
        " WHERE id = ? AND state IN ('pending', 'answered') RETURNING *",
        (state.value, at_us, detail, approval_id),
    ).fetchall()
    return _row(rows[0]) if rows else None
