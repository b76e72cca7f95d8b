"""Messages, in the order in which they arrived here."""

import sqlite3
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from cloudagent_backend.store import clock, deliveries
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.ids import AgentId, ConversationId, MessageId, UserId
from cloudagent_protocol.resources import Author, DeliverySummary, Message

#: Above every position that SQLite can give.
_END: Final = 2**63 - 1


@dataclass(frozen=True)
class MessagePage:
    """In the order asked for; `more` says whether there are further ones."""

    data: list[Message]
    more: bool


@dataclass(frozen=True)
class Cause:
    """A message that an agent works on, as what it then sends depends on it."""

    id: MessageId
    #: Where it stands.
    conversation_id: ConversationId
    author: Author
    chain_id: MessageId
    depth: int
    #: From an agent to this one: where its author worked when it was sent.
    asked_in: ConversationId | None
    #: Where this agent works on it; null: it was never given to it.
    worked_in: ConversationId | None


_FILES: Final = TypeAdapter(list[Attachment])


def _resource(row: sqlite3.Row, summaries: list[DeliverySummary]) -> Message:
    auto_published, files = row["auto_published"], row["attachments"]
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        author=Author(type=row["author_type"], id=row["author_id"], name=row["author_name"]),
        text=row["text"],
        attachments=_FILES.validate_json(files) if files else [],
        created_at=clock.at(row["created_us"]),
        deliveries=summaries,
        in_reply_to=row["in_reply_to"],
        run_id=row["run_id"],
        auto_published=None if auto_published is None else bool(auto_published),
        chain_id=row["chain_id"],
        depth=row["depth"],
        caused_by=row["caused_by"],
        model=row["model"],
        permission_mode=row["permission_mode"],
    )


def insert(
    c: sqlite3.Connection,
    user_id: UserId,
    message: Message,
    asked_in: ConversationId | None = None,
) -> bool:
    """Keep the message and note it on its conversation; false if the id is known already.

    Of an agent's message to another one it is kept where its author worked (`asked_in`).
    """
    created_us = clock.to_us(message.created_at)
    stored = c.execute(
        "INSERT INTO messages (id, conversation_id, user_id, author_type, author_id, author_name,"
        " text, created_us, in_reply_to, run_id, auto_published, chain_id, depth, caused_by,"
        " asked_in, attachments, model, permission_mode)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO NOTHING",
        (
            message.id,
            message.conversation_id,
            user_id,
            message.author.type,
            message.author.id,
            message.author.name,
            message.text,
            created_us,
            message.in_reply_to,
            message.run_id,
            message.auto_published,
            message.chain_id,
            message.depth,
            message.caused_by,
            asked_in,
            _FILES.dump_json(message.attachments).decode() if message.attachments else None,
            message.model,
            message.permission_mode,
        ),
    ).rowcount
    if stored:
        c.execute(
            "UPDATE conversations SET last_message_us = ? WHERE id = ?",
            (created_us, message.conversation_id),
        )
    return bool(stored)


def load(c: sqlite3.Connection, user_id: UserId, message_id: MessageId) -> Message | None:
    row = c.execute(
        "SELECT * FROM messages WHERE id = ? AND user_id = ?", (message_id, user_id)
    ).fetchone()
    return _resource(row, deliveries.summaries(c, [message_id])[message_id]) if row else None


def change_text(c: sqlite3.Connection, message_id: MessageId, text: str) -> None:
    c.execute("UPDATE messages SET text = ? WHERE id = ?", (text, message_id))


def change_files(c: sqlite3.Connection, message_id: MessageId, files: list[Attachment]) -> None:
    kept = _FILES.dump_json(files).decode()
    c.execute("UPDATE messages SET attachments = ? WHERE id = ?", (kept, message_id))


def load_bare(c: sqlite3.Connection, message_id: MessageId) -> Message | None:
    """What was said, without how it fares; whosever it is: for our own steps."""
    row = c.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone()
    return _resource(row, []) if row else None


def cause(
    c: sqlite3.Connection, user_id: UserId, message_id: MessageId, agent_id: AgentId
) -> Cause | None:
    """A message as the cause of what the agent says; null if it is not the user's."""
    row = c.execute(
        "SELECT m.*, d.conversation_id AS worked_in FROM messages m"
        " LEFT JOIN deliveries d ON d.message_id = m.id AND d.agent_id = ?"
        " WHERE m.id = ? AND m.user_id = ? LIMIT 1",
        (agent_id, message_id, user_id),
    ).fetchone()
    if row is None:
        return None
    return Cause(
        id=row["id"],
        conversation_id=row["conversation_id"],
        author=Author(type=row["author_type"], id=row["author_id"], name=row["author_name"]),
        chain_id=row["chain_id"] or row["id"],
        depth=row["depth"],
        asked_in=row["asked_in"],
        worked_in=row["worked_in"],
    )


def position(
    c: sqlite3.Connection, conversation_id: ConversationId, message_id: MessageId
) -> int | None:
    """Where a message stands in its conversation; null if it is not in it."""
    row = c.execute(
        "SELECT position FROM messages WHERE id = ? AND conversation_id = ?",
        (message_id, conversation_id),
    ).fetchone()
    return row[0] if row else None


def following(
    c: sqlite3.Connection, conversation_id: ConversationId, after: int | None, limit: int
) -> MessagePage:
    """The messages after a position (null: from the start), oldest first."""
    rows = c.execute(
        "SELECT * FROM messages WHERE conversation_id = ? AND position > ?"
        " ORDER BY position LIMIT ?",
        (conversation_id, after or 0, limit + 1),
    ).fetchall()
    return _page(c, rows[:limit], more=len(rows) > limit)


def preceding(
    c: sqlite3.Connection, conversation_id: ConversationId, before: int | None, limit: int
) -> MessagePage:
    """The messages before a position (null: from the end), newest first."""
    rows = c.execute(
        "SELECT * FROM messages WHERE conversation_id = ? AND position < ?"
        " ORDER BY position DESC LIMIT ?",
        (conversation_id, _END if before is None else before, limit + 1),
    ).fetchall()
    return _page(c, rows[:limit], more=len(rows) > limit)


def _page(c: sqlite3.Connection, rows: list[sqlite3.Row], *, more: bool) -> MessagePage:
    of = deliveries.summaries(c, [row["id"] for row in rows])
    return MessagePage([_resource(row, of[row["id"]]) for row in rows], more)
