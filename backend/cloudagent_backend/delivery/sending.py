"""From the queue to a machine: leases, as far as it has room, and what else its outbox is given.

All of it runs inside the caller's transaction.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.delivery import budgets, chains, ladder, lending, shares
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.framing import deliver, narrowed
from cloudagent_backend.store import (
    agents,
    deliveries,
    messages,
    outbox,
)
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import (
    AgentsChanged,
    Interrupt,
    Retried,
)
from cloudagent_protocol.ids import (
    AgentId,
    DeliveryId,
    HostId,
)
from cloudagent_protocol.resources import (
    DeliveryMode,
    DeliveryState,
    Message,
    RungName,
)

_DEFAULT: Final = Limits()


@dataclass(frozen=True)
class ReadyHost:
    """A host that can take work now."""

    id: HostId
    #: Whether its daemon stops by itself what a message interrupts.
    interrupts: bool = True


def lease(
    c: sqlite3.Connection, host: ReadyHost, window: int, limits: Limits = _DEFAULT
) -> list[DeliveryRow]:
    """Number frames for as many queued deliveries as the host's window has room for.

    Returns those that may be leased no more: leased, given up, or held with their chain.
    """
    done: list[DeliveryRow] = []
    known: dict[AgentId, AgentRow | None] = {}
    while rows := _due(c, host.id, window):
        free = [row for row in rows if _may_go(c, row, known)]
        for row in free:
            _lease_one(c, host, row, known[row.agent_id], limits)
        done += rows
        if len(free) == len(rows):
            break
    chains.tell_paused(c, done)
    return done


def _may_go(c: sqlite3.Connection, row: DeliveryRow, known: dict[AgentId, AgentRow | None]) -> bool:
    """Whether neither its agent nor its chain has to wait for a person; `known` has its agent then."""
    if row.agent_id not in known:
        known[row.agent_id] = agents.load(c, row.user_id, row.agent_id)
    return budgets.may_go(c, row, known[row.agent_id]) and chains.may_go(c, row)


def _lease_one(
    c: sqlite3.Connection,
    host: ReadyHost,
    row: DeliveryRow,
    agent: AgentRow | None,
    limits: Limits,
) -> None:
    message = messages.load_bare(c, row.message_id)
    if agent is None or message is None:
        ladder.give_up(c, row, "the agent was removed", Reason.AGENT_UNKNOWN)
    elif leased := ladder.move(c, row, DeliveryState.LEASED, *_told_otherwise(agent, message)):
        try:
            again = _retried(c, row)
            outbox.put(c, host.id, deliver(row, agent, message, limits.hops, again))
        except ProtocolError:
            detail = "the message and its agent's settings do not fit into one frame"
            ladder.give_up(c, leased, detail, Reason.TOO_LARGE)
        else:
            if row.mode is DeliveryMode.INTERRUPT:
                _make_way(c, row, message, told=not host.interrupts)


def _told_otherwise(agent: AgentRow, message: Message) -> list[NewRung]:
    why = narrowed(agent, message)
    return [NewRung(RungName.STORED, ladder.BACKEND, why)] if why else []


def offer_again(c: sqlite3.Connection, row: DeliveryRow, host_name: str, limits: Limits) -> None:
    """Send a delivery once more that its machine should be at work on, and does not list."""
    agent, message = agents.load_any(c, row.agent_id), messages.load_bare(c, row.message_id)
    if agent is None or message is None:
        return
    outbox.put(c, row.host_id, deliver(row, agent, message, limits.hops, _retried(c, row)))
    detail = f"{host_name} does not list it as running any more; it is asked what became of it"
    rung = NewRung(RungName.WAITING, ladder.BACKEND, detail, reason=Reason.UNLISTED.value)
    ladder.tell(c, deliveries.note(c, row, rung))


def _due(c: sqlite3.Connection, host_id: HostId, window: int) -> list[DeliveryRow]:
    waiting = deliveries.waiting_agents(c, host_id)
    if not waiting:
        return []
    in_flight = deliveries.in_flight_by_agent(c, host_id)
    room = max(1, window - in_flight.total())
    queued = [row for one in waiting for row in deliveries.queued(c, host_id, one, room)]
    lines: dict[AgentId, list[DeliveryRow]] = {}
    for row in lending.in_turn(c, host_id, queued):
        lines.setdefault(row.agent_id, []).append(row)
    return shares.allot(window, in_flight, lines)


def _make_way(c: sqlite3.Connection, row: DeliveryRow, message: Message, *, told: bool) -> None:
    """Note for people what a message interrupts: what runs on the host in its conversation.

    The machine judges by itself what that is when the message arrives; one that cannot is `told`.
    """
    for other in deliveries.in_flight(c, row.host_id):
        if (
            other.conversation_id == row.conversation_id
            and other.message_id != row.message_id
            and other.state in {DeliveryState.RUNNING, DeliveryState.WAITING}
            and other.interrupted_by is None
        ):
            deliveries.interrupted(c, other.id, message.author.name)
            if told:
                interrupt = Interrupt(delivery_id=other.id, actor=message.author.name)
                outbox.put(c, row.host_id, interrupt)
            ladder.tell_of(c, other.id)


def _retried(c: sqlite3.Connection, row: DeliveryRow) -> Retried | None:
    over = deliveries.load(c, row.retry_of) if row.retry_of else None
    if over is None:
        return None
    return Retried(
        delivery_id=over.id,
        actor=row.retried_by or ladder.BACKEND,
        outcome=over.outcome or over.state.value,
        reason=over.reason,
        began=over.has_rung(RungName.STARTED),
    )


def sent(c: sqlite3.Connection, times_us: Mapping[DeliveryId, int]) -> None:
    """Their frames were written to a socket, then. An ack that was faster has said so already."""
    for delivery_id, at_us in times_us.items():
        row = deliveries.load(c, delivery_id)
        if row and row.state is DeliveryState.LEASED and not row.has_rung(RungName.SENT):
            rung = NewRung(RungName.SENT, ladder.BACKEND, None, at_us)
            ladder.tell(c, deliveries.note(c, row, rung))


def change_agents(c: sqlite3.Connection, host_id: HostId) -> None:
    """Tell a machine its agents anew; one that never connected learns them by its welcome."""
    if outbox.link(c, host_id):
        outbox.put(c, host_id, AgentsChanged(agents=ladder.roster(c, host_id)))
