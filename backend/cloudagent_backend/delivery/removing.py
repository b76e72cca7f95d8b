"""What becomes of deliveries and files when their agent or machine, or they, are removed.

All of it runs inside the caller's transaction.

A message is kept with what it was sent with, so of a file that was sent its name stays, and that it is gone;
what was not sent is forgotten whole. Who fetches it then is told that it was removed (docs/protocol.md §14).
"""

import sqlite3
from typing import Final

from cloudagent_backend.delivery import ladder, lending
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.stopping import stop
from cloudagent_backend.store import (
    agents,
    attachments,
    clock,
    deliveries,
    events,
    hosts,
    messages,
    outbox,
    runs,
)
from cloudagent_backend.store.attachments import AttachmentRow
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    HostId,
    MessageId,
    UserId,
)
from cloudagent_protocol.resources import (
    EventType,
)

_REMOVED: Final = "the machine was removed"


def remove_agent(c: sqlite3.Connection, agent_id: AgentId) -> None:
    """The agent is gone: what waits for it is cancelled, what runs is asked to stop."""
    agent = agents.load_any(c, agent_id)
    if agent is None:
        return
    own = agent.host_machine_id
    machines = [own, *(helper.id for helper in hosts.children(c, own))]
    for row in deliveries.open_of_agent(c, agent_id, machines):
        stop(c, row, ladder.BACKEND, detail="the agent was removed")


def remove_host(c: sqlite3.Connection, host_id: HostId) -> None:
    """The machine is gone for good: nothing of it will ever end by itself.

    What is still queued for it may be much, and is given up by `bury`, in transactions of its own.
    """
    host = hosts.load_any(c, host_id)
    if host and host.parent_id:
        lending.remove(c, host)
        return
    for run in runs.live_of_host(c, host_id):
        ladder.abandon_run(c, run)
    for row in deliveries.in_flight(c, host_id):
        ladder.give_up(c, row, _REMOVED, Reason.HOST_REMOVED)
    outbox.forget(c, host_id)


def bury(c: sqlite3.Connection, host_id: HostId, limit: int) -> list[DeliveryRow]:
    """Give up what is queued for a removed machine, at most so many at once; returns those."""
    rows = deliveries.queued_of_host(c, host_id, limit)
    for row in rows:
        ladder.give_up(c, row, _REMOVED, Reason.HOST_REMOVED)
    return rows


# --- files ---


def remove_file(
    c: sqlite3.Connection, user_id: UserId, attachment_id: AttachmentId
) -> AttachmentRow:
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
