"""Files that go with a message: whose they must be. Inside the caller's transaction.

A file goes with one message, and a message is never kept with a file whose bytes are not here.
"""

import sqlite3
from collections.abc import Sequence

from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store import attachments
from cloudagent_backend.store.attachments import AttachmentRow
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.frames import Send
from cloudagent_protocol.ids import AttachmentId, MessageId, UserId


def enclose(
    c: sqlite3.Connection, user_id: UserId, ids: Sequence[AttachmentId], message_id: MessageId
) -> list[Attachment]:
    """A person's own files, which go with this message from now on, in the order asked for.

    Raises:
        Refused: one is not there, is another's, or went with a message before.
    """
    wanted = list(dict.fromkeys(ids))
    files: list[Attachment] = []
    for one in wanted:
        row = attachments.load(c, user_id, one)
        if row is None:
            raise Refused(
                ErrorCode.NOT_FOUND,
                f"There is no attachment {one[:50]!r}; nothing was sent.",
                next="Upload the file again: one that is not sent within a day is removed.",
            )
        if row.message_id is not None or row.agent_id is not None:
            raise Refused(
                ErrorCode.CONFLICT,
                f"{row.name} was sent before, with another message.",
                next="Upload it again to send it again.",
            )
        files.append(row.resource)
    attachments.enclose(c, wanted, message_id)
    return files


def enclose_of_agent(
    c: sqlite3.Connection, user_id: UserId, send: Send
) -> tuple[list[Attachment], list[str]]:
    """The files of an agent's message that its machine has brought; and the names of the others."""
    files: list[Attachment] = []
    missing: list[str] = []
    for said in send.attachments or ():
        row = attachments.load(c, user_id, said.id)
        if row is not None and _goes_with(row, send):
            files.append(row.resource)
        else:
            missing.append(said.name)
    attachments.enclose(c, [one.id for one in files], send.message_id)
    return files, missing


def _goes_with(row: AttachmentRow, send: Send) -> bool:
    return row.agent_id == send.agent_id and row.message_id in (None, send.message_id)
