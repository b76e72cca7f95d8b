"""What an agent may use in a day: above it, what is further wanted waits until a person has decided.

Looked at where a delivery is leased, and only for agents that have a budget: everybody else's messages
take their way without it. What a turn uses is known at its end, so a budget may be passed by the turns
that run when it is reached. A person lets the agent have as much again from there on, or stops what waits; a new day
(UTC), or a larger budget, lets it go on as well. What a pause answers is counted: the first word wins.

All of it runs inside the caller's transaction.
"""

import sqlite3

from cloudagent_backend.delivery import ladder
from cloudagent_backend.store import agents, deliveries, events, usage
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.usage import DayRow
from cloudagent_protocol.events import Reason
from cloudagent_protocol.resources import AgentLimits, EventType, RungName


def passed(limits: AgentLimits, day: DayRow) -> str | None:
    """Why an agent may begin no turn on this day; null if it may."""
    tokens = limits.day_tokens
    if tokens is not None and day.tokens - day.from_tokens >= tokens:
        return f"it has used {day.tokens:,} tokens today, and may use {day.from_tokens + tokens:,}"
    cost = limits.day_cost_usd
    if cost is not None and day.cost_usd - day.from_cost_usd >= cost:
        allowed = day.from_cost_usd + cost
        return f"it has cost ${day.cost_usd:,.2f} today, and may cost ${allowed:,.2f}"
    return None


def has_one(limits: AgentLimits) -> bool:
    return limits.day_tokens is not None or limits.day_cost_usd is not None


def why_not(c: sqlite3.Connection, agent: AgentRow) -> str | None:
    """Why nothing of this agent may be leased now."""
    if not has_one(agent.limits):
        return None
    return passed(agent.limits, usage.load(c, agent.id, usage.today()))


def may_go(c: sqlite3.Connection, row: DeliveryRow, agent: AgentRow | None) -> bool:
    """Whether this queued delivery may be leased now; if not, it is held and its agent pauses."""
    why = why_not(c, agent) if agent else None
    if agent is None or why is None:
        return True
    detail = f"{why}; a person decides whether it goes on today"
    rung = NewRung(RungName.WAITING, ladder.BACKEND, detail, reason=Reason.BUDGET.value)
    ladder.tell(c, deliveries.hold(c, row, rung, Reason.BUDGET.value))
    if usage.pause(c, agent.user_id, agent.id, usage.today()):
        tell(c, agent)
    return False


def tell(c: sqlite3.Connection, agent: AgentRow) -> None:
    """The agent has paused, or goes on."""
    events.append(c, agent.user_id, EventType.AGENT_UPDATED, agents.resource(c, agent))
