"""From a person to a machine: take a message in, lease it, stop it. Inside the caller's transaction."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloudagent_backend.delivery import budgets, chains, ladder, lending, shares, straight
from cloudagent_backend.delivery.away import away
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.enclosing import enclose
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.framing import deliver, may_want, wishes
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.states import ENDS, RETRIABLE
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
    runs,
)
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.errors import ErrorCode, ProtocolError
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import (
    AgentsChanged,
    Interrupt,
    Retried,
)
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    ConversationId,
    DeliveryId,
    HostId,
    MessageId,
    RunId,
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
    RunState,
)

_DEFAULT: Final = Limits()
_REMOVED: Final = "the machine was removed"


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
class ReadyHost:
    """A host that can take work now."""

    id: HostId
    #: Whether its daemon stops by itself what a message interrupts.
    interrupts: bool = True


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


def lease(
    c: sqlite3.Connection, host: ReadyHost, window: int, limits: Limits = _DEFAULT
) -> list[DeliveryRow]:
    """Number frames for as many queued deliveries as the host's window has room for.

    Returns those that may be leased no more: leased, given up, or held with their chain.
    """
    done: list[DeliveryRow] = []
    known: dict[AgentId, AgentRow | None] = {}
    while rows := _due(c, host.id, window):
        free = [row for row in rows if _may_go(c, row, known)]
        for row in free:
            _lease_one(c, host, row, known[row.agent_id], limits)
        done += rows
        if len(free) == len(rows):
            break
    chains.tell_paused(c, done)
    return done


def _may_go(c: sqlite3.Connection, row: DeliveryRow, known: dict[AgentId, AgentRow | None]) -> bool:
    """Whether neither its agent nor its chain has to wait for a person; `known` has its agent then."""
    if row.agent_id not in known:
        known[row.agent_id] = agents.load(c, row.user_id, row.agent_id)
    return budgets.may_go(c, row, known[row.agent_id]) and chains.may_go(c, row)


def _lease_one(
    c: sqlite3.Connection,
    host: ReadyHost,
    row: DeliveryRow,
    agent: AgentRow | None,
    limits: Limits,
) -> None:
    message = messages.load_bare(c, row.message_id)
    if agent is None or message is None:
        _give_up(c, row, "the agent was removed", Reason.AGENT_UNKNOWN)
    elif leased := ladder.move(c, row, DeliveryState.LEASED):
        try:
            again = _retried(c, row)
            outbox.put(c, host.id, deliver(row, agent, message, limits.hops, again))
        except ProtocolError:
            detail = "the message and its agent's settings do not fit into one frame"
            _give_up(c, leased, detail, Reason.TOO_LARGE)
        else:
            if row.mode is DeliveryMode.INTERRUPT:
                _make_way(c, row, message, told=not host.interrupts)


def offer_again(c: sqlite3.Connection, row: DeliveryRow, host_name: str, limits: Limits) -> None:
    """Send a delivery once more that its machine should be at work on, and does not list."""
    agent, message = agents.load_any(c, row.agent_id), messages.load_bare(c, row.message_id)
    if agent is None or message is None:
        return
    outbox.put(c, row.host_id, deliver(row, agent, message, limits.hops, _retried(c, row)))
    detail = f"{host_name} does not list it as running any more; it is asked what became of it"
    rung = NewRung(RungName.WAITING, ladder.BACKEND, detail, reason=Reason.UNLISTED.value)
    ladder.tell(c, deliveries.note(c, row, rung))


def _due(c: sqlite3.Connection, host_id: HostId, window: int) -> list[DeliveryRow]:
    waiting = deliveries.waiting_agents(c, host_id)
    if not waiting:
        return []
    in_flight = deliveries.in_flight_by_agent(c, host_id)
    room = max(1, window - in_flight.total())
    queued = [row for one in waiting for row in deliveries.queued(c, host_id, one, room)]
    lines: dict[AgentId, list[DeliveryRow]] = {}
    for row in lending.in_turn(c, host_id, queued):
        lines.setdefault(row.agent_id, []).append(row)
    return shares.allot(window, in_flight, lines)


def _make_way(c: sqlite3.Connection, row: DeliveryRow, message: Message, *, told: bool) -> None:
    """Note for people what a message interrupts: what runs on the host in its conversation.

    The machine judges by itself what that is when the message arrives; one that cannot is `told`.
    """
    for other in deliveries.in_flight(c, row.host_id):
        if (
            other.conversation_id == row.conversation_id
            and other.message_id != row.message_id
            and other.state in {DeliveryState.RUNNING, DeliveryState.WAITING}
            and other.interrupted_by is None
        ):
            deliveries.interrupted(c, other.id, message.author.name)
            if told:
                interrupt = Interrupt(delivery_id=other.id, actor=message.author.name)
                outbox.put(c, row.host_id, interrupt)
            ladder.tell_of(c, other.id)


def _give_up(c: sqlite3.Connection, row: DeliveryRow, detail: str, reason: Reason) -> None:
    ladder.close(c, row, DeliveryState.DEAD, actor=ladder.BACKEND, detail=detail, reason=reason)


def _retried(c: sqlite3.Connection, row: DeliveryRow) -> Retried | None:
    over = deliveries.load(c, row.retry_of) if row.retry_of else None
    if over is None:
        return None
    return Retried(
        delivery_id=over.id,
        actor=row.retried_by or ladder.BACKEND,
        outcome=over.outcome or over.state.value,
        reason=over.reason,
        began=over.has_rung(RungName.STARTED),
    )


def sent(c: sqlite3.Connection, times_us: Mapping[DeliveryId, int]) -> None:
    """Their frames were written to a socket, then. An ack that was faster has said so already."""
    for delivery_id, at_us in times_us.items():
        row = deliveries.load(c, delivery_id)
        if row and row.state is DeliveryState.LEASED and not row.has_rung(RungName.SENT):
            rung = NewRung(RungName.SENT, ladder.BACKEND, None, at_us)
            ladder.tell(c, deliveries.note(c, row, rung))


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


def change_agents(c: sqlite3.Connection, host_id: HostId) -> None:
    """Tell a machine its agents anew; one that never connected learns them by its welcome."""
    if outbox.link(c, host_id):
        outbox.put(c, host_id, AgentsChanged(agents=ladder.roster(c, host_id)))


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
        _give_up(c, row, _REMOVED, Reason.HOST_REMOVED)
    outbox.forget(c, host_id)


def bury(c: sqlite3.Connection, host_id: HostId, limit: int) -> list[DeliveryRow]:
    """Give up what is queued for a removed machine, at most so many at once; returns those."""
    rows = deliveries.queued_of_host(c, host_id, limit)
    for row in rows:
        _give_up(c, row, _REMOVED, Reason.HOST_REMOVED)
    return rows
