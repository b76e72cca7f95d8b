"""How an agent that has used up its budget of the day goes on: a person's word, a larger budget, a new day.

Inside the caller's transaction.
"""

import sqlite3

from cloudagent_backend.delivery import ladder, stopping
from cloudagent_backend.delivery.budgets import tell, why_not
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.store import agents, clock, deliveries, hosts, usage
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_backend.store.usage import DayRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import AgentId, HostId, UserId
from cloudagent_protocol.resources import ChainAnswer, ChainDecide


def decide(
    c: sqlite3.Connection, user_id: UserId, by: str, agent_id: AgentId, body: ChainDecide
) -> tuple[AgentRow, set[HostId]]:
    """Let the agent use as much again today, or stop what waits; whose queues have something then.

    Raises:
        Refused: there is no such agent, or it waits for nobody: who has answered is told.
    """
    agent = agents.load(c, user_id, agent_id)
    if agent is None:
        raise not_found()
    day = usage.load(c, agent_id, usage.today())
    if day.paused_us is None or body.pause not in {None, day.pauses}:
        raise _too_late(agent, day)
    usage.answer(c, day, ChainAnswer(decision=body.decision, by=by, at=clock.at(clock.now_us())))
    waiting = held(c, agent)
    if body.decision == "continue":
        _release(c, waiting)
    for row in waiting if body.decision == "stop" else ():
        stopping.stop(c, row, by, detail="the agent had used up its budget of the day")
    tell(c, agent)
    return agent, {row.host_id for row in waiting}


def look_again(c: sqlite3.Connection, agent: AgentRow) -> set[HostId]:
    """It may have more than before, or another day has begun; whose queues have something now."""
    if why_not(c, agent) is not None:
        return set()
    usage.lift(c, agent.id)
    waiting = held(c, agent)
    _release(c, waiting)
    if waiting:
        tell(c, agent)
    return {row.host_id for row in waiting}


def new_day(c: sqlite3.Connection) -> tuple[set[HostId], set[UserId]]:
    """What was held for a day that is over goes on, where today's budget has room."""
    found: set[HostId] = set()
    told: set[UserId] = set()
    for agent_id in usage.over_before(c, usage.today()):
        usage.lift(c, agent_id)
        agent = agents.load_any(c, agent_id)
        if agent and (hosts_of := look_again(c, agent)):
            found |= hosts_of
            told.add(agent.user_id)
    return found, told


def held(c: sqlite3.Connection, agent: AgentRow) -> list[DeliveryRow]:
    """What waits for the budget of this agent."""
    own = agent.host_machine_id
    machines = [own, *(helper.id for helper in hosts.children(c, own))]
    rows = [row for one in machines for row in deliveries.held_of_host(c, one)]
    mine = [row for row in rows if row.agent_id == agent.id and row.held_for == Reason.BUDGET.value]
    return sorted(mine, key=lambda row: row.seq)


def _release(c: sqlite3.Connection, rows: list[DeliveryRow]) -> None:
    """Back into the queue, where they were: nothing of the agent's has overtaken them."""
    for row in rows:
        ladder.tell(c, deliveries.release(c, row, row.seq))


def _too_late(agent: AgentRow, day: DayRow) -> Refused:
    if day.answers:
        last = day.answers[-1]
        said = f"{last.by} has answered already: {last.decision}."
    else:
        said = f"{agent.name} has not paused: it has used {day.tokens:,} tokens today."
    return Refused(ErrorCode.CONFLICT, said, next=f"See GET /v1/agents/{agent.id}.")
