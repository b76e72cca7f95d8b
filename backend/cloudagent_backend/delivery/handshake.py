"""A daemon's hello: do the two histories fit, and what of the work is still its own."""

import logging
import sqlite3
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.delivery import approvals, ladder, receipts, sending, states
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import agents, deliveries, events, hosts, outbox, runs
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.outbox import LinkRow
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import Hello, Interrupt
from cloudagent_protocol.ids import DeliveryId, HostId, RunId, UserId
from cloudagent_protocol.link import resume
from cloudagent_protocol.resources import (
    AgentRef,
    AgentStatus,
    DeliveryState,
    EventType,
    HostState,
    RungName,
    RunState,
)

logger = logging.getLogger(__name__)
_DEFAULT: Final = Limits()


@dataclass(frozen=True)
class Greeting:
    """What the welcome says, and what this side starts its link with."""

    link: LinkRow
    agents: list[AgentRef]
    drop: list[DeliveryId]
    live_runs: list[RunRow]
    #: Runs that were cut off, because the daemon no longer knows their messages.
    abandoned: list[RunId]


def greet(
    c: sqlite3.Connection, machine: Machine, hello: Hello, limits: Limits = _DEFAULT
) -> Greeting:
    """Resume the host's history, or begin a new epoch and reconcile by delivery id."""
    _note_host(c, machine, hello)
    receipts.hold(c, machine, hello.holds)
    link = _resumed(c, machine, hello)
    abandoned: list[RunId] = []
    if link is None:
        if hello.epoch is not None:
            # A restored backup on one side, or a state that was lost: an operator should know.
            about = {"action": "epoch", "host_id": machine.host_id}
            logger.warning(
                "the history of %s does not fit; a new one begins", machine.name, extra=about
            )
        link = outbox.start_epoch(c, machine.host_id)
        abandoned = _reconcile(c, machine, set(hello.unfinished))
    else:
        _ask_about(c, machine, set(hello.unfinished), limits)
    return Greeting(
        link=link,
        agents=ladder.roster(c, machine.host_id),
        drop=[one for one in hello.unfinished if _is_over(c, machine, one)],
        live_runs=runs.live_of_host(c, machine.host_id),
        abandoned=abandoned,
    )


def leave(c: sqlite3.Connection, machine: Machine) -> list[RunRow]:
    """The host's newest connection is gone; returns the runs that are alive on it all the same."""
    hosts.set_state(c, machine.host_id, HostState.OFFLINE)
    tell_presence(c, machine.user_id, machine.host_id)
    return runs.live_of_host(c, machine.host_id)


def tell_presence(c: sqlite3.Connection, user_id: UserId, host_id: HostId) -> None:
    """The host, and its agents, whose shown status depends on it."""
    host = hosts.load(c, user_id, host_id)
    if host is None:
        return
    events.append(c, user_id, EventType.HOST_UPDATED, hosts.resource(host))
    for agent in agents.served_by(c, host):
        events.append(c, user_id, EventType.AGENT_UPDATED, agents.resource(c, agent))


def _note_host(c: sqlite3.Connection, machine: Machine, hello: Hello) -> None:
    machine.draining = hello.draining
    hosts.greet(
        c,
        machine.host_id,
        hosts.here(draining=hello.draining),
        hostname=hello.hostname,
        os=hello.os,
        daemon_version=hello.daemon_version,
        runtimes=hello.runtimes,
    )
    tell_presence(c, machine.user_id, machine.host_id)


def _resumed(c: sqlite3.Connection, machine: Machine, hello: Hello) -> LinkRow | None:
    link = outbox.link(c, machine.host_id)
    if link is None or link.epoch != hello.epoch:
        return None
    try:
        resume(outbox_acked=link.acked, outbox_last=link.last, peer_has=hello.last_seq)
    except ProtocolError:
        return None
    receipts.acked(c, [(machine, hello.last_seq)])
    return LinkRow(link.epoch, link.accepted, hello.last_seq, link.last)


def _ask_about(
    c: sqlite3.Connection, machine: Machine, held: set[DeliveryId], limits: Limits
) -> None:
    """Numbers that fit are no proof: what the machine took in and does not list is offered again.

    It does nothing if it has it after all, says the end once more if that was reached, or takes it in.
    """
    for row in deliveries.in_flight(c, machine.host_id):
        taken_in = row.id not in held and row.state is not DeliveryState.LEASED
        if taken_in and not outbox.has_delivery(c, machine.host_id, row.id):
            sending.offer_again(c, row, machine.name, limits)


def _reconcile(c: sqlite3.Connection, machine: Machine, held: set[DeliveryId]) -> list[RunId]:
    """What the daemon holds stays with it, the rest goes back into the queue.

    Returns the runs that this cuts off.
    """
    abandoned: list[RunId] = []
    for row in deliveries.in_flight(c, machine.host_id):
        if row.id not in held:
            abandoned += _take_back(c, row)
    for delivery_id in sorted(held):
        row = deliveries.load(c, delivery_id)
        if row and row.host_id == machine.host_id:
            _leave_there(c, machine, row)
    return abandoned


def _leave_there(c: sqlite3.Connection, machine: Machine, row: DeliveryRow) -> None:
    """The machine has it, even if a restored backup says that it still waits here.

    An interrupt or a decision that was under way went down with the old outbox, and is said again.
    """
    row = receipts.receive(c, machine, row)
    if row.interrupted_by and row.state not in states.ENDS:
        interrupt = Interrupt(
            delivery_id=row.id,
            actor=row.ended_by or row.interrupted_by,
            now=bool(row.ended_by) or None,
        )
        outbox.put(c, machine.host_id, interrupt)
    approvals.say_again(c, row)


def _take_back(c: sqlite3.Connection, row: DeliveryRow) -> list[RunId]:
    abandoned: list[RunId] = []
    run = runs.load(c, RunId(row.run_id)) if row.run_id else None
    if run is not None and run.state is not RunState.FINISHED:
        ladder.abandon_run(c, run)
        abandoned.append(run.id)
        if not runs.has_live(c, run.host_id, run.agent_id):
            ladder.show_agent(c, run.user_id, run.agent_id, AgentStatus.IDLE)
    moved = ladder.move(c, row, DeliveryState.QUEUED, *_lost(row))
    if moved is None:
        return abandoned
    if row.interrupted_by:
        ladder.close(
            c,
            moved,
            DeliveryState.CANCELLED,
            actor=row.interrupted_by,
            detail="stopped before it began",
            reason=Reason.INTERRUPTED,
        )
    else:
        ladder.tell(c, moved)
    return abandoned


def _lost(row: DeliveryRow) -> list[NewRung]:
    """What a delivery says that its machine no longer knows.

    Work that had begun was cut off. What was only on the machine waits again; should work on it have
    begun unheard, the machine knows that by its agent's own files, and says so when it goes on. What
    was under way says nothing.
    """
    if row.state is DeliveryState.LEASED:
        return []
    begun = row.state is not DeliveryState.RECEIVED
    name = RungName.INTERRUPTED if begun else RungName.WAITING
    detail = "the machine no longer knows this message; it is sent again"
    return [NewRung(name, ladder.BACKEND, detail, reason=Reason.DAEMON_STOPPED.value)]


def _is_over(c: sqlite3.Connection, machine: Machine, delivery_id: DeliveryId) -> bool:
    """Whether the daemon should forget it; also one that was never its own."""
    row = deliveries.load(c, delivery_id)
    return row is None or row.host_id != machine.host_id or row.state in states.ENDS
