"""What a person may still change of a message: its words and its place, while it waits in our queue.

Inside the caller's transaction, as leasing is: of a change and a machine that takes the message, one is
first. The other is told. Once sent, a message is never changed: what a machine was given is what the
thread shows.
"""

import sqlite3
from typing import Final

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.states import ENDS
from cloudagent_backend.store import deliveries, events, messages
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import MessageId, UserId
from cloudagent_protocol.resources import (
    DeliveryMode,
    DeliveryState,
    EventType,
    Message,
    RungName,
)

#: Deliveries of an agent among which one is moved; what is further behind waits for its turn.
_LINE: Final = 1_000


def edit(
    c: sqlite3.Connection, user_id: UserId, actor: str, message_id: MessageId, text: str
) -> Message:
    """Change what a message says; its place stays, and its ladder tells of the change.

    Raises:
        Refused: there is no such message, it is not the user's own, or it waits here no more.
    """
    rows = _waiting(c, user_id, message_id)
    messages.change_text(c, message_id, text)
    for row in rows:
        rung = NewRung(RungName.STORED, actor, "its words were changed before it was sent")
        ladder.tell(c, deliveries.note(c, row, rung))
    return _told(c, user_id, message_id)


def move(
    c: sqlite3.Connection, user_id: UserId, message_id: MessageId, before: MessageId | None
) -> Message:
    """Put a message before another one that waits in its conversation, or behind all of them.

    The places (`seq`) of those that wait stay the same; they are given out anew.

    Raises:
        Refused: as `edit`, of either of the two; or one of them interrupts, and goes first anyway.
    """
    rows = _waiting(c, user_id, message_id)
    others = {} if before is None else {row.agent_id: row for row in _waiting(c, user_id, before)}
    changed: set[MessageId] = set()
    for row in rows:
        line = [
            one
            for one in deliveries.queued(c, row.host_id, row.agent_id, _LINE)
            if one.conversation_id == row.conversation_id and one.mode is not DeliveryMode.INTERRUPT
        ]
        changed |= _reorder(c, line, row, others.get(row.agent_id) if before else None, before)
    for one in changed - {message_id}:
        _told(c, user_id, one)
    return _told(c, user_id, message_id)


def _reorder(
    c: sqlite3.Connection,
    line: list[DeliveryRow],
    row: DeliveryRow,
    behind: DeliveryRow | None,
    before: MessageId | None,
) -> set[MessageId]:
    """Puts `row` in front of `behind`, or at the end; returns whose places changed."""
    ids = [one.id for one in line]
    if row.id not in ids or (before is not None and (behind is None or behind.id not in ids)):
        raise Refused(
            ErrorCode.CONFLICT,
            "The two do not wait in one line: they are for other agents or conversations, or one"
            " interrupts and goes first anyway.",
            next="See GET /v1/conversations/{id}/messages for what waits.",
        )
    rest = [one for one in line if one.id != row.id]
    at = len(rest) if behind is None else [one.id for one in rest].index(behind.id)
    ordered = [*rest[:at], row, *rest[at:]]
    changed: set[MessageId] = set()
    for one, place in zip(ordered, line, strict=True):
        if one.seq != place.seq:
            deliveries.renumber(c, one, place.seq)
            changed.add(one.message_id)
    return changed


def _waiting(c: sqlite3.Connection, user_id: UserId, message_id: MessageId) -> list[DeliveryRow]:
    """The deliveries of a message of the user's own that has never left."""
    message = messages.load(c, user_id, message_id)
    if message is None:
        raise not_found()
    if message.author.id != user_id:
        raise Refused(ErrorCode.CONFLICT, "Only your own messages can be changed.")
    rows = deliveries.of_message(c, user_id, message_id)
    if late := next((row for row in rows if not _is_ours(row)), None):
        over = late.state in ENDS
        raise Refused(
            ErrorCode.CONFLICT,
            f"Too late: the message {'is over' if over else 'has been sent to its machine'}, as it was.",
            next="Send another one." if over else "Stop it, or send another one.",
        )
    return rows


def _is_ours(row: DeliveryRow) -> bool:
    """Whether no machine can have it. One that went back into the queue may be on a disk all the same."""
    return (
        row.state is DeliveryState.QUEUED
        and row.retry_of is None
        and not row.has_rung(RungName.SENT)
    )


def _told(c: sqlite3.Connection, user_id: UserId, message_id: MessageId) -> Message:
    message = messages.load(c, user_id, message_id)
    assert message is not None
    events.append(c, user_id, EventType.MESSAGE_UPDATED, message)
    return message
