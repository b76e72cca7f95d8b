"""Ephemeral hosts: what they take of another host's queue, and what becomes of it when they go.

An ephemeral host lives as long as one job and serves agents of the host whose key made it. Its
deliveries are the agents' own: taken from the own host's queue when it has room, and put back there
if the job's machine goes before an agent had them. What an agent had begun there ends with it: the
session was on that machine, and nobody can tell what was done. (docs/decisions/0010)
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from cloudagent_backend.delivery import ladder
from cloudagent_backend.store import agents, deliveries, events, hosts, outbox, runs
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import AgentId, HostId
from cloudagent_protocol.resources import AgentStatus, DeliveryState, EventType, RungName

#: An agent is known to have had it.
_BEGUN: Final = frozenset({DeliveryState.RUNNING, DeliveryState.WAITING})


def take(c: sqlite3.Connection, helper_id: HostId) -> None:
    """Move what the helper may still take from the queue of its parent into its own.

    Per agent in the order of their seq; of a conversation that is worked on elsewhere, nothing.
    """
    helper = hosts.load_any(c, helper_id)
    if helper is None or helper.parent_id is None or helper.deleted_us is not None:
        return
    for _ in range(helper.takes):
        row = _next(c, helper, helper.parent_id)
        if row is None or hand_over(c, row, helper, pinned=False) is None:
            return


def _next(c: sqlite3.Connection, helper: HostRow, parent_id: HostId) -> DeliveryRow | None:
    busy = deliveries.busy(c, parent_id, besides=helper.id)
    heads = [deliveries.head(c, parent_id, agent.id) for agent in agents.served_by(c, helper)]
    free = [row for row in heads if row and row.conversation_id not in busy]
    return min(free, key=lambda row: row.seq, default=None)


def hand_over(
    c: sqlite3.Connection, row: DeliveryRow, helper: HostRow, *, pinned: bool
) -> DeliveryRow | None:
    """Put a queued delivery into the helper's queue."""
    moved = deliveries.hand_over(c, row, helper.id, pinned=pinned)
    if moved is not None:
        outbox.moved(c, row.host_id, helper.id)
        hosts.took(c, helper.id)
    return moved


def in_turn(
    c: sqlite3.Connection, host_id: HostId, queued: Sequence[DeliveryRow]
) -> list[DeliveryRow]:
    """What of a host's queue may go now: a conversation is with one machine at a time.

    What must wait for another machine holds up what comes after it for the same agent.
    """
    owns = {row.lent_by or host_id for row in queued}
    busy = {one for own in owns for one in deliveries.busy(c, own, besides=host_id)}
    waits = set[AgentId]()
    free: list[DeliveryRow] = []
    for row in queued:
        if row.conversation_id in busy or row.agent_id in waits:
            waits.add(row.agent_id)
        else:
            free.append(row)
    return free


def remove(c: sqlite3.Connection, helper: HostRow) -> None:
    """The helper is gone for good: each of its deliveries gets an outcome, or goes back."""
    cut_off = runs.live_of_host(c, helper.id)
    for run in cut_off:
        ladder.abandon_run(c, run)
    for row in deliveries.open_of_host(c, helper.id):
        if row.state in _BEGUN:
            _end(c, row, f"{helper.name} was removed while the agent was at work on it")
        elif row.pinned:
            _end(c, row, f"{helper.name}, which it was meant for, was removed before it began")
        else:
            _give_back(c, row, helper)
    outbox.forget(c, helper.id)
    for agent_id in {run.agent_id for run in cut_off}:
        ladder.show_agent(c, helper.user_id, agent_id, AgentStatus.IDLE)


def remove_host(c: sqlite3.Connection, helper: HostRow) -> None:
    """As `remove`, and the host itself, its key and its place in lists."""
    remove(c, helper)
    hosts.delete(c, helper.id)
    gone = {"id": helper.id, "deleted": True}
    events.append(c, helper.user_id, EventType.HOST_UPDATED, gone)
    for agent in agents.served_by(c, helper):  # without it they may be offline
        events.append(c, helper.user_id, EventType.AGENT_UPDATED, agents.resource(c, agent))


def _end(c: sqlite3.Connection, row: DeliveryRow, detail: str) -> None:
    why = Reason.HOST_REMOVED
    ladder.close(c, row, DeliveryState.DEAD, actor=ladder.BACKEND, detail=detail, reason=why)


def _give_back(c: sqlite3.Connection, row: DeliveryRow, helper: HostRow) -> None:
    """Where it was already on the helper's disk, the ladder says that it left it again."""
    had_it = row.state is not DeliveryState.QUEUED and row.has_rung(RungName.RECEIVED)
    if row.state is not DeliveryState.QUEUED:
        detail = f"{helper.name} was removed before the agent is known to have begun"
        why = Reason.HOST_REMOVED.value
        rung = NewRung(RungName.INTERRUPTED, ladder.BACKEND, detail, reason=why)
        rungs = [rung] if had_it else []
        queued = ladder.move(c, row, DeliveryState.QUEUED, *rungs)
        if queued is None:
            return
    outbox.moved(c, helper.id, row.lent_by or helper.id)
    row = deliveries.give_back(c, row)
    if row.interrupted_by:
        ladder.close(
            c,
            row,
            DeliveryState.CANCELLED,
            actor=row.interrupted_by,
            detail="stopped before it began",
            reason=Reason.INTERRUPTED,
        )
    else:
        ladder.tell(c, row)
