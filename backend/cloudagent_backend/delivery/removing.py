"""Taking a file away again, sent or not. Inside the caller's transaction.

A message is kept with what it was sent with, so of a file that was sent its name stays, and that it is gone;
what was not sent is forgotten whole. Who fetches it then is told that it was removed (docs/protocol.md §14).
"""

import sqlite3

from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.store import attachments, clock, events, messages
from cloudagent_backend.store.attachments import AttachmentRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AttachmentId, MessageId, UserId
from cloudagent_protocol.resources import EventType


def remove(c: sqlite3.Connection, user_id: UserId, attachment_id: AttachmentId) -> AttachmentRow:
    """The file that nobody is given any more; that it was removed before is no fault.

    Raises:
        Refused: there is no such file of the person's, or an agent's message has yet to come with it.
    """
    row = attachments.load(c, user_id, attachment_id)
    if row is None:
        raise not_found()
    if row.message_id is not None:
        if row.removed_us is None:
            _mark(c, user_id, row.message_id, attachment_id)
    elif row.host_id is not None:
        raise Refused(
            ErrorCode.CONFLICT,
            f"{row.name} is of a message that its machine has yet to bring.",
            next="Wait for the message; the file can be removed from it then.",
        )
    else:
        attachments.delete(c, attachment_id)
    return row


def _mark(
    c: sqlite3.Connection, user_id: UserId, message_id: MessageId, attachment_id: AttachmentId
) -> None:
    removed_us = clock.now_us()
    attachments.mark_removed(c, attachment_id, removed_us)
    message = messages.load(c, user_id, message_id)
    if message is None:  # its conversation was removed
        return
    for one in message.attachments:
        if one.id == attachment_id:
            one.removed_at = clock.at(removed_us)
    messages.change_files(c, message_id, message.attachments)
    events.append(c, user_id, EventType.MESSAGE_UPDATED, message)
