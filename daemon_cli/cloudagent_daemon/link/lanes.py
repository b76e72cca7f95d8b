"""Files that agents send, and the frames that wait for them. Plain functions, as in `tables.py`.

A message never overtakes its files: it is held here until the backend has them, and behind it whatever
else is said of the same agent, so that an agent's story stays in its order. Other agents' goes on.
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from cloudagent_protocol.content import Attachment
from cloudagent_protocol.frames import DeliveryReport, Numbered, RunReport, Send
from cloudagent_protocol.ids import AgentId, AttachmentId

SCHEMA: Final = """
CREATE TABLE files (                      -- that agents send, until the backend has their message
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    body TEXT NOT NULL,                   -- Attachment
    settled INTEGER NOT NULL DEFAULT 0,   -- 1: the backend has it, or has refused it
    sent INTEGER                          -- the number of its message; NULL: that is held
) STRICT;
CREATE TABLE held (                       -- frames that wait for files, and those behind them
    number INTEGER PRIMARY KEY,
    agent_id TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX held_of ON held (agent_id, number);
"""


def lane_of(c: sqlite3.Connection, frame: Numbered) -> AgentId | None:
    """Whose story the frame is part of; null: it may go out at any time."""
    match frame:
        case Send() | RunReport():
            return frame.agent_id
        case DeliveryReport():
            row = c.execute(
                "SELECT frame FROM inbox WHERE id = ? AND frame <> ''", (frame.delivery_id,)
            ).fetchone()
            return json.loads(row[0])["agent"]["id"] if row else None
        case _:
            return None


def take(c: sqlite3.Connection, send: Send) -> None:
    """The files of a message are to be brought; of one that was kept before they are known."""
    c.executemany(
        "INSERT OR IGNORE INTO files (id, agent_id, body) VALUES (?, ?, ?)",
        [(one.id, send.agent_id, one.model_dump_json()) for one in send.attachments or ()],
    )


def post(c: sqlite3.Connection, agent_id: AgentId | None, body: str) -> None:
    """Into the outbox, or behind what is held of the same agent."""
    if agent_id is not None and (_is_held(c, agent_id) or _waits(c, body)):
        c.execute("INSERT INTO held (agent_id, body) VALUES (?, ?)", (agent_id, body))
    else:
        append(c, body)


def append(c: sqlite3.Connection, body: str) -> None:
    """Into the outbox, under the next number."""
    [(seq,)] = c.execute("UPDATE link SET last = last + 1 RETURNING last").fetchall()
    c.execute("INSERT INTO outbox VALUES (?, ?)", (seq, body))
    if ids := _files_in(body):
        c.executemany("UPDATE files SET sent = ? WHERE id = ?", [(seq, one) for one in ids])


def to_bring(c: sqlite3.Connection) -> list[tuple[AgentId, Attachment]]:
    """What the backend has not got, the oldest first."""
    rows = c.execute("SELECT agent_id, body FROM files WHERE NOT settled ORDER BY rowid")
    return [(agent_id, Attachment.model_validate_json(body)) for agent_id, body in rows]


def settle(c: sqlite3.Connection, attachment_id: AttachmentId) -> None:
    """The backend has the file, or will not have it: what waited only for that goes out."""
    c.execute("UPDATE files SET settled = 1 WHERE id = ?", (attachment_id,))
    stopped: set[AgentId] = set()
    for number, agent_id, body in c.execute("SELECT * FROM held ORDER BY number").fetchall():
        if agent_id in stopped or _waits(c, body):
            stopped.add(agent_id)
            continue
        c.execute("DELETE FROM held WHERE number = ?", (number,))
        append(c, body)


def acked(c: sqlite3.Connection, seq: int) -> None:
    """The backend has the messages up to this number: their files are its own now."""
    c.execute("DELETE FROM files WHERE sent <= ?", (seq,))


def known(c: sqlite3.Connection) -> set[AttachmentId]:
    """Files whose copies may still be needed."""
    return {row[0] for row in c.execute("SELECT id FROM files")}


def begin_anew(c: sqlite3.Connection) -> None:
    """Of a new history nothing is known to be there: files are brought again, and waited for."""
    bodies = [row[0] for row in c.execute("SELECT body FROM outbox ORDER BY seq")]
    bodies += [row[0] for row in c.execute("SELECT body FROM held ORDER BY number")]
    c.execute("DELETE FROM outbox")
    c.execute("DELETE FROM held")
    c.execute("UPDATE files SET settled = 0, sent = NULL")
    c.execute("UPDATE link SET last = 0")
    for body in bodies:
        said: dict[str, Any] = json.loads(body)
        post(c, said.get("agent_id"), body)


def _is_held(c: sqlite3.Connection, agent_id: AgentId) -> bool:
    row = c.execute("SELECT 1 FROM held WHERE agent_id = ? LIMIT 1", (agent_id,)).fetchone()
    return row is not None


def _waits(c: sqlite3.Connection, body: str) -> bool:
    return any(
        c.execute("SELECT 1 FROM files WHERE id = ? AND NOT settled", (one,)).fetchone()
        for one in _files_in(body)
    )


def _files_in(body: str) -> Sequence[AttachmentId]:
    # Of an agent's message only; to read each long report for it would be a waste.
    if '"attachments":[' not in body or not body.startswith('{"type":"send"'):
        return ()
    said: dict[str, Any] = json.loads(body)
    return [one["id"] for one in said["attachments"]]
