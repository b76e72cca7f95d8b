"""What a machine tells of a run: its events, its end, what it used and changed.

All of it runs inside the caller's transaction.
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from cloudagent_backend.delivery import approvals, ladder, resuming, states
from cloudagent_backend.delivery.groups import Applied
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay
from cloudagent_backend.delivery.rights import check_id
from cloudagent_backend.store import (
    agents,
    clock,
    deliveries,
    diffs,
    events,
    runs,
    usage,
)
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
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
    Delta,
    RunDiff,
    RunReport,
)
from cloudagent_protocol.ids import HostId, RunId
from cloudagent_protocol.resources import (
    AgentStatus,
    DeliveryState,
    EventType,
    RungName,
    RunState,
)

#: Of a delivery that has no process and no run of its own.
_PUT_IN: Final = "put into the turn under way"


def report(
    c: sqlite3.Connection, machine: Machine, frame: RunReport, applied: Applied, relay: Relay
) -> None:
    check_id("run", frame.run_id)
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


def keep_diff(c: sqlite3.Connection, machine: Machine, frame: RunDiff) -> None:
    """What a run changed; of one that is not known, nothing is kept."""
    check_id("run", frame.run_id)
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


def deliveries_of(c: sqlite3.Connection, run: RunRow) -> list[DeliveryRow]:
    return [row for one in run.delivery_ids if (row := deliveries.load(c, one))]


def _started(c: sqlite3.Connection, machine: Machine, run: RunRow, event: Started) -> list[RunId]:
    """The process is alive; returns the runs of earlier attempts, which are thereby over."""
    abandoned = _abandon_earlier(c, run)
    at_us = _time_of(event)
    for row in deliveries_of(c, run):
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
    for row in deliveries_of(c, run):
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
            check_id("apr", event.approval_id)
            approvals.request(c, run, event, body)
        case ApprovalResolved():
            approvals.resolve(c, run, event)
        case Text() | ToolCall():
            if not run.seen:
                _see(c, run, _time_of(event))
        case _:
            pass


def begin_to_answer(c: sqlite3.Connection, machine: Machine, delta: Delta) -> None:
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
    for row in deliveries_of(c, run):
        ladder.tell(c, deliveries.note(c, row, rung))


def _finished(
    c: sqlite3.Connection, machine: Machine, run: RunRow, event: Finished, relay: Relay
) -> set[HostId]:
    """How it ended; returns whose queues have something because of that."""
    again: set[HostId] = set()
    at_us = _time_of(event)
    reason = str(event.reason) if event.reason else None
    rows = deliveries_of(c, run)
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


def _json(event: RunEvent) -> str:
    try:
        return event.model_dump_json(exclude_none=True)
    except ValueError as error:  # nested too deeply, or half of a surrogate pair
        raise ProtocolError(f"an event that cannot be kept: {error}") from error


def _time_of(event: RunEvent) -> int:
    """When it happened, in microseconds; a machine's clock may run ahead of ours."""
    return min(clock.to_us(event.at), clock.now_us())
