"""A message is taken in and queued for its agents; once more, where that came to nothing.

All of it runs inside the caller's transaction.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cloudagent_backend.delivery import chains, ladder, lending, straight
from cloudagent_backend.delivery.away import away
from cloudagent_backend.delivery.enclosing import enclose
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.framing import may_want, wishes
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.states import ENDS, RETRIABLE
from cloudagent_backend.delivery.stopping import stop
from cloudagent_backend.delivery.straight import OnItsWay, Way
from cloudagent_backend.store import (
    agents,
    clock,
    conversations,
    deliveries,
    events,
    hosts,
    messages,
    outbox,
)
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    ConversationId,
    HostId,
    MessageId,
    UserId,
    new_delivery_id,
    new_message_id,
)
from cloudagent_protocol.resources import (
    Author,
    DeliveryMode,
    DeliveryState,
    DeliverySummary,
    EventType,
    Message,
    RungName,
)


@dataclass(frozen=True)
class Submission:
    """A message that somebody wants delivered.

    With an agent and no conversation it goes to their newest one, or a new one; with a
    conversation and no agent to all who take part in it.
    """

    user_id: UserId
    author: Author
    text: str
    agent_id: AgentId | None = None
    conversation_id: ConversationId | None = None
    #: The ephemeral host that it is meant for; no other machine will do.
    host_id: HostId | None = None
    mode: DeliveryMode = DeliveryMode.QUEUE
    #: Files that were uploaded before.
    attachments: Sequence[AttachmentId] = ()
    #: What it wants instead of the agent's own.
    model: str | None = None
    permission_mode: str | None = None


@dataclass(frozen=True)
class Submitted:
    message: Message
    #: Whose queues have something (more) to lease.
    hosts: set[HostId]
    #: What needs no lease any more: to be written to its machine once it is on the disk.
    gone: Sequence[OnItsWay] = ()


def submit(
    c: sqlite3.Connection, submission: Submission, backlog_cap: int, way: Way | None = None
) -> Submitted:
    """Keep the message and a delivery per agent: on its `way` at once where it may be, else queued.

    Raises:
        Refused: nothing of that name, nobody to deliver to, a host's backlog is full, or a file that
            cannot go with it (`enclosing.enclose`), or a mode that would let its agent do more.
    """
    user_id = submission.user_id
    conversation_id, targets = _targets(c, submission)
    for agent in targets:
        _check_mode(agent, submission.permission_mode)
    message_id, files = new_message_id(), submission.attachments
    message = Message(
        id=message_id,
        conversation_id=conversation_id,
        author=submission.author,
        text=submission.text,
        attachments=enclose(c, user_id, files, message_id) if files else [],
        created_at=clock.at(clock.now_us()),
        chain_id=message_id,
        model=submission.model,
        permission_mode=submission.permission_mode,
    )
    gone: list[OnItsWay] = []
    rows: list[DeliveryRow] = []
    for agent in targets:
        one = straight.send(c, message, agent, submission.mode, way) if way else None
        if one is not None:
            gone.append(one)
        rows.append(one.row if one else queue(c, message, agent, backlog_cap, mode=submission.mode))
    if submission.host_id:
        rows = [_pin(c, row, submission.host_id) for row in rows]
    message.deliveries = [summary(row) for row in rows]
    messages.insert(c, user_id, message)
    events.append(c, user_id, EventType.MESSAGE_CREATED, message)
    if submission.mode is DeliveryMode.INTERRUPT:
        _stop_helpers(c, message, {agent.host_machine_id for agent in targets})
    for row in rows:
        ladder.tell(c, row, leaves=row.state is DeliveryState.LEASED)
    waits = {row.host_id for row in rows if row.state is DeliveryState.QUEUED}
    return Submitted(message, waits, gone)


def _check_mode(agent: AgentRow, wanted: str | None) -> None:
    if wanted is None or may_want(agent.mode, wanted):
        return
    raise Refused(
        ErrorCode.CONFLICT,
        f"{agent.name} works in the mode {agent.mode}; a message may want that or plan, which is the"
        f" narrowest, and not {wanted}.",
        next="Change the agent's own mode in its settings, if it shall be allowed more.",
    )


def _stop_helpers(c: sqlite3.Connection, message: Message, owns: set[HostId]) -> None:
    """A conversation is with one machine at a time: its own waits until a helper is done with it."""
    for own in owns:
        for row in deliveries.lent(c, own):
            if row.conversation_id == message.conversation_id and row.message_id != message.id:
                stop(c, row, message.author.name)


def _targets(
    c: sqlite3.Connection, submission: Submission
) -> tuple[ConversationId, list[AgentRow]]:
    user_id, agent_id = submission.user_id, submission.agent_id
    if submission.conversation_id is None:
        agent = agents.load(c, user_id, agent_id) if agent_id else None
        if agent is None:
            raise not_found()
        # A job has a conversation of its own: it would wait for the others of a shared one.
        alone = submission.host_id not in (None, agent.host_machine_id)
        found = None if alone else conversations.latest_with(c, user_id, agent.id)
        return found or conversations.create(c, user_id, [agent.id]).id, [agent]
    conversation = conversations.load(c, user_id, submission.conversation_id)
    if conversation is None or (agent_id and agent_id not in conversation.agent_ids):
        raise not_found()
    wanted = [agent_id] if agent_id else conversation.agent_ids
    present = [row for one in wanted if (row := agents.load(c, user_id, one))]
    if not present:
        raise Refused(
            ErrorCode.CONFLICT,
            "Nobody would read this: the agents of this conversation were removed.",
            next="Start a conversation with another agent.",
        )
    return conversation.id, present


def summary(row: DeliveryRow) -> DeliverySummary:
    return DeliverySummary(
        id=row.id,
        agent_id=row.agent_id,
        seq=row.seq,
        state=row.state,
        mode=row.mode,
        retry_of=row.retry_of,
    )


def queue(
    c: sqlite3.Connection,
    message: Message,
    agent: AgentRow,
    backlog_cap: int,
    *,
    worked_in: ConversationId | None = None,
    mode: DeliveryMode = DeliveryMode.QUEUE,
    over: DeliveryRow | None = None,
    actor: str = ladder.BACKEND,
    in_front: bool = False,
) -> DeliveryRow:
    """A queued delivery of the message, not told yet; to be worked on in its conversation or another.

    It may do an earlier one `over` again, because `actor` wants it, and be placed `in_front` of all
    that has not begun.

    Raises:
        Refused: the host's backlog is full.
    """
    host = hosts.load_any(c, agent.host_machine_id)
    name = host.name if host else agent.host_machine_id
    seq = outbox.next_delivery_seq(
        c,
        agent.host_machine_id,
        backlog_cap,
        in_front=in_front or mode is DeliveryMode.INTERRUPT,
    )
    if seq is None:
        raise Refused(
            ErrorCode.BACKLOG_FULL,
            f"{backlog_cap:,} messages already wait for {name}; this one was not taken.",
            next=f"Start the daemon on {name}, or cancel messages that are no longer wanted.",
        )
    said = [_over_again(over) if over else None, wishes(message)]
    rungs = [NewRung(RungName.STORED, actor, "; ".join(filter(None, said)) or None)]
    if gone := away(c, agent.host_machine_id, agent.id):
        detail = f"{gone.words}; it is delivered when the machine is back"
        rungs.append(NewRung(RungName.WAITING, ladder.BACKEND, detail, reason=gone.reason.value))
    row = DeliveryRow(
        id=new_delivery_id(),
        user_id=agent.user_id,
        host_id=agent.host_machine_id,
        agent_id=agent.id,
        conversation_id=worked_in or message.conversation_id,
        message_id=message.id,
        seq=seq,
        chain_id=message.chain_id if message.depth else None,
        mode=mode,
        retry_of=over.id if over else None,
        retried_by=actor if over else None,
    )
    return deliveries.insert(c, row, rungs)


def _over_again(over: DeliveryRow) -> str:
    why = f" ({over.reason})" if over.reason else ""
    return f"tried again: the delivery before ended as {over.outcome or over.state}{why}"


def _pin(c: sqlite3.Connection, row: DeliveryRow, host_id: HostId) -> DeliveryRow:
    """Put a new delivery into the queue of the machine that it is meant for."""
    if host_id == row.host_id:
        return row
    helper = hosts.load(c, row.user_id, host_id)
    agent = agents.load_any(c, row.agent_id)
    if helper is None or agent is None or not Machine.of(helper).serves(agent):
        raise Refused(
            ErrorCode.NOT_FOUND,
            f"No machine {host_id[:50]!r} serves this agent.",
            next="See GET /v1/host-machines, or leave the machine out.",
        )
    if helper.takes < 1:
        raise Refused(
            ErrorCode.CONFLICT,
            f"{helper.name} has taken all that it will take.",
            next="Start another job, or leave the machine out.",
        )
    return lending.hand_over(c, row, helper, pinned=True) or row


def retry(
    c: sqlite3.Connection, user_id: UserId, actor: str, message_id: MessageId, backlog_cap: int
) -> Submitted:
    """Deliver a message again to each agent whose last delivery of it failed, died or was cancelled.

    Raises:
        Refused: there is no such message, there is nothing to do over, or nobody to do it.
    """
    message = messages.load(c, user_id, message_id)
    if message is None:
        raise not_found()
    rows = deliveries.of_message(c, user_id, message_id)
    # Not by their ids, which are times: clocks are set back.
    done_over = {row.retry_of for row in rows}
    newest = [row for row in rows if row.id not in done_over]
    over = [row for row in newest if row.state in RETRIABLE]
    if not over:
        raise Refused(
            ErrorCode.CONFLICT,
            "There is nothing to try again: no delivery of this message has failed."
            if all(row.state in ENDS for row in newest)
            else "It is under way already: a delivery of this message is not over yet.",
            next=f"See where it is: cloudagent trace {message_id}",
        )
    if message.chain_id and (by := chains.stopped_by(c, user_id, message.chain_id)):
        raise Refused(ErrorCode.CONFLICT, f"{by} has stopped what this message belongs to.")
    rows = [_again(c, message, row, actor, backlog_cap) for row in over]
    message.deliveries += [summary(row) for row in rows]
    events.append(c, user_id, EventType.MESSAGE_UPDATED, message)
    for row in rows:
        ladder.tell(c, row)
    return Submitted(message, {row.host_id for row in rows})


def _again(
    c: sqlite3.Connection, message: Message, over: DeliveryRow, actor: str, backlog_cap: int
) -> DeliveryRow:
    agent = agents.load(c, over.user_id, over.agent_id)
    if agent is None:
        raise Refused(
            ErrorCode.CONFLICT,
            "Nobody would read this: its agent was removed.",
            next="Send the message to another agent.",
        )
    where = over.conversation_id
    return queue(c, message, agent, backlog_cap, worked_in=where, over=over, actor=actor)
