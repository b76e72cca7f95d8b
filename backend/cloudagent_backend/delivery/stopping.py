"""Stopping: what is still here is cancelled, what a machine has is interrupted.

All of it runs inside the caller's transaction.
"""

import sqlite3

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.states import ENDS
from cloudagent_backend.store import (
    deliveries,
    messages,
    outbox,
    runs,
)
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import (
    Interrupt,
)
from cloudagent_protocol.ids import (
    MessageId,
    RunId,
    UserId,
)
from cloudagent_protocol.resources import (
    DeliveryState,
    Message,
    RunState,
)


def cancel(
    c: sqlite3.Connection, user_id: UserId, actor: str, message_id: MessageId
) -> tuple[Message, list[DeliveryRow]]:
    """Stop every delivery of a message that is not over.

    Raises:
        Refused: there is no such message, or it is all over.
    """
    message = messages.load(c, user_id, message_id)
    if message is None:
        raise not_found()
    rows = deliveries.of_message(c, user_id, message_id)
    if all(row.state in ENDS for row in rows):
        raise Refused(ErrorCode.CONFLICT, "There is nothing left to cancel: the message is done.")
    for row in rows:
        stop(c, row, actor)
    return message, rows


def interrupt(
    c: sqlite3.Connection, user_id: UserId, actor: str, run_id: RunId, *, now: bool = False
) -> runs.RunRow:
    """Ask the machine to stop a run; `now`: to end it at once, whether it was asked to stop or not.

    Raises:
        Refused: there is no such run, or it is over.
    """
    run = runs.load(c, run_id)
    if run is None or run.user_id != user_id:
        raise not_found()
    if run.state is RunState.FINISHED:
        raise Refused(ErrorCode.CONFLICT, "The run has ended already.")
    for delivery_id in run.delivery_ids:
        if row := deliveries.load(c, delivery_id):
            stop(c, row, actor, now=now)
    return run


def stop(
    c: sqlite3.Connection, row: DeliveryRow, actor: str, *, detail: str = "", now: bool = False
) -> None:
    """Cancel what is still here; ask the machine, once, to stop what it has, and once to end it."""
    if row.state in ENDS:
        return
    if row.state is DeliveryState.QUEUED:
        ladder.close(
            c, row, DeliveryState.CANCELLED, actor=actor, detail=detail, reason=Reason.INTERRUPTED
        )
    elif row.interrupted_by is None or (now and row.ended_by is None):
        deliveries.interrupted(c, row.id, actor, now=now)
        outbox.put(c, row.host_id, Interrupt(delivery_id=row.id, actor=actor, now=now or None))
        ladder.tell_of(c, row.id)
