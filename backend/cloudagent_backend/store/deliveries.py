"""Deliveries: one message on its way to one agent, its state and its ladder.

`move` is the only way to change a state, and a compare-and-set; which moves are allowed is told by
`delivery/states.py`, not here.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from cloudagent_backend.store import clock, usage
from cloudagent_backend.store.text import json_text
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, HostId, MessageId, UserId
from cloudagent_protocol.resources import (
    DeliveryMode,
    DeliveryState,
    DeliverySummary,
    DeliveryTrace,
    RungName,
)

#: Above every ULID.
LAST: Final = "~"


#: Faster than the enumeration's own look-up.
_STATE: Final = {state.value: state for state in DeliveryState}
_MODE: Final = {mode.value: mode for mode in DeliveryMode}


#: On its way to, or on, the machine: the column `in_flight`, which is 1 for these.
_IN_FLIGHT: Final = frozenset(
    {
        DeliveryState.LEASED,
        DeliveryState.RECEIVED,
        DeliveryState.RUNNING,
        DeliveryState.WAITING,
    }
)


@dataclass
class DeliveryRow:
    """A delivery as it was read. It is replaced, not changed (frozen, it takes ten times as long)."""

    id: DeliveryId
    user_id: UserId
    host_id: HostId
    agent_id: AgentId
    conversation_id: ConversationId
    message_id: MessageId
    #: Order for the agent: rises with every delivery to its host, but for those that interrupt,
    #: whose numbers fall from -1.
    seq: int
    state: DeliveryState = DeliveryState.QUEUED
    mode: DeliveryMode = DeliveryMode.QUEUE
    #: The earlier delivery that this one does over again, and who asked for that.
    retry_of: DeliveryId | None = None
    retried_by: str | None = None
    outcome: str | None = None
    reason: str | None = None
    attempt: int = 0
    run_id: str | None = None
    #: Who asked to stop it; the machine has been told or will be.
    interrupted_by: str | None = None
    #: Who asked, after that, to end it at once.
    ended_by: str | None = None
    #: The ladder, a JSON array of `Rung`.
    rungs: str = "[]"
    #: The agent's own host, when an ephemeral one has the delivery.
    lent_by: HostId | None = None
    #: Whether it was meant for that host and no other.
    pinned: bool = False
    #: Of a message that one agent sent to another: its chain.
    chain_id: MessageId | None = None
    #: Which turn of the chain this is; null until it was given one.
    turn: int | None = None
    #: Whether it waits for a person's word about its chain.
    held: bool = False
    #: Where not about its chain: why (`Reason`). It stays when a person has let it go.
    held_for: str | None = None
    #: When the rate limit is over for which it does another one over again.
    resumes_us: int | None = None

    def but(self, **changed: Any) -> "DeliveryRow":
        """Itself with other fields; `dataclasses.replace` takes several times as long."""
        return DeliveryRow(**(vars(self) | changed))

    def has_rung(self, name: RungName) -> bool:
        return f'{{"rung":"{name.value}"' in self.rungs

    @property
    def waits_for(self) -> str | None:
        """Why it waits, as its last rung `waiting` says."""
        rungs: list[dict[str, str]] = json.loads(self.rungs)
        waiting = (one for one in reversed(rungs) if one["rung"] == "waiting")
        return next((one.get("reason") for one in waiting), None)

    def count(self, name: RungName) -> int:
        return self.rungs.count(f'{{"rung":"{name.value}"')


@dataclass(slots=True)
class NewRung:
    """A rung to add; `at_us` is now if it is null."""

    name: RungName
    actor: str
    detail: str | None = None
    at_us: int | None = None
    reason: str | None = None

    def json(self, not_before: str) -> str:
        """As JSON text; no earlier than the rung below it, whatever a machine's clock says."""
        at = clock.rfc3339(clock.now_us() if self.at_us is None else self.at_us)
        fields = {"rung": self.name.value, "at": max(at, not_before), "actor": self.actor}
        if self.detail:
            fields["detail"] = self.detail
        if self.reason:
            fields["reason"] = self.reason
        return json_text(fields)


def _row(row: sqlite3.Row) -> DeliveryRow:
    return DeliveryRow(
        id=row["id"],
        user_id=row["user_id"],
        host_id=row["host_id"],
        agent_id=row["agent_id"],
        conversation_id=row["conversation_id"],
        message_id=row["message_id"],
        seq=row["seq"],
        state=_STATE[row["state"]],
        mode=_MODE[row["mode"]],
        retry_of=row["retry_of"],
        retried_by=row["retried_by"],
        outcome=row["outcome"],
        reason=row["reason"],
        attempt=row["attempt"],
        run_id=row["run_id"],
        interrupted_by=row["interrupted_by"],
        ended_by=row["ended_by"],
        rungs=row["rungs"],
        lent_by=row["lent_by"],
        pinned=bool(row["pinned"]),
        chain_id=row["chain_id"],
        turn=row["turn"],
        held=bool(row["held"]),
        held_for=row["held_for"],
        resumes_us=row["resumes_us"],
    )


def _extended(ladder: str, rungs: Iterable[NewRung]) -> str:
    for rung in rungs:
        _, below, rest = ladder.rpartition('"at":"')
        added = rung.json(rest.partition('"')[0] if below else "")
        ladder = f"[{added}]" if ladder == "[]" else f"{ladder[:-1]},{added}]"
    return ladder


#: CROSS JOIN: SQLite keeps the order, from few hosts to their frames.
_CARRIED: Final = (
    "SELECT o.host_id AS carried_by, d.* FROM json_each(?)"
    " CROSS JOIN outbox o ON o.host_id = json_each.value ->> 0 AND o.seq <= json_each.value ->> 1"
    " CROSS JOIN deliveries d ON d.id = o.delivery_id"
    " WHERE o.type = 'deliver' ORDER BY json_each.key, o.seq"
)


def insert(c: sqlite3.Connection, row: DeliveryRow, rungs: Iterable[NewRung]) -> DeliveryRow:
    """Keep a new delivery, with its first rungs."""
    ladder = _extended("[]", rungs)
    c.execute(
        "INSERT INTO deliveries (id, user_id, host_id, agent_id, conversation_id, message_id, seq,"
        " state, in_flight, outcome, reason, mode, retry_of, retried_by, rungs, chain_id, held)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.id,
            row.user_id,
            row.host_id,
            row.agent_id,
            row.conversation_id,
            row.message_id,
            row.seq,
            row.state.value,
            row.state in _IN_FLIGHT,
            row.outcome,
            row.reason,
            row.mode.value,
            row.retry_of,
            row.retried_by,
            ladder,
            row.chain_id,
            row.held,
        ),
    )
    return row.but(rungs=ladder)


def load(c: sqlite3.Connection, delivery_id: DeliveryId) -> DeliveryRow | None:
    row = c.execute("SELECT * FROM deliveries WHERE id = ?", (delivery_id,)).fetchone()
    return _row(row) if row else None


def of_message(c: sqlite3.Connection, user_id: UserId, message_id: MessageId) -> list[DeliveryRow]:
    rows = c.execute(
        "SELECT * FROM deliveries WHERE message_id = ? AND user_id = ? ORDER BY id",
        (message_id, user_id),
    )
    return [_row(row) for row in rows]


def of_conversation(
    c: sqlite3.Connection, conversation_id: ConversationId, *, limit: int, after: str = ""
) -> list[DeliveryRow]:
    """Newest first, below the id `after`."""
    rows = c.execute(
        "SELECT * FROM deliveries WHERE conversation_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
        (conversation_id, after or LAST, limit),
    )
    return [_row(row) for row in rows]


def waiting_agents(c: sqlite3.Connection, host_id: HostId) -> list[AgentId]:
    """Agents of the host for whom something is queued; one step in the index each."""
    rows = c.execute(
        "WITH RECURSIVE waiting (agent_id) AS ("
        " SELECT min(agent_id) FROM deliveries WHERE host_id = ?1 AND state = 'queued' AND held = 0"
        " UNION ALL SELECT (SELECT min(agent_id) FROM deliveries WHERE host_id = ?1"
        " AND state = 'queued' AND held = 0 AND agent_id > waiting.agent_id) FROM waiting"
        " WHERE waiting.agent_id IS NOT NULL)"
        " SELECT agent_id FROM waiting WHERE agent_id IS NOT NULL",
        (host_id,),
    )
    return [agent_id for (agent_id,) in rows]


def waiting_hosts(c: sqlite3.Connection) -> set[HostId]:
    """Hosts for whom something is queued; one step in the index each."""
    rows = c.execute(
        "WITH RECURSIVE waiting (host_id) AS ("
        " SELECT min(host_id) FROM deliveries WHERE state = 'queued' AND held = 0"
        " UNION ALL SELECT (SELECT min(host_id) FROM deliveries WHERE state = 'queued'"
        " AND held = 0 AND host_id > waiting.host_id) FROM waiting"
        " WHERE waiting.host_id IS NOT NULL)"
        " SELECT host_id FROM waiting WHERE host_id IS NOT NULL"
    )
    return {host_id for (host_id,) in rows}


def queued(
    c: sqlite3.Connection, host_id: HostId, agent_id: AgentId, limit: int
) -> list[DeliveryRow]:
    """What waits for the agent, in its order."""
    rows = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND agent_id = ? AND state = 'queued'"
        " AND held = 0 ORDER BY seq LIMIT ?",
        (host_id, agent_id, limit),
    )
    return [_row(row) for row in rows]


def open_of_host(c: sqlite3.Connection, host_id: HostId) -> list[DeliveryRow]:
    """Everything of the host that is not over."""
    free = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND state = 'queued' AND held = 0", (host_id,)
    )
    return [*in_flight(c, host_id), *map(_row, free), *held_of_host(c, host_id)]


def queued_of_host(c: sqlite3.Connection, host_id: HostId, limit: int) -> list[DeliveryRow]:
    """Some of what is queued for the host, held back or not; the oldest of an agent first."""
    free = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND state = 'queued' AND held = 0"
        " ORDER BY agent_id, seq LIMIT ?",
        (host_id, limit),
    )
    return list(map(_row, free)) or held_of_host(c, host_id)[:limit]


def of_removed_hosts(c: sqlite3.Connection) -> list[HostId]:
    """Removed hosts for which something is queued all the same."""
    rows = c.execute(
        "SELECT id FROM host_machines WHERE deleted_us IS NOT NULL AND ("
        "EXISTS (SELECT 1 FROM deliveries"
        " WHERE host_id = host_machines.id AND state = 'queued' AND held = 0)"
        " OR EXISTS (SELECT 1 FROM deliveries"
        " WHERE host_id = host_machines.id AND state = 'queued' AND held = 1))"
    )
    return [host_id for (host_id,) in rows]


def held_of_host(c: sqlite3.Connection, host_id: HostId) -> list[DeliveryRow]:
    rows = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND state = 'queued' AND held = 1", (host_id,)
    )
    return [_row(row) for row in rows]


def open_of_chain(c: sqlite3.Connection, chain_id: MessageId) -> list[DeliveryRow]:
    """What is not over of the chain: the first message's, and those between agents."""
    rows = c.execute(
        "SELECT * FROM deliveries WHERE (chain_id = ?1 OR message_id = ?1)"
        " AND state IN ('queued', 'leased', 'received', 'running', 'waiting')"
        " ORDER BY host_id, seq",
        (chain_id,),
    )
    return [_row(row) for row in rows]


def give_turn(c: sqlite3.Connection, row: DeliveryRow, turn: int) -> None:
    c.execute("UPDATE deliveries SET turn = ? WHERE id = ?", (turn, row.id))


def hold(
    c: sqlite3.Connection, row: DeliveryRow, rung: NewRung, why: str | None = None
) -> DeliveryRow:
    """Keep a queued delivery back until a person has decided; about its chain, if no `why` is given."""
    c.execute("UPDATE deliveries SET held = 1, held_for = ? WHERE id = ?", (why, row.id))
    return note(c, row, rung)


def resume_at(
    c: sqlite3.Connection,
    row: DeliveryRow,
    rung: NewRung,
    resumes_us: int,
    turn: int | None,
    *,
    held: bool,
) -> DeliveryRow:
    """A new delivery does one over that a rate limit has ended; it has had its turn of the chain."""
    [changed] = c.execute(
        "UPDATE deliveries SET resumes_us = ?, turn = ?, held = ?, held_for = ?, rungs = ?"
        " WHERE id = ? RETURNING *",
        (
            resumes_us,
            turn,
            held,
            rung.reason if held else None,
            _extended(row.rungs, [rung]),
            row.id,
        ),
    ).fetchall()
    return _row(changed)


def release(c: sqlite3.Connection, row: DeliveryRow, seq: int) -> DeliveryRow:
    """Put a held delivery back into the queue; `seq` is its new place in it."""
    [changed] = c.execute(
        "UPDATE deliveries SET held = 0, seq = ? WHERE id = ? RETURNING *", (seq, row.id)
    ).fetchall()
    return _row(changed)


def waiting_for(c: sqlite3.Connection, host_id: HostId, agent_id: AgentId, why: str) -> int:
    """How many deliveries of an agent are held back for a reason, with this host."""
    row = c.execute(
        "SELECT count(*) FROM deliveries WHERE host_id = ? AND state = 'queued' AND held = 1"
        " AND agent_id = ? AND held_for = ?",
        (host_id, agent_id, why),
    ).fetchone()
    found: int = row[0]
    return found


def renumber(c: sqlite3.Connection, row: DeliveryRow, seq: int) -> None:
    """Give a queued delivery another place."""
    c.execute("UPDATE deliveries SET seq = ? WHERE id = ?", (seq, row.id))


def in_flight(c: sqlite3.Connection, host_id: HostId) -> list[DeliveryRow]:
    rows = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND in_flight = 1 ORDER BY seq", (host_id,)
    )
    return [_row(row) for row in rows]


def received(c: sqlite3.Connection, host_id: HostId) -> list[DeliveryRow]:
    """What is on the machine's disk and has not begun."""
    rows = c.execute(
        "SELECT * FROM deliveries WHERE host_id = ? AND in_flight = 1 AND state = 'received'"
        " ORDER BY seq",
        (host_id,),
    )
    return [_row(row) for row in rows]


def in_flight_by_agent(c: sqlite3.Connection, host_id: HostId) -> Counter[AgentId]:
    """How many deliveries each agent of the host has in flight."""
    rows = c.execute(
        "SELECT agent_id FROM deliveries WHERE host_id = ? AND in_flight = 1", (host_id,)
    )
    return Counter(agent_id for (agent_id,) in rows)


def open_of_agent(
    c: sqlite3.Connection, agent_id: AgentId, host_ids: Sequence[HostId]
) -> list[DeliveryRow]:
    """With these machines: its own, and the ephemeral ones that serve it."""
    rows = [row for one in host_ids for row in open_of_host(c, one) if row.agent_id == agent_id]
    return sorted(rows, key=attrgetter("seq"))


def carried(
    c: sqlite3.Connection, upto: Sequence[tuple[HostId, int]]
) -> list[tuple[HostId, DeliveryRow]]:
    """What the frames in these hosts' outboxes up to these numbers deliver, in their order."""
    rows = c.execute(_CARRIED, (json.dumps(upto),))
    return [(row["carried_by"], _row(row)) for row in rows]


def head(c: sqlite3.Connection, host_id: HostId, agent_id: AgentId) -> DeliveryRow | None:
    """What waits longest for this agent, with this host."""
    row = c.execute(
        "SELECT * FROM deliveries WHERE agent_id = ? AND host_id = ? AND state = 'queued' AND held = 0"
        " ORDER BY seq LIMIT 1",
        (agent_id, host_id),
    ).fetchone()
    return _row(row) if row else None


def busy(c: sqlite3.Connection, own: HostId, besides: HostId) -> set[ConversationId]:
    """Conversations of a host's agents that another machine than `besides` has at the moment."""
    rows = c.execute(
        "SELECT conversation_id FROM deliveries WHERE host_id = ?1 AND host_id <> ?2"
        " AND in_flight = 1"
        " UNION SELECT conversation_id FROM deliveries WHERE lent_by = ?1 AND host_id <> ?2"
        " AND in_flight = 1",
        (own, besides),
    )
    return {row[0] for row in rows}


def lent(c: sqlite3.Connection, own: HostId) -> list[DeliveryRow]:
    """What ephemeral hosts have in flight of this host's agents."""
    rows = c.execute("SELECT * FROM deliveries WHERE lent_by = ? AND in_flight = 1", (own,))
    return [_row(row) for row in rows]


def hand_over(
    c: sqlite3.Connection, row: DeliveryRow, host_id: HostId, *, pinned: bool
) -> DeliveryRow | None:
    """Put a queued delivery into the queue of an ephemeral host; null if it is queued no more."""
    rows = c.execute(
        "UPDATE deliveries SET host_id = ?, lent_by = ?, pinned = ?"
        " WHERE id = ? AND host_id = ? AND state = 'queued' RETURNING *",
        (host_id, row.host_id, pinned, row.id, row.host_id),
    ).fetchall()
    return _row(rows[0]) if rows else None


def give_back(c: sqlite3.Connection, row: DeliveryRow) -> DeliveryRow:
    """Put a queued delivery back where it was taken from."""
    [changed] = c.execute(
        "UPDATE deliveries SET host_id = lent_by, lent_by = NULL WHERE id = ? RETURNING *",
        (row.id,),
    ).fetchall()
    return _row(changed)


def summaries(
    c: sqlite3.Connection, message_ids: Sequence[MessageId]
) -> dict[MessageId, list[DeliverySummary]]:
    """What a message shows of its deliveries, for many messages in one query."""
    found: dict[MessageId, list[DeliverySummary]] = {message_id: [] for message_id in message_ids}
    rows = c.execute(
        "SELECT message_id, id, agent_id, seq, state, mode, retry_of FROM deliveries"
        " WHERE message_id IN (SELECT value FROM json_each(?)) ORDER BY id",
        (json.dumps(message_ids),),
    )
    for row in rows:
        values = dict(row)
        found[values.pop("message_id")].append(DeliverySummary.model_validate(values))
    return found


def move(
    c: sqlite3.Connection,
    row: DeliveryRow,
    target: DeliveryState,
    sources: Collection[DeliveryState],
    rungs: Sequence[NewRung] = (),
    *,
    outcome: str | None = None,
    reason: str | None = None,
    attempt: int | None = None,
    run_id: str | None = None,
) -> DeliveryRow | None:
    """Change the state if it is one of `sources`, and add rungs; null if it is another.

    One statement where `row` is as it stands; where it is not, it is read again.
    """
    if row.state in sources:
        moved = row.but(
            state=target,
            outcome=outcome or row.outcome,
            reason=reason,
            attempt=attempt or row.attempt,
            run_id=run_id or row.run_id,
            rungs=_extended(row.rungs, rungs),
        )
        if _put(c, row, moved):
            return moved
    current = load(c, row.id)
    if current is None or current == row:
        return None
    return move(
        c,
        current,
        target,
        sources,
        rungs,
        outcome=outcome,
        reason=reason,
        attempt=attempt,
        run_id=run_id,
    )


def move_all(
    c: sqlite3.Connection,
    rows: Sequence[tuple[DeliveryRow, Sequence[NewRung]]],
    target: DeliveryState,
    sources: Collection[DeliveryState],
) -> list[DeliveryRow | None]:
    """As `move`, of many, each with its new rungs; one statement where all are as they stand."""
    moved = [
        row.but(state=target, reason=None, rungs=_extended(row.rungs, rungs)) for row, rungs in rows
    ]
    plain = all(row.state in sources and row.state in _IN_FLIGHT for row, _ in rows)
    if plain and target in _IN_FLIGHT:
        changes = [_change(row, new) for (row, _), new in zip(rows, moved, strict=True)]
        if c.executemany(_PUT + _IF_AS_READ, changes).rowcount == len(rows):
            return [*moved]
    return [
        new if load(c, row.id) == new else move(c, row, target, sources, rungs)
        for (row, rungs), new in zip(rows, moved, strict=True)
    ]


def note(c: sqlite3.Connection, row: DeliveryRow, rung: NewRung) -> DeliveryRow:
    """Add a rung without a change of state."""
    noted = row.but(rungs=_extended(row.rungs, [rung]))
    if _put(c, row, noted):
        return noted
    current = load(c, row.id)
    return row if current is None or current == row else note(c, current, rung)


_IF_AS_READ: Final = (
    " WHERE id = ? AND state = ? AND rungs = ? AND interrupted_by IS ? AND held = ? AND host_id = ?"
)
_PUT: Final = (
    "UPDATE deliveries SET state = ?, outcome = ?, reason = ?, attempt = ?, run_id = ?, rungs = ?"
)
#: Named only where it changes: what is named is written into its indexes anew.
_TURN_FLIGHT: Final = ", in_flight = 1 - in_flight"


def _put(c: sqlite3.Connection, old: DeliveryRow, new: DeliveryRow) -> bool:
    """Write what may change of a delivery, if it still stands as it was read."""
    stays = (old.state in _IN_FLIGHT) is (new.state in _IN_FLIGHT)
    statement = _PUT + _IF_AS_READ if stays else _PUT + _TURN_FLIGHT + _IF_AS_READ
    return c.execute(statement, _change(old, new)).rowcount == 1


def _change(old: DeliveryRow, new: DeliveryRow) -> tuple[object, ...]:
    return (
        new.state.value,
        new.outcome,
        new.reason,
        new.attempt,
        new.run_id,
        new.rungs,
        old.id,
        old.state.value,
        old.rungs,
        old.interrupted_by,
        old.held,
        old.host_id,
    )


def interrupted(
    c: sqlite3.Connection, delivery_id: DeliveryId, actor: str, *, now: bool = False
) -> None:
    """Remember who asked to stop it, and who asked to end it `now`; the first of each."""
    c.execute(
        "UPDATE deliveries SET interrupted_by = coalesce(interrupted_by, ?1),"
        " ended_by = coalesce(ended_by, ?2) WHERE id = ?3",
        (actor, actor if now else None, delivery_id),
    )


@dataclass(frozen=True, slots=True)
class Waits:
    """Why a delivery has not begun; of a machine that takes nothing its name, and since when."""

    reason: str
    on: str | None = None
    since_us: int | None = None
    #: When that is over, if it is known.
    until_us: int | None = None


_NOTHING: Final = Waits("")


def trace(row: DeliveryRow, waits: Waits | None = None) -> DeliveryTrace:
    """The delivery as the API shows it; one that waits says for what."""
    return DeliveryTrace.model_validate_json(trace_text(row, waits))


def trace_text(row: DeliveryRow, waits: Waits | None = None) -> str:
    """As `trace`, in JSON: most steps of a delivery are only told, and its ladder is text already."""
    waits = waits or _NOTHING
    reason, until_us = waits.reason or row.reason, waits.until_us
    if row.state is DeliveryState.QUEUED and row.held:
        reason, until_us = row.held_for or "budget", row.resumes_us
        if row.held_for == "budget":
            until_us = usage.end_of(usage.today())
    fields = {
        "id": row.id,
        "message_id": row.message_id,
        "conversation_id": row.conversation_id,
        "agent_id": row.agent_id,
        "run_id": row.run_id,
        "state": row.state.value,
        "mode": row.mode.value,
        "retry_of": row.retry_of,
        "outcome": row.outcome,
        "reason": reason,
        "waits_on": waits.on,
        "waits_since": clock.rfc3339(waits.since_us) if waits.since_us else None,
        "waits_until": clock.rfc3339(until_us) if until_us else None,
        "attempt": row.attempt,
        "interrupted_by": row.interrupted_by if row.outcome is None else None,
        "ended_by": row.ended_by if row.outcome is None else None,
    }
    return f'{json_text(fields)[:-1]},"rungs":{row.rungs}}}'
