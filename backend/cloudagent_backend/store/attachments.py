"""Whose a file is, what it is called, and with which message it goes; its bytes are in `blobs.py`."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.store import clock
from cloudagent_backend.store.blobs import Content
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.ids import AgentId, AttachmentId, HostId, MessageId, UserId

_AWAY_US: Final = 29 * 86_400_000_000


@dataclass(frozen=True)
class Brought:
    """Who brings a file, and what it is to be called."""

    id: AttachmentId
    user_id: UserId
    name: str
    #: Of a file of an agent: the machine that brings it, and whose it is.
    host_id: HostId | None = None
    agent_id: AgentId | None = None


@dataclass(frozen=True)
class AttachmentRow:
    id: AttachmentId
    user_id: UserId
    sha256: str
    name: str
    media_type: str
    size_bytes: int
    host_id: HostId | None
    agent_id: AgentId | None
    #: The message that it goes with; null: it was not sent yet.
    message_id: MessageId | None
    #: When its owner removed it, after it was sent.
    removed_us: int | None

    @property
    def resource(self) -> Attachment:
        return Attachment(
            id=self.id,
            name=self.name,
            media_type=self.media_type,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
        )


_COLUMNS = (
    "id, user_id, sha256, name, media_type, size_bytes, host_id, agent_id, message_id, removed_us"
)


def insert(c: sqlite3.Connection, brought: Brought, content: Content) -> AttachmentRow:
    """Keep that the content was brought; the same id again changes nothing, and gives what is kept."""
    c.execute(
        "INSERT INTO attachments (id, user_id, sha256, name, media_type, size_bytes, created_us,"
        " host_id, agent_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            brought.id,
            brought.user_id,
            content.sha256,
            brought.name,
            content.media_type,
            content.size_bytes,
            clock.now_us(),
            brought.host_id,
            brought.agent_id,
        ),
    )
    row = load_any(c, brought.id)
    assert row is not None
    return row


def load_any(c: sqlite3.Connection, attachment_id: AttachmentId) -> AttachmentRow | None:
    """Whosever it is: for our own steps."""
    row = c.execute(
        f"SELECT {_COLUMNS} FROM attachments WHERE id = ?",  # noqa: S608  names of columns
        (attachment_id,),
    ).fetchone()
    return AttachmentRow(**dict(row)) if row else None


def load(
    c: sqlite3.Connection, user_id: UserId, attachment_id: AttachmentId
) -> AttachmentRow | None:
    row = load_any(c, attachment_id)
    return row if row and row.user_id == user_id else None


def load_for_host(
    c: sqlite3.Connection, host_id: HostId, attachment_id: AttachmentId
) -> AttachmentRow | None:
    """A file that a machine may read: it brought it, or a message with it was sent to it."""
    row = load_any(c, attachment_id)
    if row is None or row.host_id == host_id:
        return row
    given = c.execute(
        "SELECT 1 FROM deliveries WHERE message_id = ? AND host_id = ? LIMIT 1",
        (row.message_id, host_id),
    ).fetchone()
    return row if given else None


def enclose(c: sqlite3.Connection, ids: Iterable[AttachmentId], message_id: MessageId) -> None:
    c.executemany(
        "UPDATE attachments SET message_id = ? WHERE id = ?",
        [(message_id, attachment_id) for attachment_id in ids],
    )


def bytes_of_user(c: sqlite3.Connection, user_id: UserId) -> int:
    """What the person's files take, and those of their agents; the same content counts each time."""
    found: int = c.execute(
        "SELECT coalesce(sum(size_bytes), 0) FROM attachments"
        " WHERE user_id = ? AND removed_us IS NULL",
        (user_id,),
    ).fetchone()[0]
    return found


def mark_removed(c: sqlite3.Connection, attachment_id: AttachmentId, removed_us: int) -> None:
    """The row stays: what is fetched, or brought again, is known for what was removed."""
    c.execute("UPDATE attachments SET removed_us = ? WHERE id = ?", (removed_us, attachment_id))


def delete(c: sqlite3.Connection, attachment_id: AttachmentId) -> None:
    c.execute("DELETE FROM attachments WHERE id = ?", (attachment_id,))


def forget_unsent(c: sqlite3.Connection, before_us: int) -> int:
    """Forget files that were brought before then and never sent; returns how many.

    A machine that brought one and then was away sends its message when it is back: later, by `_AWAY_US`.
    """
    return c.execute(
        "DELETE FROM attachments WHERE message_id IS NULL"
        " AND created_us < ? - iif(host_id IS NULL, 0, ?)",
        (before_us, _AWAY_US),
    ).rowcount


def unnamed(c: sqlite3.Connection, digests: Iterable[str]) -> list[str]:
    """Those contents that no row names (any more)."""
    return [
        digest
        for digest in digests
        if not c.execute(
            "SELECT 1 FROM attachments WHERE sha256 = ? AND removed_us IS NULL LIMIT 1", (digest,)
        ).fetchone()
    ]
