"""The backend's durable end of each host's link: watermarks, and numbered frames until acked."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudagent_protocol.frames import AgentsChanged, Decide, Deliver, Interrupt, encode
from cloudagent_protocol.ids import AgentId, DeliveryId, HostId, new_epoch

_TAKE_FREE_WAY: Final = (
    "UPDATE links SET delivery_seq = delivery_seq + 1, last = last + 1, backlog = backlog + 1"
    " WHERE host_id = ?1 AND backlog < ?3"
    " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE host_id = ?1 AND agent_id = ?2"
    " AND state = 'queued' AND held = 0)"
    " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE lent_by = ?1 AND in_flight = 1)"
    " RETURNING delivery_seq, last"
)
#: The outbox has no gaps: what is acknowledged ends where it begins.
_LINK: Final = (
    "SELECT epoch, accepted, coalesce((SELECT min(seq) FROM outbox WHERE host_id = ?1) - 1, last),"
    " last FROM links WHERE host_id = ?1"
)


@dataclass(frozen=True)
class LinkRow:
    epoch: str
    #: Number of the last daemon frame that is durable here.
    accepted: int
    #: Number of the last own frame that the daemon has said it has.
    acked: int
    #: Number of the last own frame that exists.
    last: int


@dataclass(frozen=True)
class OutboxRow:
    seq: int
    type: str
    delivery_id: DeliveryId | None
    #: JSON text, ready for the wire.
    frame: str


def link(c: sqlite3.Connection, host_id: HostId) -> LinkRow | None:
    """The state of a host's link; null if it has none yet."""
    row = c.execute(_LINK, (host_id,)).fetchone()
    return LinkRow(*row) if row else None


def next_delivery_seq(
    c: sqlite3.Connection, host_id: HostId, backlog_cap: int, *, in_front: bool = False
) -> int | None:
    """The number of a new delivery to this host; null if its backlog is full.

    It is larger than all before it, or (`in_front`) smaller.
    """
    rising, falling = (0, -1) if in_front else (1, 0)
    rows = c.execute(
        "INSERT INTO links (host_id, epoch, delivery_seq, front_seq, backlog)"
        " VALUES (?, ?, ?, ?, 1) ON CONFLICT (host_id) DO UPDATE SET"
        " delivery_seq = delivery_seq + excluded.delivery_seq,"
        " front_seq = front_seq + excluded.front_seq,"
        " backlog = backlog + 1 WHERE backlog < ? RETURNING delivery_seq, front_seq",
        (host_id, new_epoch(), rising, falling, backlog_cap),
    ).fetchall()
    if not rows:
        return None
    return rows[0]["front_seq" if in_front else "delivery_seq"]


@dataclass(frozen=True)
class Numbers:
    """Of a delivery in its agent's order, and of the frame that carries it."""

    delivery: int
    frame: int


def take_free_way(
    c: sqlite3.Connection, host_id: HostId, agent_id: AgentId, room: int
) -> Numbers | None:
    """Numbers for a delivery that leaves at once; null if it may not, and nothing has changed.

    It may where fewer than `room` of the host's are unfinished, none is queued for the agent, and no
    ephemeral host is at work for it (which may have the conversation).
    """
    rows = c.execute(_TAKE_FREE_WAY, (host_id, agent_id, room)).fetchall()
    return Numbers(*rows[0]) if rows else None


def leave_free_way(c: sqlite3.Connection, host_id: HostId) -> None:
    """Give the numbers of `take_free_way` back, in its transaction."""
    c.execute(
        "UPDATE links SET delivery_seq = delivery_seq - 1, last = last - 1, backlog = backlog - 1"
        " WHERE host_id = ?",
        (host_id,),
    )


def renumbered(c: sqlite3.Connection, host_id: HostId) -> int:
    """The number of a delivery to this host that goes to the end of the queue."""
    [(seq,)] = c.execute(
        "UPDATE links SET delivery_seq = delivery_seq + 1 WHERE host_id = ? RETURNING delivery_seq",
        (host_id,),
    ).fetchall()
    return seq


def ended(c: sqlite3.Connection, host_id: HostId) -> None:
    """A delivery to this host is over: its backlog is one shorter."""
    c.execute("UPDATE links SET backlog = backlog - 1 WHERE host_id = ?", (host_id,))


def moved(c: sqlite3.Connection, source: HostId, target: HostId) -> None:
    """An unfinished delivery counts for another host from now on."""
    ended(c, source)
    c.execute(
        "INSERT INTO links (host_id, epoch, backlog) VALUES (?, ?, 1)"
        " ON CONFLICT (host_id) DO UPDATE SET backlog = backlog + 1",
        (target, new_epoch()),
    )


def put(
    c: sqlite3.Connection,
    host_id: HostId,
    frame: Deliver | Interrupt | Decide | AgentsChanged,
) -> None:
    """Give the frame the host's next number and keep it. The host has a link row.

    Raises:
        ProtocolError: it is larger than a frame may be; nothing was kept.
    """
    [(last,)] = c.execute("SELECT last FROM links WHERE host_id = ?", (host_id,)).fetchall()
    keep(c, host_id, frame.model_copy(update={"seq": last + 1}))
    c.execute("UPDATE links SET last = last + 1 WHERE host_id = ?", (host_id,))


def keep(
    c: sqlite3.Connection, host_id: HostId, frame: Deliver | Interrupt | Decide | AgentsChanged
) -> OutboxRow:
    """Keep a frame that has its number.

    Raises:
        ProtocolError: it is larger than a frame may be; nothing was kept.
    """
    delivery_id = None if isinstance(frame, AgentsChanged) else frame.delivery_id
    row = OutboxRow(frame.seq, frame.type, delivery_id, encode(frame))
    c.execute(
        "INSERT INTO outbox (host_id, seq, type, delivery_id, frame) VALUES (?, ?, ?, ?, ?)",
        (host_id, row.seq, row.type, row.delivery_id, row.frame),
    )
    return row


def after(c: sqlite3.Connection, host_id: HostId, seq: int, limit: int) -> list[OutboxRow]:
    rows = c.execute(
        "SELECT seq, type, delivery_id, frame FROM outbox"
        " WHERE host_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (host_id, seq, limit),
    )
    return [OutboxRow(*row) for row in rows]


def has_delivery(c: sqlite3.Connection, host_id: HostId, delivery_id: DeliveryId) -> bool:
    """Whether a frame with this delivery is not acknowledged yet."""
    row = c.execute(
        "SELECT 1 FROM outbox WHERE host_id = ? AND type = 'deliver' AND delivery_id = ?",
        (host_id, delivery_id),
    ).fetchone()
    return row is not None


def acked(c: sqlite3.Connection, acks: Sequence[tuple[HostId, int]]) -> None:
    """These daemons have everything up to these numbers: forget it."""
    c.executemany("DELETE FROM outbox WHERE host_id = ? AND seq <= ?", acks)


def accepted(c: sqlite3.Connection, host_id: HostId, seq: int) -> None:
    """Daemon frames up to `seq` are in the store (with this transaction)."""
    c.execute("UPDATE links SET accepted = ? WHERE host_id = ?", (seq, host_id))


def start_epoch(c: sqlite3.Connection, host_id: HostId) -> LinkRow:
    """Begin a new history with this host: both directions count from 1 again."""
    epoch = new_epoch()
    c.execute("DELETE FROM outbox WHERE host_id = ?", (host_id,))
    c.execute(
        "INSERT INTO links (host_id, epoch) VALUES (?, ?) ON CONFLICT (host_id)"
        " DO UPDATE SET epoch = excluded.epoch, accepted = 0, last = 0",
        (host_id, epoch),
    )
    return LinkRow(epoch, 0, 0, 0)


def forget(c: sqlite3.Connection, host_id: HostId) -> None:
    """The host is gone."""
    c.execute("DELETE FROM outbox WHERE host_id = ?", (host_id,))
    c.execute("DELETE FROM links WHERE host_id = ?", (host_id,))
