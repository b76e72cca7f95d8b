"""What agents have used: one row for each agent and day (UTC), written with the end of a run.

The row of a day also holds that day's pause: it was found above the agent's budget, and a person is asked.
"""

import json
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cloudagent_backend.store import clock
from cloudagent_protocol.events import Usage
from cloudagent_protocol.ids import AgentId, MessageId, UserId
from cloudagent_protocol.resources import ChainAnswer, DayUsage


@dataclass(frozen=True)
class DayRow:
    """A day of an agent; one that has done nothing yet is all zero."""

    agent_id: AgentId
    day: str
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    #: How often a person has let it go on that day, and what had been used then.
    continues: int = 0
    from_tokens: int = 0
    from_cost_usd: float = 0.0
    pauses: int = 0
    paused_us: int | None = None
    answers: list[ChainAnswer] = field(default_factory=list[ChainAnswer])

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def day_of(at_us: int) -> str:
    """The day of a time, in UTC."""
    return clock.at(at_us).astimezone(UTC).date().isoformat()


def today() -> str:
    return day_of(clock.now_us())


def end_of(day: str) -> int:
    """When a day is over, in microseconds."""
    return clock.to_us(datetime.fromisoformat(f"{day}T00:00:00+00:00") + timedelta(days=1))


def add(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId, day: str, used: Usage) -> None:
    """A turn of the agent has ended that day, and has used so much."""
    c.execute(
        "INSERT INTO usage_days (agent_id, day, user_id, turns, input_tokens, output_tokens, cost_usd)"
        " VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT (agent_id, day) DO UPDATE SET turns = turns + 1,"
        " input_tokens = input_tokens + excluded.input_tokens,"
        " output_tokens = output_tokens + excluded.output_tokens,"
        " cost_usd = cost_usd + excluded.cost_usd",
        (agent_id, day, user_id, used.input_tokens, used.output_tokens, used.cost_usd or 0.0),
    )


def add_to_chain(c: sqlite3.Connection, chain_id: MessageId, used: Usage) -> None:
    """As `add`, for the chain; one in which no agent has messaged another one has no row."""
    c.execute(
        "UPDATE chains SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,"
        " cost_usd = cost_usd + ? WHERE id = ?",
        (used.input_tokens, used.output_tokens, used.cost_usd or 0.0, chain_id),
    )


def of_message(c: sqlite3.Connection, message_id: MessageId) -> Usage:
    """What the runs have used that worked on a message and are over."""
    row = c.execute(
        "SELECT coalesce(sum(r.usage ->> 'input_tokens'), 0) AS input_tokens,"
        " coalesce(sum(r.usage ->> 'output_tokens'), 0) AS output_tokens,"
        " sum(r.usage ->> 'cost_usd') AS cost_usd"
        " FROM deliveries d JOIN runs r ON r.id = d.run_id"
        " WHERE d.message_id = ? AND r.state = 'finished'",
        (message_id,),
    ).fetchone()
    return Usage.model_validate(dict(row))


def load(c: sqlite3.Connection, agent_id: AgentId, day: str) -> DayRow:
    row = c.execute(
        "SELECT * FROM usage_days WHERE agent_id = ? AND day = ?", (agent_id, day)
    ).fetchone()
    if row is None:
        return DayRow(agent_id, day)
    values: dict[str, Any] = dict(row)
    del values["user_id"]
    told = json.loads(values.pop("answers"))
    return DayRow(**values, answers=[ChainAnswer.model_validate(one) for one in told])


def page(
    c: sqlite3.Connection,
    user_id: UserId,
    since: str,
    until: str,
    agent_id: AgentId | None,
    *,
    limit: int,
    after: tuple[str, str] | None,
) -> list[DayUsage]:
    """Days from `since` to `until`, both included, the newest first, below the (day, agent) `after`."""
    day, below = after or (until, "~")
    rows = c.execute(
        "SELECT agent_id, day, turns, input_tokens, output_tokens, cost_usd FROM usage_days"
        " WHERE user_id = :user AND day BETWEEN :since AND :until AND (:agent IS NULL OR agent_id = :agent)"
        " AND (day, agent_id) < (:day, :below) ORDER BY day DESC, agent_id DESC LIMIT :limit",
        {
            "user": user_id,
            "since": since,
            "until": until,
            "agent": agent_id,
            "day": day,
            "below": below,
            "limit": limit,
        },
    )
    return [DayUsage.model_validate(dict(row)) for row in rows]


def pause(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId, day: str) -> bool:
    """It has used up what it may that day; returns whether that is news."""
    changed = c.execute(
        "INSERT INTO usage_days (agent_id, day, user_id, pauses, paused_us) VALUES (?1, ?2, ?3, 1, ?4)"
        " ON CONFLICT (agent_id, day) DO UPDATE SET pauses = pauses + 1, paused_us = ?4"
        " WHERE paused_us IS NULL",
        (agent_id, day, user_id, clock.now_us()),
    )
    return changed.rowcount > 0


def answer(c: sqlite3.Connection, row: DayRow, added: ChainAnswer) -> None:
    """Keep what a person has decided about a pause."""
    told = [one.model_dump(mode="json") for one in (*row.answers, added)]
    c.execute(
        "UPDATE usage_days SET paused_us = NULL, answers = ? WHERE agent_id = ? AND day = ?",
        (json.dumps(told), row.agent_id, row.day),
    )
    if added.decision == "continue":
        c.execute(
            "UPDATE usage_days SET continues = continues + 1,"
            " from_tokens = input_tokens + output_tokens, from_cost_usd = cost_usd"
            " WHERE agent_id = ? AND day = ?",
            (row.agent_id, row.day),
        )


def lift(c: sqlite3.Connection, agent_id: AgentId) -> None:
    """No day of the agent's is paused any more: the day is over, or it may have more."""
    c.execute(
        "UPDATE usage_days SET paused_us = NULL WHERE agent_id = ? AND paused_us IS NOT NULL",
        (agent_id,),
    )


def over_before(c: sqlite3.Connection, day: str) -> list[AgentId]:
    """Agents that are paused for a day before this one."""
    rows = c.execute(
        "SELECT DISTINCT agent_id FROM usage_days WHERE paused_us IS NOT NULL AND day < ?", (day,)
    )
    return [agent_id for (agent_id,) in rows]
