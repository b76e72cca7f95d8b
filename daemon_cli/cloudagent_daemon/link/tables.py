"""The spool's tables, and every statement on them; plain functions on a connection.

Nothing here commits: the committer does, for many at once.
"""

import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cloudagent_daemon.link import asked, lanes
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import (
    Decide,
    Deliver,
    Interrupt,
    Numbered,
    RunReport,
    Send,
    decode,
)
from cloudagent_protocol.ids import DeliveryId
from cloudagent_protocol.resources import DeliveryMode

logger = logging.getLogger(__name__)
_UNREAD: Final = {"action": "inbox_unread"}

#: Finished deliveries that are remembered, so that a repeated one is no second run.
REMEMBERED: Final = 20_000
#: Messages of agents that are kept when the backend has them, should its own history be lost.
SAID: Final = 2_000

_CHANGES: Final = (
    "SELECT changed, id, frame, attempts, interrupted_by, finished_at IS NOT NULL, "  # noqa: S608 - of constants only
    + asked.WAITS
    + ", ended_by, (SELECT id FROM inbox AS other WHERE other.id = inbox.rides_with"
    " AND other.finished_at IS NULL) FROM inbox WHERE ending IS NULL"
)


@dataclass(frozen=True)
class Waiting:
    """A delivery that is not finished."""

    deliver: Deliver
    #: Processes that were started for it so far.
    attempts: int = 0
    #: Who asked to stop it, or None.
    interrupted_by: str | None = None
    #: A daemon before 0.3 had handled its message.
    handled_before: bool = False
    #: Until when it waits for people who were asked in it (Unix seconds); None: it does not.
    asks_until: float | None = None
    #: And for what, for a person.
    waits_for: str | None = None
    #: Who asked to end it at once, having asked to stop it.
    ended_by: str | None = None
    #: Whose turn it is part of, as long as that is not over.
    rides_with: DeliveryId | None = None


@dataclass(frozen=True)
class Change:
    """What the backend last wanted of a delivery."""

    number: int
    delivery_id: DeliveryId
    #: None: it is over, forget it.
    waiting: Waiting | None


@dataclass(frozen=True)
class Leftover:
    """A process that an earlier life of the daemon started, and may have left behind."""

    launch_id: str
    pid: int
    #: Its creation, Unix seconds.
    started_at: float


@dataclass(frozen=True)
class Watermarks:
    """Where the two directions stand."""

    epoch: str | None = None
    #: Number of the last backend frame that is on the disk.
    accepted: int = 0
    #: Number of the last own frame that the backend has.
    acked: int = 0
    #: Number of the last own frame that exists.
    last: int = 0
    #: Number of the last change that the backend made to the inbox.
    changes: int = 0
    #: Frames that wait for files, without a number yet.
    held: int = 0
    #: Files that the backend has not got.
    to_bring: int = 0

    @property
    def unsent(self) -> int:
        """Frames that the backend has not got."""
        return self.last - self.acked + self.held


# --- inbox ----------------------------------------------------------------------------


def receive(
    c: sqlite3.Connection, frames: Sequence[Numbered], accepted: int, texts: Sequence[str] = ()
) -> None:
    """Keeps a batch of backend frames, of which `accepted` is the last number.

    Of a backlog all are new: these are added together, what else comes takes its turn between them.

    `texts` is each frame as it came, which is kept as it is: to write it anew is a sixth of the cost.
    So it is for `decode` alone. SQLite's functions read JSON in other ways (of two equal names they
    take the first), and of what Python's takes, such as NaN, they make an error.
    """
    fresh: list[tuple[Deliver, str]] = []
    for frame, text in zip(frames, texts or map(_text, frames), strict=True):
        if isinstance(frame, Deliver) and frame.mode is not DeliveryMode.INTERRUPT:
            fresh.append((frame, text))
            continue
        _add(c, fresh)
        fresh = []
        match frame:
            case Deliver():
                _keep(c, frame, text)
            case Interrupt():
                c.execute(
                    "UPDATE inbox SET interrupted_by = coalesce(interrupted_by, ?1), changed = ?2,"
                    " ended_by = coalesce(ended_by, ?3) WHERE id = ?4 AND finished_at IS NULL",
                    (
                        frame.actor,
                        _next_change(c),
                        frame.actor if frame.now else None,
                        frame.delivery_id,
                    ),
                )
            case Decide() if asked.decide(c, frame):
                _changed(c, frame.delivery_id)
            case _:
                pass
    _add(c, fresh)
    c.execute("UPDATE link SET accepted = max(accepted, ?)", (accepted,))


def _text(frame: Numbered) -> str:
    return frame.model_dump_json(exclude_none=True)


def _add(c: sqlite3.Connection, fresh: Sequence[tuple[Deliver, str]]) -> None:
    """Keeps deliveries as if the inbox had had none of them; if it had, one by one."""
    if not fresh:
        return
    c.execute("SAVEPOINT fresh")
    first = _next_change(c, len(fresh)) - len(fresh) + 1
    added = c.executemany(
        "INSERT INTO inbox (id, delivery_seq, changed, frame) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO NOTHING",
        [
            (frame.delivery_id, frame.delivery_seq, number, text)
            for number, (frame, text) in enumerate(fresh, first)
        ],
    ).rowcount
    if added < len(fresh):
        c.execute("ROLLBACK TO fresh")
        for frame, text in fresh:
            _keep(c, frame, text)
    c.execute("RELEASE fresh")


def _keep(c: sqlite3.Connection, frame: Deliver, text: str) -> None:
    """Keeps a delivery once.

    The backend repeats what is over here only if its own history was lost. What ended here is
    answered with its ending once more, after what the agent said in it; what was dropped has none, and
    is taken in anew.
    """
    row = c.execute(
        "SELECT finished_at IS NULL, ending FROM inbox WHERE id = ?", (frame.delivery_id,)
    ).fetchone()
    unfinished, ending = row or (False, None)
    if unfinished:
        return
    if ending is None:
        if frame.mode is DeliveryMode.INTERRUPT:
            _make_way(c, frame)
        c.execute(
            "INSERT INTO inbox (id, delivery_seq, changed, frame) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET changed = excluded.changed, frame = excluded.frame,"
            " interrupted_by = NULL, ended_by = NULL, finished_at = NULL",
            (frame.delivery_id, frame.delivery_seq, _next_change(c), text),
        )
    elif not c.execute(
        "SELECT 1 FROM outbox WHERE body = :ending UNION ALL SELECT 1 FROM held WHERE body = :ending",
        {"ending": ending},
    ).fetchone():
        said = c.execute(
            "SELECT body FROM said WHERE caused_by = ? AND agent_id = ? ORDER BY number",
            (frame.message.id, frame.agent.id),
        ).fetchall()
        for body in (*(body for (body,) in said), ending):
            lanes.post(c, frame.agent.id, body)


def _make_way(c: sqlite3.Connection, frame: Deliver) -> None:
    """What has begun in the conversation is to be stopped, even if the daemon dies before it is.

    Not the same message to another agent: that is no work of before.
    """
    new = frame.message
    begun = c.execute(
        "SELECT id, frame FROM inbox"
        " WHERE finished_at IS NULL AND attempts > 0 AND interrupted_by IS NULL"
    ).fetchall()
    for delivery_id, text in begun:
        before = _read(text)
        if before is None or before.message.conversation_id != new.conversation_id:
            continue
        if before.message.id != new.id:
            c.execute(
                "UPDATE inbox SET interrupted_by = ?, changed = ? WHERE id = ?",
                (new.author.name, _next_change(c), delivery_id),
            )


def _changed(c: sqlite3.Connection, delivery_id: DeliveryId) -> None:
    """Whoever follows the inbox is to look at this delivery again."""
    c.execute(
        "UPDATE inbox SET changed = ? WHERE id = ? AND finished_at IS NULL",
        (_next_change(c), delivery_id),
    )


def _next_change(c: sqlite3.Connection, how_many: int = 1) -> int:
    """The number of the next change, or of the last of so many."""
    [(number,)] = c.execute(
        "UPDATE link SET changes = changes + ? RETURNING changes", (how_many,)
    ).fetchall()
    return number


def changes_after(c: sqlite3.Connection, number: int) -> list[Change]:
    """What the backend wanted since `number`; since 0: all deliveries that are not finished."""
    rows = c.execute(f"{_CHANGES} AND changed > ? ORDER BY changed", (number,))
    return [_change(c, row) for row in rows]


def waiting(c: sqlite3.Connection, delivery_id: DeliveryId) -> Waiting | None:
    """A delivery as it is now; null if it is over."""
    row = c.execute(f"{_CHANGES} AND id = ?", (delivery_id,)).fetchone()
    return _change(c, row).waiting if row else None


def _change(
    c: sqlite3.Connection,
    row: tuple[
        int,
        DeliveryId,
        str,
        int,
        str | None,
        int,
        float | None,
        str | None,
        str | None,
        DeliveryId | None,
    ],
) -> Change:
    number, delivery_id, text, attempts, interrupted_by, over, until, what, ended_by, into = row
    deliver = None if over else _read(text)
    if deliver is None:
        return Change(number, delivery_id, None)
    before = c.execute(
        "SELECT 1 FROM handled_before WHERE message_id = ?", (deliver.message.id,)
    ).fetchone()
    return Change(
        number,
        delivery_id,
        Waiting(deliver, attempts, interrupted_by, before is not None, until, what, ended_by, into),
    )


def _read(text: str) -> Deliver | None:
    """The delivery; null if this daemon does not understand what another version of it has kept.

    Such a one stays, unfinished, for a daemon that does; it keeps no other from being worked on.
    """
    try:
        frame = decode(text)
    except ProtocolError as error:
        logger.error("a delivery in the inbox is passed over: %s", error, extra=_UNREAD)  # noqa: TRY400 - the trace tells nothing more
        return None
    if not isinstance(frame, Deliver):
        raise TypeError(f"a {frame.type} frame in the inbox")
    return frame


def ride(c: sqlite3.Connection, delivery_id: DeliveryId, into: DeliveryId) -> None:
    """It is part of that one's turn, which has left."""
    c.execute("UPDATE inbox SET rides_with = ? WHERE id = ?", (into, delivery_id))


def held(c: sqlite3.Connection) -> list[DeliveryId]:
    rows = c.execute(
        "SELECT id FROM inbox WHERE finished_at IS NULL"
        " UNION SELECT id FROM inbox WHERE ending IN (SELECT body FROM outbox)"
        " UNION SELECT id FROM inbox WHERE ending IN (SELECT body FROM held) ORDER BY id"
    )
    return [row[0] for row in rows]


def drop(c: sqlite3.Connection, deliveries: Iterable[DeliveryId]) -> None:
    for delivery in deliveries:
        c.execute(
            "UPDATE inbox SET finished_at = ?, frame = '', changed = ?"
            " WHERE id = ? AND finished_at IS NULL",
            (time.time(), _next_change(c), delivery),
        )
        asked.forget(c, [delivery])


# --- outbox ---------------------------------------------------------------------------


def append(c: sqlite3.Connection, frame: Numbered, body: str) -> None:
    """Keeps a frame for the backend: behind what its agent has said before."""
    lanes.post(c, lanes.lane_of(c, frame), body)


def ask(c: sqlite3.Connection, frame: RunReport, body: str) -> None:
    """As `append`, of a request or a question to people: it is kept until it is over."""
    asked.ask(c, frame, body)
    append(c, frame, body)


def say(c: sqlite3.Connection, send: Send, body: str) -> None:
    """As `append`, of a message of an agent: the newest are kept longer than until their ack."""
    new = c.execute(
        "INSERT OR IGNORE INTO said (message_id, agent_id, caused_by, body) VALUES (?, ?, ?, ?)",
        (send.message_id, send.agent_id, send.caused_by or send.in_reply_to, body),
    ).rowcount
    if new:
        lanes.take(c, send)
    c.execute("DELETE FROM said WHERE number <= (SELECT max(number) FROM said) - ?", (SAID,))
    append(c, send, body)


def finish(c: sqlite3.Connection, frame: RunReport, body: str) -> None:
    now = time.time()
    c.executemany(
        "UPDATE inbox SET finished_at = ?, frame = '', ending = ? WHERE id = ?",
        [(now, body, delivery) for delivery in frame.delivery_ids],
    )
    c.executemany("DELETE FROM launches WHERE delivery_id = ?", [(d,) for d in frame.delivery_ids])
    asked.forget(c, frame.delivery_ids)
    append(c, frame, body)


def frames_after(c: sqlite3.Connection, seq: int, limit: int) -> list[tuple[int, str]]:
    return c.execute(
        "SELECT seq, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
    ).fetchall()


def acked(c: sqlite3.Connection, seq: int) -> None:
    c.execute("DELETE FROM outbox WHERE seq <= ?", (seq,))
    lanes.acked(c, seq)
    c.execute("UPDATE link SET acked = max(acked, ?)", (seq,))


def prune(c: sqlite3.Connection) -> None:
    """Forgets the oldest of the finished deliveries, beyond `REMEMBERED`."""
    c.execute(
        "DELETE FROM inbox WHERE finished_at <= (SELECT finished_at FROM inbox"
        " WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1 OFFSET ?)",
        (REMEMBERED,),
    )


# --- launches -------------------------------------------------------------------------


def record_launch(
    c: sqlite3.Connection,
    delivery_id: DeliveryId,
    left: Leftover,
    attempt: int,
    *,
    stays: bool = False,
) -> None:
    c.execute("UPDATE inbox SET attempts = max(attempts, ?) WHERE id = ?", (attempt, delivery_id))
    # One that stays is no delivery's, whose end would have it forgotten.
    c.execute(
        "INSERT OR REPLACE INTO launches VALUES (?, ?, ?, ?)",
        (left.launch_id, "" if stays else delivery_id, left.pid, left.started_at),
    )


def leftovers(c: sqlite3.Connection) -> list[Leftover]:
    return [
        Leftover(*row)
        for row in c.execute("SELECT launch_id, pid, started_at FROM launches ORDER BY started_at")
    ]


def forget_launches(c: sqlite3.Connection, launch_ids: Iterable[str]) -> None:
    c.executemany("DELETE FROM launches WHERE launch_id = ?", [(i,) for i in launch_ids])


# --- the link -------------------------------------------------------------------------


def marks(c: sqlite3.Connection) -> Watermarks:
    return Watermarks(
        *c.execute(
            "SELECT epoch, accepted, acked, last, changes, (SELECT count(*) FROM held),"
            " (SELECT count(*) FROM files WHERE NOT settled) FROM link"
        ).fetchone()
    )


def reset_epoch(c: sqlite3.Connection, epoch: str | None) -> None:
    """Numbers the outbox anew from 1, in its order; nothing was received yet.

    What is still asked is asked once more: the other side may have lost it.
    """
    for agent_id, body in asked.unheard(c):
        lanes.post(c, agent_id, body)
    lanes.begin_anew(c)
    c.execute("UPDATE link SET epoch = ?, accepted = 0, acked = 0", (epoch,))
