"""What a machine's numbered frames change, in the transaction that also accepts their numbers.

A frame is judged whole before anything of it is written. One that a machine has no right to send
ends the group: what came before it is kept, the connection closes. One that is about something
that is gone (a removed agent, a delivery from after a restored backup) is accepted and ignored,
because refusing it would hold up the machine's queue for ever.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cloudagent_backend.delivery import approvals, holds, ladder, resuming, sending, states
from cloudagent_backend.delivery.enclosing import enclose_of_agent
from cloudagent_backend.delivery.ladder import Receipt
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay, linked
from cloudagent_backend.store import (
    agents,
    clock,
    conversations,
    deliveries,
    diffs,
    events,
    hosts,
    messages,
    outbox,
    runs,
    usage,
)
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.messages import Cause
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.events import (
    ApprovalRequested,
    ApprovalResolved,
    Finished,
    Outcome,
    Question,
    Ready,
    Reason,
    RunEvent,
    Started,
    Steered,
    Text,
    ToolCall,
    Usage,
    UsageReported,
)
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
from cloudagent_protocol.ids import AgentId, ConversationId, HostId, MessageId, RunId
from cloudagent_protocol.resources import (
    AgentStatus,
    Author,
    DeliveryState,
    EventType,
    Hold,
    Message,
    RungName,
    RunState,
)

#: What can wait in a group. An unknown numbered frame is accepted and otherwise ignored.
Reported = (
    RunReport
    | Send
    | DeliveryReport
    | HostReport
    | RunDiff
    | Ack
    | Delta
    | Heartbeat
    | UnknownFrame
)


#: Of a delivery that has no process and no run of its own.
_PUT_IN: Final = "put into the turn under way"


@dataclass
class Applied:
    """What became of a group of frames."""

    #: Frames that were dealt with, from the start of the group.
    count: int = 0
    #: Runs that turned out to be over because a later attempt has begun.
    abandoned: list[RunId] = field(default_factory=list[RunId])
    #: Machines that there is work for: their agents were messaged by an agent, or they take it again.
    hosts: set[HostId] = field(default_factory=set[HostId])
    #: Why the rest was refused.
    error: ProtocolError | None = None


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
            _report(c, machine, frame, applied, relay)
        case Send():
            applied.hosts |= _send(c, machine, frame, relay)
        case DeliveryReport():
            _waits(c, machine, frame)
        case HostReport():
            hosts.set_runtimes(c, machine.host_id, frame.runtimes)
            tell_host(c, machine)
        case RunDiff():
            _changed(c, machine, frame)
        case Ack():
            acked(c, [(machine, frame.seq)])
        case Delta():
            _begin_to_answer(c, machine, frame)
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
    for row in _deliveries(c, run):
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


# --- messages of agents ---------------------------------------------------------------


def _send(c: sqlite3.Connection, machine: Machine, frame: Send, relay: Relay) -> set[HostId]:
    _check_id("msg", frame.message_id)
    agent = agents.load_any(c, frame.agent_id)
    if agent is None:
        return set()
    if not machine.serves(agent):
        raise ProtocolError(f"{frame.agent_id} is not an agent of this host")
    user_id, conversation_id = machine.user_id, frame.conversation_id
    takes_part, other = conversations.partner(c, user_id, conversation_id, agent.id)
    if not takes_part:
        if conversations.load(c, user_id, conversation_id) is None:
            return set()
        raise ProtocolError(f"{frame.agent_id} takes no part in {conversation_id}")
    cause = _cause(c, machine, frame)
    link = linked(frame.message_id, cause)
    files, missing = enclose_of_agent(c, user_id, frame) if frame.attachments else ([], [])
    message = Message(
        id=frame.message_id,
        conversation_id=conversation_id,
        author=Author(type="agent", id=agent.id, name=agent.name),
        text=frame.text + "".join(f"\n\n[{name} did not arrive here.]" for name in missing),
        attachments=files,
        created_at=clock.at(min(clock.to_us(frame.sent_at), clock.now_us())),
        in_reply_to=_reply_to(c, frame, cause),
        run_id=frame.run_id,
        auto_published=frame.auto_published,
        chain_id=link.chain_id,
        depth=link.depth,
        caused_by=link.caused_by,
    )
    return relay.take(c, user_id, message, other, cause)


def _cause(c: sqlite3.Connection, machine: Machine, frame: Send) -> Cause | None:
    """What the agent worked on: as its daemon says, if it was given to this agent at all."""
    said = frame.caused_by or frame.in_reply_to
    if said is None and (run := runs.load(c, frame.run_id)):  # a daemon that knows no chains
        rows = _deliveries(c, run)
        said = rows[0].message_id if rows else None
    cause = messages.cause(c, machine.user_id, said, frame.agent_id) if said else None
    return cause if cause and cause.worked_in else None


def _reply_to(c: sqlite3.Connection, frame: Send, cause: Cause | None) -> MessageId | None:
    """What it replies to, if that stands in the same conversation."""
    wanted = frame.in_reply_to
    if wanted is None or (cause and cause.id == wanted):
        same = cause is not None and cause.conversation_id == frame.conversation_id
        return wanted if same else None
    return wanted if messages.position(c, frame.conversation_id, wanted) is not None else None


# --- runs -----------------------------------------------------------------------------


def _report(
    c: sqlite3.Connection, machine: Machine, frame: RunReport, applied: Applied, relay: Relay
) -> None:
    _check_id("run", frame.run_id)
    body = _json(frame.event)
    run = runs.load(c, frame.run_id) or _new_run(c, machine, frame)
    if run is None:
        return
    if (run.host_id, run.agent_id) != (machine.host_id, frame.agent_id):
        raise ProtocolError(f"{frame.run_id} is not a run of {frame.agent_id} on this host")
    if not runs.add_event(c, run.id, frame.event.seq, body):
        return
    where = {"run_id": run.id, "conversation_id": run.conversation_id, "agent_id": run.agent_id}
    data = f'{json.dumps(where)[:-1]}, "event": {body}}}'
    match frame.event:
        case Started() as event:
            applied.abandoned += _started(c, machine, run, event)
            events.append(c, run.user_id, EventType.RUN_EVENT, data)
        case Finished() as event:
            events.append(c, run.user_id, EventType.RUN_EVENT, data)
            applied.abandoned += _abandon_earlier(c, run)
            applied.hosts |= _finished(c, machine, run, event, relay)
        case Steered() as event:
            events.append(c, run.user_id, EventType.RUN_EVENT, data)
            applied.abandoned += _steered(c, machine, run, event)
        case event:
            events.append(c, run.user_id, EventType.RUN_EVENT, data)
            _went_on(c, run, event, body)


def _changed(c: sqlite3.Connection, machine: Machine, frame: RunDiff) -> None:
    """What a run changed; of one that is not known, nothing is kept."""
    _check_id("run", frame.run_id)
    run = runs.load(c, frame.run_id)
    if run is None:
        return
    if (run.host_id, run.agent_id) != (machine.host_id, frame.agent_id):
        raise ProtocolError(f"{frame.run_id} is not a run of {frame.agent_id} on this host")
    try:
        fresh = diffs.add(c, run.user_id, run.id, frame.diff)
    except ValueError as error:  # half of a surrogate pair
        raise ProtocolError(f"a diff that cannot be kept: {error}") from error
    if fresh and (changed := runs.load(c, run.id)):
        events.append(c, run.user_id, EventType.RUN_UPDATED, changed.resource)


def _new_run(c: sqlite3.Connection, machine: Machine, frame: RunReport) -> RunRow | None:
    """The run that this first report begins; null if it is about something that is gone."""
    agent = agents.load_any(c, frame.agent_id)
    if agent is None:
        return None
    if not machine.serves(agent):
        raise ProtocolError(f"{frame.agent_id} is not an agent of this host")
    rows = [row for one in frame.delivery_ids if (row := deliveries.load(c, one))]
    for row in rows:
        if (row.agent_id, row.conversation_id) != (frame.agent_id, frame.conversation_id):
            raise ProtocolError(f"{row.id} is not a delivery to {frame.agent_id} there")
    if not rows:
        return None
    event = frame.event
    run = RunRow(
        id=frame.run_id,
        user_id=machine.user_id,
        host_id=machine.host_id,
        agent_id=frame.agent_id,
        conversation_id=frame.conversation_id,
        delivery_ids=[row.id for row in rows],
        driver=event.driver if isinstance(event, Started) else agent.driver,
        state=RunState.RUNNING,
        outcome=None,
        reason=None,
        attempt=event.attempt if isinstance(event, Started) else 1,
        session_id=None,
        usage=None,
        seen=False,
        started_us=_time_of(event),
        ended_us=None,
    )
    runs.insert(c, run)
    return run


def _deliveries(c: sqlite3.Connection, run: RunRow) -> list[DeliveryRow]:
    return [row for one in run.delivery_ids if (row := deliveries.load(c, one))]


def _started(c: sqlite3.Connection, machine: Machine, run: RunRow, event: Started) -> list[RunId]:
    """The process is alive; returns the runs of earlier attempts, which are thereby over."""
    abandoned = _abandon_earlier(c, run)
    at_us = _time_of(event)
    for row in _deliveries(c, run):
        rungs = [NewRung(RungName.STARTED, machine.name, None, at_us)]
        if event.attempt - 1 > row.count(RungName.INTERRUPTED):  # else that is told already
            detail = f"cut off; attempt {event.attempt} goes on"
            why = Reason.DAEMON_STOPPED.value
            rungs.insert(0, NewRung(RungName.INTERRUPTED, machine.name, detail, at_us, why))
        row = ladder.receive(c, row, machine.name)
        moved = ladder.move(
            c, row, DeliveryState.RUNNING, *rungs, attempt=event.attempt, run_id=run.id
        )
        if moved:
            ladder.tell(c, moved)
    events.append(c, run.user_id, EventType.RUN_STARTED, run.resource)
    ladder.show_agent(c, run.user_id, run.agent_id, AgentStatus.WORKING)
    return abandoned


def _steered(c: sqlite3.Connection, machine: Machine, run: RunRow, event: Steered) -> list[RunId]:
    """The run works on one more delivery; returns the runs of earlier attempts at that."""
    row = deliveries.load(c, event.delivery_id)
    if row is None or run.state is RunState.FINISHED or row.id in run.delivery_ids:
        return []
    if (row.agent_id, row.conversation_id) != (run.agent_id, run.conversation_id):
        raise ProtocolError(f"{row.id} is not a delivery to {run.agent_id} there")
    run = runs.join(c, run, row.id)
    abandoned = _abandon_earlier(c, run)
    rung = NewRung(RungName.STARTED, machine.name, _PUT_IN, _time_of(event))
    row = ladder.receive(c, row, machine.name)
    if moved := ladder.move(c, row, DeliveryState.RUNNING, rung, run_id=run.id):
        ladder.tell(c, moved)
    events.append(c, run.user_id, EventType.RUN_STARTED, run.resource)
    return abandoned


def _abandon_earlier(c: sqlite3.Connection, run: RunRow) -> list[RunId]:
    """Ends what is left of earlier attempts at this run's deliveries; returns their runs.

    A run may end a delivery without a process of its own: the daemon died after the reply.
    """
    abandoned: list[RunId] = []
    for row in _deliveries(c, run):
        earlier = runs.load(c, RunId(row.run_id)) if row.run_id else None
        if earlier and earlier.id != run.id and earlier.state is not RunState.FINISHED:
            ladder.abandon_run(c, earlier, waited=earlier.state is RunState.WAITING)
            abandoned.append(earlier.id)
    return abandoned


def _went_on(c: sqlite3.Connection, run: RunRow, event: RunEvent, body: str) -> None:
    match event:
        case Ready():
            if event.session_id:
                runs.set_session(c, run.id, event.session_id)
            _note(c, run, RungName.READY, _time_of(event))
        case UsageReported():
            runs.set_usage(c, run.id, event.usage)
        case ApprovalRequested() | Question():
            _check_id("apr", event.approval_id)
            approvals.request(c, run, event, body)
        case ApprovalResolved():
            approvals.resolve(c, run, event)
        case Text() | ToolCall():
            if not run.seen:
                _see(c, run, _time_of(event))
        case _:
            pass


def _begin_to_answer(c: sqlite3.Connection, machine: Machine, delta: Delta) -> None:
    """A run's first piece of text is the earliest sign that the model has begun to answer."""
    if delta.run_id in machine.seen:
        return
    run = runs.load(c, delta.run_id)
    if run is None or (run.host_id, run.agent_id) != (machine.host_id, delta.agent_id):
        return
    machine.seen.add(run.id)
    _see(c, run, clock.now_us())


def _see(c: sqlite3.Connection, run: RunRow, at_us: int) -> None:
    if runs.see(c, run.id):
        _note(c, run, RungName.SEEN, at_us)


def _note(c: sqlite3.Connection, run: RunRow, name: RungName, at_us: int) -> None:
    agent = agents.load_any(c, run.agent_id)
    rung = NewRung(name, agent.name if agent else run.agent_id, None, at_us)
    for row in _deliveries(c, run):
        ladder.tell(c, deliveries.note(c, row, rung))


def _finished(
    c: sqlite3.Connection, machine: Machine, run: RunRow, event: Finished, relay: Relay
) -> set[HostId]:
    """How it ended; returns whose queues have something because of that."""
    again: set[HostId] = set()
    at_us = _time_of(event)
    reason = str(event.reason) if event.reason else None
    rows = _deliveries(c, run)
    for row in rows:
        stopped_by = event.stopped_by or row.interrupted_by
        actor = (stopped_by if event.outcome is Outcome.CANCELLED else None) or machine.name
        last = states.last_rung(event.outcome)
        rung = NewRung(last, actor, event.detail or reason, at_us, reason)
        row = ladder.receive(c, row, machine.name)
        if moved := ladder.move(
            c,
            row,
            states.end_of(event.outcome),
            rung,
            outcome=event.outcome.value,
            reason=reason,
            run_id=run.id,
        ):
            ladder.tell(c, moved)
            if event.reason is Reason.RATE_LIMIT and event.resets_at:
                host_id = resuming.after_limit(c, moved, event.resets_at, relay.backlog_cap)
                again |= {host_id} if host_id else set()
    runs.finish(
        c,
        run.id,
        outcome=event.outcome.value,
        reason=reason,
        ended_us=at_us,
        session_id=event.session_id or None,
        usage=event.usage,
    )
    _count(c, run, rows, event.usage, at_us)
    if finished := runs.load(c, run.id):
        events.append(c, run.user_id, EventType.RUN_FINISHED, finished.resource)
    if not runs.has_live(c, run.host_id, run.agent_id):
        status = states.status_after(event.outcome, event.reason)
        ladder.show_agent(c, run.user_id, run.agent_id, status)
    return again


def _count(
    c: sqlite3.Connection,
    run: RunRow,
    rows: Sequence[DeliveryRow],
    used: Usage | None,
    at_us: int,
) -> None:
    """What the run has used counts for its agent's day, and for its chain."""
    if used is None and run.usage:  # it was told before the process vanished
        used = Usage.model_validate_json(run.usage)
    if used is None:
        return
    usage.add(c, run.user_id, run.agent_id, usage.day_of(at_us), used)
    if rows:
        usage.add_to_chain(c, rows[0].chain_id or rows[0].message_id, used)


# --- what a machine may say -----------------------------------------------------------


def _check_id(kind: str, given: str) -> None:
    """Ids that are made on machines end up in paths, pages and logs."""
    if not re.fullmatch(kind + "_[0-9A-Za-z]{1,40}", given):
        raise ProtocolError(f"not an id of a {kind}")


def _json(event: RunEvent) -> str:
    try:
        return event.model_dump_json(exclude_none=True)
    except ValueError as error:  # nested too deeply, or half of a surrogate pair
        raise ProtocolError(f"an event that cannot be kept: {error}") from error


def _time_of(event: RunEvent) -> int:
    """When it happened, in microseconds; a machine's clock may run ahead of ours."""
    return min(clock.to_us(event.at), clock.now_us())


def may_read(
    c: sqlite3.Connection, machine: Machine, agent_id: AgentId, conversation_id: ConversationId
) -> bool:
    """Whether the agent is one of the machine's and takes part in the conversation."""
    return is_of(c, machine, agent_id) and conversations.contains(
        c, machine.user_id, conversation_id, agent_id
    )


def is_of(c: sqlite3.Connection, machine: Machine, agent_id: AgentId) -> bool:
    """Whether the agent is one of the machine's."""
    agent = agents.load(c, machine.user_id, agent_id)
    return agent is not None and machine.serves(agent)
