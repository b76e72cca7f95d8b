"""One step of a delivery, told: the move, its rungs, and the line in its owner's event log.

All of it runs inside the caller's transaction.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.delivery import states
from cloudagent_backend.delivery.away import away
from cloudagent_backend.store import (
    agents,
    approvals,
    clock,
    deliveries,
    events,
    hosts,
    outbox,
    runs,
)
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung, Waits
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.ids import AgentId, ApprovalId, DeliveryId, HostId, UserId
from cloudagent_protocol.resources import (
    AgentRef,
    AgentStatus,
    ApprovalState,
    DeliveryState,
    DeliveryTrace,
    EventType,
    Message,
    RungName,
    Trace,
)

BACKEND = "backend"
#: Of what no machine is known to have.
_NOT_THERE: Final = frozenset({DeliveryState.QUEUED, DeliveryState.LEASED})


def trace(c: sqlite3.Connection, row: DeliveryRow) -> DeliveryTrace:
    return deliveries.trace(row, _waits(c, row))


def _waits(c: sqlite3.Connection, row: DeliveryRow) -> Waits | None:
    """Why it has not begun, if that has a reason."""
    here = row.state in {DeliveryState.QUEUED, DeliveryState.LEASED}
    if here and (gone := away(c, row.host_id, row.agent_id)):
        return Waits(gone.reason.value, gone.host, gone.since_us)
    # What a machine holds back has the rung; a look at the host for all others would be for nothing.
    if row.state is DeliveryState.RECEIVED and row.has_rung(RungName.WAITING):
        host = hosts.load_any(c, row.host_id)
        hold = states.hold_of(host.holds, row.agent_id) if host else None
        if hold is None:
            return None
        return Waits(hold.reason, until_us=clock.to_us(hold.until) if hold.until else None)
    if row.state is DeliveryState.WAITING:
        return Waits(row.waits_for or "")
    return None


def trace_of(c: sqlite3.Connection, user_id: UserId, message: Message) -> Trace:
    """Where a message is, with its place in its chain."""
    rows = deliveries.of_message(c, user_id, message.id)
    return Trace(
        message_id=message.id,
        deliveries=[trace(c, row) for row in rows],
        chain_id=message.chain_id,
        depth=message.depth,
        caused_by=message.caused_by,
    )


def tell(c: sqlite3.Connection, row: DeliveryRow, *, leaves: bool = False) -> None:
    """A line in the log of what has become of it; one that `leaves` now waits for no machine."""
    text = deliveries.trace_text(row, None if leaves else _waits(c, row))
    events.append(c, row.user_id, EventType.DELIVERY_UPDATED, text)


def tell_of(c: sqlite3.Connection, delivery_id: DeliveryId) -> None:
    """Tell a delivery as it now is."""
    if row := deliveries.load(c, delivery_id):
        tell(c, row)


def move(
    c: sqlite3.Connection,
    row: DeliveryRow,
    target: DeliveryState,
    *rungs: NewRung,
    outcome: str | None = None,
    reason: str | None = None,
    attempt: int | None = None,
    run_id: str | None = None,
) -> DeliveryRow | None:
    """Change the state if the table allows it; null if it does not. Nothing is told yet."""
    moved = deliveries.move(
        c,
        row,
        target,
        states.sources(target),
        rungs,
        outcome=outcome,
        reason=reason,
        attempt=attempt,
        run_id=run_id,
    )
    if moved is not None and target in states.ENDS:
        outbox.ended(c, row.host_id)
    leaves = target in states.ENDS or target is DeliveryState.QUEUED
    if moved is not None and leaves and row.has_rung(RungName.WAITING):
        _nobody_waits(c, row, outcome)
    return moved


def _nobody_waits(c: sqlite3.Connection, row: DeliveryRow, outcome: str | None) -> None:
    """The work on it is over, or was lost: what was asked in it is asked no longer, and that is told."""
    why = f"the run is over ({outcome})" if outcome else "its machine no longer knows the message"
    for asked in approvals.open_of(c, row.id):
        late = "the answer came too late: " if asked.state is ApprovalState.ANSWERED else ""
        end_request(c, asked.id, ApprovalState.CANCELLED, clock.now_us(), f"{late}{why}")


def end_request(
    c: sqlite3.Connection,
    approval_id: ApprovalId,
    state: ApprovalState,
    at_us: int,
    detail: str | None,
) -> None:
    """What became of a request of an agent to a person, told if that is news."""
    if ended := approvals.end(c, approval_id, state, at_us, detail):
        events.append(c, ended.user_id, EventType.APPROVAL_RESOLVED, ended.resource)


@dataclass(slots=True)
class Receipt:
    """A machine has a delivery on its disk."""

    row: DeliveryRow
    host_name: str
    #: When it was sent, where that is known and was not noted: one step tells of both.
    sent_us: int | None = None


def receive(c: sqlite3.Connection, row: DeliveryRow, host_name: str) -> DeliveryRow:
    """The machine has it on its disk, whatever was known before; told if that is news."""
    [row] = receive_all(c, [Receipt(row, host_name)])
    return row


def receive_all(c: sqlite3.Connection, receipts: Sequence[Receipt]) -> list[DeliveryRow]:
    """As `receive`, of many: they are moved, and told, together."""
    steps = [(one.row, _received(one)) for one in receipts if one.row.state in _NOT_THERE]
    target = DeliveryState.RECEIVED
    moved = iter(deliveries.move_all(c, steps, target, states.sources(target)))
    rows = [
        (next(moved) or one.row) if one.row.state in _NOT_THERE else one.row for one in receipts
    ]
    news = [row for row, one in zip(rows, receipts, strict=True) if row is not one.row]
    texts = [(row.user_id, deliveries.trace_text(row, _waits(c, row))) for row in news]
    events.append_all(c, EventType.DELIVERY_UPDATED, texts)
    return rows


def _received(receipt: Receipt) -> list[NewRung]:
    received = NewRung(RungName.RECEIVED, receipt.host_name)
    if receipt.row.has_rung(RungName.SENT):
        return [received]
    return [NewRung(RungName.SENT, BACKEND, None, receipt.sent_us), received]


def close(
    c: sqlite3.Connection,
    row: DeliveryRow,
    target: DeliveryState,
    *,
    actor: str,
    detail: str,
    reason: Reason,
) -> None:
    """End a delivery by the backend's own decision, and tell it."""
    rung = NewRung(RungName(target.value), actor, detail, reason=reason.value)
    if moved := move(c, row, target, rung, outcome=target.value, reason=reason.value):
        tell(c, moved)


def give_up(c: sqlite3.Connection, row: DeliveryRow, detail: str, reason: Reason) -> None:
    close(c, row, DeliveryState.DEAD, actor=BACKEND, detail=detail, reason=reason)


def abandon_run(c: sqlite3.Connection, run: RunRow, *, waited: bool = False) -> None:
    """A run is over without its machine having said so: it was cut off, or left to wait for people."""
    outcome, reason = Outcome.FAILED, Reason.DAEMON_STOPPED
    if waited:
        outcome, reason = Outcome.CANCELLED, Reason.APPROVAL
    runs.finish(
        c,
        run.id,
        outcome=outcome.value,
        reason=reason.value,
        ended_us=clock.now_us(),
    )
    if finished := runs.load(c, run.id):
        events.append(c, run.user_id, EventType.RUN_FINISHED, finished.resource)


def roster(c: sqlite3.Connection, host_id: HostId) -> list[AgentRef]:
    """The host's agents by name: what is needed to run one comes with each delivery."""
    host = hosts.load_any(c, host_id)
    return [agents.ref(agent) for agent in agents.served_by(c, host)] if host else []


def show_agent(
    c: sqlite3.Connection, user_id: UserId, agent_id: AgentId, status: AgentStatus
) -> None:
    """Set the agent's status and tell it, if that is news."""
    agent = agents.load(c, user_id, agent_id)
    if agent is None or agent.status is status:
        return
    agents.set_status(c, agent_id, status)
    if changed := agents.load(c, user_id, agent_id):
        events.append(c, user_id, EventType.AGENT_UPDATED, agents.resource(c, changed))
