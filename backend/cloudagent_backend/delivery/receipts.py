"""What a machine has on its disk, and whether it begins anything: acknowledged, held, drained.

All of it runs inside the caller's transaction.
"""

import sqlite3
from collections.abc import Sequence

from cloudagent_backend.delivery import holds, ladder, states
from cloudagent_backend.delivery.ladder import Receipt
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import (
    deliveries,
    events,
    hosts,
    outbox,
)
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.resources import (
    DeliveryState,
    EventType,
    Hold,
)


def acked(c: sqlite3.Connection, acks: Sequence[tuple[Machine, int]]) -> None:
    """These machines have all frames up to these numbers on their disks."""
    upto = [(machine.host_id, seq) for machine, seq in acks]
    by_host = {machine.host_id: machine for machine, _ in acks}
    carried = deliveries.carried(c, upto)
    outbox.acked(c, upto)
    _receive(c, [(by_host[host_id], row) for host_id, row in carried])


def receive(c: sqlite3.Connection, machine: Machine, row: DeliveryRow) -> DeliveryRow:
    """The machine has it on its disk; it may have said why it will not begin it yet."""
    [row] = _receive(c, [(machine, row)])
    return row


def _receive(
    c: sqlite3.Connection, taken: Sequence[tuple[Machine, DeliveryRow]]
) -> list[DeliveryRow]:
    receipts = [
        Receipt(row, machine.name, machine.sent.pop(row.id, None)) for machine, row in taken
    ]
    rows = ladder.receive_all(c, receipts)
    return [
        _held(c, machine, row) if row.state is DeliveryState.RECEIVED is not known.state else row
        for row, (machine, known) in zip(rows, taken, strict=True)
    ]


def _held(c: sqlite3.Connection, machine: Machine, row: DeliveryRow) -> DeliveryRow:
    """What was received, with the reason why its machine does not begin it."""
    held = states.hold_of(machine.holds, row.agent_id) if machine.holds else None
    if held:
        row = holds.wait(c, row, machine.name, held)
        ladder.tell(c, row)
    return row


def hold(c: sqlite3.Connection, machine: Machine, said: Sequence[Hold]) -> None:
    """The machine starts nothing for these reasons."""
    machine.holds[:] = said
    holds.heed(c, machine.user_id, machine.host_id, machine.name, said)


def drain(c: sqlite3.Connection, machine: Machine, *, draining: bool) -> bool:
    """The machine's daemon is shutting down, or is not after all; returns whether that is news."""
    if draining is machine.draining:
        return False
    machine.draining = draining
    hosts.set_state(c, machine.host_id, hosts.here(draining=draining))
    tell_host(c, machine)
    return True


def tell_host(c: sqlite3.Connection, machine: Machine) -> None:
    if host := hosts.load(c, machine.user_id, machine.host_id):
        events.append(c, machine.user_id, EventType.HOST_UPDATED, hosts.resource(host))
