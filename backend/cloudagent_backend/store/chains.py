"""Chains in which agents have messaged agents: how many turns they had, and what people decided.

A person's message begins a chain, but has no row here before an agent of it messages another one.
"""

import json
import sqlite3
from dataclasses import dataclass

from cloudagent_backend.store import clock, usage
from cloudagent_backend.store.deliveries import LAST
from cloudagent_protocol.events import Usage
from cloudagent_protocol.ids import MessageId, UserId
from cloudagent_protocol.resources import (
    Author,
    Chain,
    ChainAnswer,
    ChainDecision,
    ChainState,
)

#: Characters of the first message that a chain shows.
OPENING_CHARS = 200


@dataclass(frozen=True)
class Allowance:
    """What a chain may use at once: at first, and again with each `continue`."""

    turns: int
    tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class ChainRow:
    id: MessageId
    user_id: UserId
    state: ChainState
    turns: int
    #: Turns that it may have before it pauses.
    allowed: int
    used: Usage
    allowed_tokens: int | None
    allowed_cost_usd: float | None
    pauses: int
    paused_us: int | None
    #: JSON array of `ChainAnswer`, oldest first.
    answers: str

    @property
    def last_answer(self) -> ChainAnswer | None:
        answers = json.loads(self.answers)
        return ChainAnswer.model_validate(answers[-1]) if answers else None


def _row(row: sqlite3.Row) -> ChainRow:
    return ChainRow(
        id=row["id"],
        user_id=row["user_id"],
        state=ChainState(row["state"]),
        turns=row["turns"],
        allowed=row["allowed"],
        used=Usage(
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cost_usd=row["cost_usd"] or None,
        ),
        allowed_tokens=row["allowed_tokens"],
        allowed_cost_usd=row["allowed_cost_usd"],
        pauses=row["pauses"],
        paused_us=row["paused_us"],
        answers=row["answers"],
    )


def begin(
    c: sqlite3.Connection, user_id: UserId, chain_id: MessageId, allowed: Allowance
) -> ChainRow:
    """The chain's row, made if it is the first time that an agent messages another one in it."""
    made = c.execute(
        "INSERT INTO chains (id, user_id, allowed, allowed_tokens, allowed_cost_usd)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (chain_id, user_id, allowed.turns, allowed.tokens, allowed.cost_usd),
    )
    if made.rowcount:  # what others did about the first message is over already
        usage.add_to_chain(c, chain_id, usage.of_message(c, chain_id))
    row = load(c, user_id, chain_id)
    assert row is not None
    return row


def load(c: sqlite3.Connection, user_id: UserId, chain_id: MessageId) -> ChainRow | None:
    row = c.execute(
        "SELECT * FROM chains WHERE id = ? AND user_id = ?", (chain_id, user_id)
    ).fetchone()
    return _row(row) if row else None


def page(
    c: sqlite3.Connection,
    user_id: UserId,
    *,
    limit: int,
    after: str = "",
    state: ChainState | None = None,
) -> list[ChainRow]:
    """The user's chains, newest first, below the id `after`."""
    sql = "SELECT * FROM chains WHERE user_id = ? AND id < ?"
    values: list[object] = [user_id, after or LAST]
    if state is ChainState.PAUSED:  # spelled out, so that the index of the paused ones serves it
        sql += " AND state = 'paused'"
    elif state is not None:
        sql += " AND state = ?"
        values.append(state.value)
    rows = c.execute(f"{sql} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [_row(row) for row in rows]


def take_turn(c: sqlite3.Connection, chain_id: MessageId) -> int | None:
    """The number of the turn that begins now; null if the chain may have none."""
    rows = c.execute(
        "UPDATE chains SET turns = turns + 1"
        " WHERE id = ? AND state = 'active' AND turns < allowed"
        " AND (allowed_tokens IS NULL OR input_tokens + output_tokens < allowed_tokens)"
        " AND (allowed_cost_usd IS NULL OR cost_usd < allowed_cost_usd) RETURNING turns",
        (chain_id,),
    ).fetchall()
    return rows[0][0] if rows else None


def pause(c: sqlite3.Connection, chain_id: MessageId) -> bool:
    """It has had its turns; returns whether that is news."""
    return (
        c.execute(
            "UPDATE chains SET state = 'paused', pauses = pauses + 1, paused_us = ?"
            " WHERE id = ? AND state = 'active'",
            (clock.now_us(), chain_id),
        ).rowcount
        > 0
    )


def answer(
    c: sqlite3.Connection, row: ChainRow, decision: ChainDecision, by: str, more: Allowance
) -> ChainRow:
    """Keep a person's decision about a chain that the caller has seen paused.

    If it goes on, it may have `more` beyond what it had.
    """
    added = ChainAnswer(decision=decision, by=by, at=clock.at(clock.now_us()))
    answers = [*json.loads(row.answers), added.model_dump(mode="json")]
    goes_on = decision == "continue"
    [changed] = c.execute(
        "UPDATE chains SET state = ?, allowed = turns + ?,"
        " allowed_tokens = input_tokens + output_tokens + ?, allowed_cost_usd = cost_usd + ?,"
        " paused_us = NULL, answers = ? WHERE id = ? RETURNING *",
        (
            (ChainState.ACTIVE if goes_on else ChainState.STOPPED).value,
            more.turns if goes_on else 0,
            more.tokens,
            more.cost_usd,
            json.dumps(answers, ensure_ascii=False, separators=(",", ":")),
            row.id,
        ),
    ).fetchall()
    return _row(changed)


def resource(c: sqlite3.Connection, row: ChainRow) -> Chain:
    first = c.execute(
        "SELECT conversation_id, author_type, author_id, author_name, text FROM messages"
        " WHERE id = ?",
        (row.id,),
    ).fetchone()
    places = c.execute(
        "SELECT d.agent_id, d.conversation_id, m.conversation_id, d.state = 'queued' AND d.held AND d.held_for IS NULL"
        " FROM deliveries d JOIN messages m ON m.id = d.message_id"
        " WHERE d.chain_id = ? ORDER BY d.id",
        (row.id,),
    ).fetchall()
    begun_in = first["conversation_id"] if first else places[0][2]
    author = (
        Author(type=first["author_type"], id=first["author_id"], name=first["author_name"])
        if first
        else Author(type="system", id="unknown", name="unknown")
    )
    conversations = [begun_in, *(where for place in places for where in (place[1], place[2]))]
    return Chain(
        id=row.id,
        conversation_id=begun_in,
        author=author,
        opening=first["text"][:OPENING_CHARS] if first else "",
        state=row.state,
        turns=row.turns,
        turns_allowed=row.allowed,
        usage=row.used,
        tokens_allowed=row.allowed_tokens,
        cost_usd_allowed=row.allowed_cost_usd,
        waiting=sum(place[3] for place in places),
        pauses=row.pauses,
        paused_at=clock.at_or_none(row.paused_us),
        answers=[ChainAnswer.model_validate(one) for one in json.loads(row.answers)],
        conversation_ids=list(dict.fromkeys(conversations)),
        agent_ids=list(dict.fromkeys(place[0] for place in places)),
    )
