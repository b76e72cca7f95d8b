"""What agents have asked people, the first decision about each, and what people allowed for longer.

Plain functions on its connection, as in `tables.py`. A request is kept in the transaction that puts
its report into the outbox, and a decision in the one that accepts its frame's number.
"""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudagent_protocol.asking import summary
from cloudagent_protocol.events import ApprovalRequested, Question
from cloudagent_protocol.frames import Decide, RunReport
from cloudagent_protocol.ids import AgentId, ApprovalId, ConversationId, DeliveryId

SCHEMA: Final = """
CREATE TABLE asked (
    approval_id TEXT PRIMARY KEY,
    delivery_id TEXT NOT NULL,
    body TEXT NOT NULL,                   -- the report that asks
    what TEXT NOT NULL,                   -- the same on a line, for a person
    expires_at REAL NOT NULL,             -- Unix seconds
    decided TEXT,                         -- Decide; NULL while nobody has
    over INTEGER NOT NULL DEFAULT 0       -- 1: it was acted on, or is not asked any more
) STRICT;
CREATE INDEX asked_of ON asked (delivery_id);
CREATE TABLE rules (
    rule_id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    conversation_id TEXT,                 -- NULL: in all
    body TEXT NOT NULL,                   -- runs/rules.py: Rule
    UNIQUE (agent_id, conversation_id, body)
) STRICT;
"""
_OPEN: Final = "FROM asked WHERE delivery_id = inbox.id AND decided IS NULL AND over = 0"
#: Of a delivery in `inbox`: until when it waits for people, and for what; NULL if it does not.
WAITS: Final = f"(SELECT max(expires_at) {_OPEN}), (SELECT min(what) {_OPEN})"


@dataclass(frozen=True)
class Asked:
    """A request to people."""

    request: ApprovalRequested | Question
    #: Unix seconds.
    expires_at: float
    decided: Decide | None


def ask(c: sqlite3.Connection, frame: RunReport, body: str) -> None:
    request = frame.event
    assert isinstance(request, ApprovalRequested | Question)
    until = request.expires_at.timestamp() if request.expires_at else time.time()
    c.execute(
        "INSERT OR IGNORE INTO asked (approval_id, delivery_id, body, what, expires_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (request.approval_id, frame.delivery_ids[0], body, waits_for(request), until),
    )


def waits_for(request: ApprovalRequested | Question) -> str:
    """`approval: Bash “alembic upgrade head”`, `question: Which port?`."""
    kind = "question" if isinstance(request, Question) else "approval"
    return f"{kind}: {summary(request)}"


def decide(c: sqlite3.Connection, frame: Decide) -> bool:
    """Keeps the first decision; false if it is not the first, or nothing is asked any more."""
    return (
        c.execute(
            "UPDATE asked SET decided = ? WHERE approval_id = ? AND delivery_id = ?"
            " AND decided IS NULL AND over = 0",
            (frame.model_dump_json(exclude_none=True), frame.approval_id, frame.delivery_id),
        ).rowcount
        > 0
    )


def of(c: sqlite3.Connection, delivery_id: DeliveryId) -> list[Asked]:
    """What the work on a delivery has asked and not acted on, the oldest first."""
    return _all_of(c, delivery_id, over=False)


def acted_on(c: sqlite3.Connection, delivery_id: DeliveryId) -> list[Asked]:
    """What the work on a delivery has asked, and acted on as it was decided; the oldest first."""
    return [one for one in _all_of(c, delivery_id, over=True) if one.decided]


def _all_of(c: sqlite3.Connection, delivery_id: DeliveryId, *, over: bool) -> list[Asked]:
    rows = c.execute(
        "SELECT body, expires_at, decided FROM asked WHERE delivery_id = ? AND over = ?"
        " ORDER BY approval_id",
        (delivery_id, over),
    )
    return [
        Asked(request, expires_at, Decide.model_validate_json(decided) if decided else None)
        for body, expires_at, decided in rows
        if isinstance(
            request := RunReport.model_validate_json(body).event, ApprovalRequested | Question
        )
    ]


def over(c: sqlite3.Connection, approval_id: ApprovalId) -> None:
    """It was acted on, or is not asked any more."""
    c.execute("UPDATE asked SET over = 1 WHERE approval_id = ?", (approval_id,))


def rules(c: sqlite3.Connection, agent_id: AgentId, conversation_id: ConversationId) -> list[str]:
    """What people allowed an agent for longer, as far as it counts in this conversation."""
    rows = c.execute(
        "SELECT body FROM rules WHERE agent_id = ? AND coalesce(conversation_id, ?) = ?"
        " ORDER BY rule_id",
        (agent_id, conversation_id, conversation_id),
    )
    return [body for (body,) in rows]


def add_rule(
    c: sqlite3.Connection,
    rule_id: str,
    agent_id: AgentId,
    conversation_id: ConversationId | None,
    body: str,
) -> None:
    c.execute(
        "INSERT OR IGNORE INTO rules (rule_id, agent_id, conversation_id, body) VALUES (?, ?, ?, ?)",
        (rule_id, agent_id, conversation_id, body),
    )


def all_rules(c: sqlite3.Connection) -> list[tuple[str, AgentId, ConversationId | None, str]]:
    """Each with its id, its agent and its conversation."""
    sql = "SELECT rule_id, agent_id, conversation_id, body FROM rules ORDER BY agent_id, rule_id"
    return [tuple(row) for row in c.execute(sql)]


def remove_rule(c: sqlite3.Connection, rule_id: str) -> bool:
    return c.execute("DELETE FROM rules WHERE rule_id = ?", (rule_id,)).rowcount > 0


def forget(c: sqlite3.Connection, deliveries: Sequence[DeliveryId]) -> None:
    """The work on these is over."""
    c.executemany("DELETE FROM asked WHERE delivery_id = ?", [(one,) for one in deliveries])


def unheard(c: sqlite3.Connection) -> list[tuple[AgentId, str]]:
    """The reports of what is still asked and is not on its way, each with its agent."""
    rows = c.execute(
        "SELECT json_extract(body, '$.agent_id'), body FROM asked WHERE over = 0 AND body NOT IN"
        " (SELECT body FROM outbox UNION ALL SELECT body FROM held) ORDER BY approval_id"
    )
    return [tuple(row) for row in rows]
