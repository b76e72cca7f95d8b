"""Conversations and the agents in them."""

import json
import sqlite3

from cloudagent_backend.store import clock
from cloudagent_protocol.ids import AgentId, ConversationId, UserId, new_conversation_id
from cloudagent_protocol.resources import Conversation


def _resource(row: sqlite3.Row, agent_ids: list[AgentId]) -> Conversation:
    return Conversation(
        id=row["id"],
        title=row["title"],
        kind="people" if row["pair"] is None else "agents",
        agent_ids=agent_ids,
        created_at=clock.at(row["created_us"]),
        last_message_at=clock.at_or_none(row["last_message_us"]),
    )


def _resources(c: sqlite3.Connection, rows: list[sqlite3.Row]) -> list[Conversation]:
    of: dict[str, list[AgentId]] = {row["id"]: [] for row in rows}
    for conversation_id, agent_id in c.execute(
        "SELECT conversation_id, agent_id FROM conversation_agents"
        " WHERE conversation_id IN (SELECT value FROM json_each(?)) ORDER BY position",
        (json.dumps(list(of)),),
    ):
        of[conversation_id].append(agent_id)
    return [_resource(row, of[row["id"]]) for row in rows]


def create(
    c: sqlite3.Connection,
    user_id: UserId,
    agent_ids: list[AgentId],
    title: str | None = None,
    *,
    pair: str | None = None,
) -> Conversation:
    """A new conversation; the caller has checked that the agents are the user's."""
    conversation_id = new_conversation_id()
    created_us = clock.now_us()
    c.execute(
        "INSERT INTO conversations (id, user_id, title, created_us, pair) VALUES (?, ?, ?, ?, ?)",
        (conversation_id, user_id, title, created_us, pair),
    )
    c.executemany(
        "INSERT INTO conversation_agents (conversation_id, agent_id, position) VALUES (?, ?, ?)",
        [(conversation_id, agent_id, n) for n, agent_id in enumerate(agent_ids)],
    )
    return Conversation(
        id=conversation_id,
        title=title,
        kind="people" if pair is None else "agents",
        agent_ids=agent_ids,
        created_at=clock.at(created_us),
    )


def between(c: sqlite3.Connection, user_id: UserId, one: AgentId, other: AgentId) -> ConversationId:
    """The conversation of two agents of the user's with each other, made if there is none."""
    pair = " ".join(sorted((one, other)))
    row = c.execute(
        "SELECT id FROM conversations WHERE user_id = ? AND pair = ?", (user_id, pair)
    ).fetchone()
    return row[0] if row else create(c, user_id, [one, other], pair=pair).id


def load(
    c: sqlite3.Connection, user_id: UserId, conversation_id: ConversationId
) -> Conversation | None:
    rows = c.execute(
        "SELECT * FROM conversations WHERE id = ? AND user_id = ?", (conversation_id, user_id)
    ).fetchall()
    return _resources(c, rows)[0] if rows else None


def page(
    c: sqlite3.Connection,
    user_id: UserId,
    *,
    limit: int,
    after: str = "",
    agent_id: AgentId | None = None,
) -> list[Conversation]:
    """The user's conversations, newest first, below the id `after`; of one agent if it is given."""
    if agent_id is None:
        rows = c.execute(
            "SELECT * FROM conversations WHERE user_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
            (user_id, after or "~", limit),
        )
    else:
        rows = c.execute(
            "SELECT v.* FROM conversation_agents a JOIN conversations v ON v.id = a.conversation_id"
            " WHERE a.agent_id = ? AND v.user_id = ? AND a.conversation_id < ?"
            " ORDER BY a.conversation_id DESC LIMIT ?",
            (agent_id, user_id, after or "~", limit),
        )
    return _resources(c, rows.fetchall())


def latest_with(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> ConversationId | None:
    """The newest conversation of the user with this agent and no other."""
    # CROSS JOIN: SQLite keeps the order, so that the index gives the newest first without a sort.
    row = c.execute(
        "SELECT a.conversation_id FROM conversation_agents a"
        " CROSS JOIN conversations v ON v.id = a.conversation_id AND v.user_id = ?"
        " WHERE a.agent_id = ? AND NOT EXISTS (SELECT 1 FROM conversation_agents o"
        " WHERE o.conversation_id = a.conversation_id AND o.agent_id <> a.agent_id)"
        " ORDER BY a.conversation_id DESC LIMIT 1",
        (user_id, agent_id),
    ).fetchone()
    return row[0] if row else None


def partner(
    c: sqlite3.Connection, user_id: UserId, conversation_id: ConversationId, agent_id: AgentId
) -> tuple[bool, AgentId | None]:
    """Whether the agent takes part in the user's conversation, and with which other agent.

    The other one is null where people talk with agents.
    """
    row = c.execute(
        "SELECT v.pair FROM conversation_agents a JOIN conversations v ON v.id = a.conversation_id"
        " WHERE a.conversation_id = ? AND a.agent_id = ? AND v.user_id = ?",
        (conversation_id, agent_id, user_id),
    ).fetchone()
    if row is None or row[0] is None:
        return row is not None, None
    [other] = [AgentId(one) for one in row[0].split() if one != agent_id]
    return True, other


def contains(
    c: sqlite3.Connection, user_id: UserId, conversation_id: ConversationId, agent_id: AgentId
) -> bool:
    """Whether it is this user's conversation and the agent takes part in it."""
    return (
        c.execute(
            "SELECT 1 FROM conversation_agents a JOIN conversations v ON v.id = a.conversation_id"
            " WHERE a.conversation_id = ? AND a.agent_id = ? AND v.user_id = ?",
            (conversation_id, agent_id, user_id),
        ).fetchone()
        is not None
    )
