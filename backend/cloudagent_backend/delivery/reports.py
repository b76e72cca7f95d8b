"""What a machine's numbered frames change, in the transaction that also accepts their numbers.

A frame is judged whole before anything of it is written. One that a machine has no right to send
ends the group: what came before it is kept, the connection closes. One that is about something
that is gone (a removed agent, a delivery from after a restored backup) is accepted and ignored,
because refusing it would hold up the machine's queue for ever.
"""

import sqlite3
from collections.abc import Sequence

from cloudagent_backend.delivery import agent_messages, ladder, run_reports, sending, states
from cloudagent_backend.delivery.groups import Applied, Reported
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.receipts import acked, drain, hold, tell_host
from cloudagent_backend.delivery.relay import Relay
from cloudagent_backend.delivery.run_reports import deliveries_of
from cloudagent_backend.store import (
    clock,
    deliveries,
    hosts,
    outbox,
    runs,
)
from cloudagent_backend.store.deliveries import NewRung
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import (
    Ack,
    DeliveryReport,
    Delta,
    Heartbeat,
    HostReport,
    RunDiff,
    RunReport,
    Send,
    UnknownFrame,
)
from cloudagent_protocol.ids import RunId
from cloudagent_protocol.resources import (
    DeliveryState,
    RungName,
    RunState,
)


def apply(
    c: sqlite3.Connection, machine: Machine, frames: Sequence[Reported], relay: Relay
) -> Applied:
    """Keep what the frames say and accept their numbers; `Applied` tells how far it went."""
    applied = Applied()
    accepted = 0
    for frame in frames:
        try:
            _apply_one(c, machine, frame, applied, relay)
        except ProtocolError as error:
            applied.error = error
            break
        applied.count += 1
        if not isinstance(frame, Ack | Delta | Heartbeat):
            accepted = frame.seq or accepted
    if accepted:
        outbox.accepted(c, machine.host_id, accepted)
    return applied


def _apply_one(
    c: sqlite3.Connection, machine: Machine, frame: Reported, applied: Applied, relay: Relay
) -> None:
    match frame:
        case RunReport():
            run_reports.report(c, machine, frame, applied, relay)
        case Send():
            applied.hosts |= agent_messages.take_in(c, machine, frame, relay)
        case DeliveryReport():
            _waits(c, machine, frame)
        case HostReport():
            hosts.set_runtimes(c, machine.host_id, frame.runtimes)
            tell_host(c, machine)
        case RunDiff():
            run_reports.keep_diff(c, machine, frame)
        case Ack():
            acked(c, [(machine, frame.seq)])
        case Delta():
            run_reports.begin_to_answer(c, machine, frame)
        case Heartbeat():
            _beat(c, machine, frame, applied, relay)
        case UnknownFrame():
            pass


def _beat(
    c: sqlite3.Connection, machine: Machine, frame: Heartbeat, applied: Applied, relay: Relay
) -> None:
    hold(c, machine, frame.holds)
    if drain(c, machine, draining=frame.draining) and not frame.draining:
        applied.hosts.add(machine.host_id)  # it takes work again
    for run_id in sorted(machine.gone(frame)):
        _ask_again(c, machine, run_id, relay)
        applied.hosts.add(machine.host_id)


def _ask_again(c: sqlite3.Connection, machine: Machine, run_id: RunId, relay: Relay) -> None:
    """Offer the messages of a run that the machine does not list: its dedupe by id is the answer.

    One that it holds it leaves as it is, one that ended there it answers with its end, and one that it
    does not know it runs, which its ladder says. Never by the clock: long turns are legal.
    """
    run = runs.load(c, run_id)
    # One that waits for people may have left, and is not expected to be listed.
    if run is None or run.host_id != machine.host_id or run.state is not RunState.RUNNING:
        return
    for row in deliveries_of(c, run):
        if row.state in {DeliveryState.RUNNING, DeliveryState.WAITING}:
            sending.offer_again(c, row, machine.name, relay.limits)


def _waits(c: sqlite3.Connection, machine: Machine, frame: DeliveryReport) -> None:
    row = deliveries.load(c, frame.delivery_id)
    if row is None:
        return
    if row.host_id != machine.host_id:
        raise ProtocolError(f"{frame.delivery_id} is not a delivery to this host")
    row = ladder.receive(c, row, machine.name)
    if row.state in states.ENDS:
        return
    at_us = min(clock.to_us(frame.at), clock.now_us())
    detail = frame.detail or None
    rung = NewRung(RungName.WAITING, machine.name, detail, at_us, str(frame.reason))
    ladder.tell(c, deliveries.note(c, row, rung))
