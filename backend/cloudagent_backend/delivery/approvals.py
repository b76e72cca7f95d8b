"""What an agent asks a person: the request, the first answer, and its end. Inside the caller's transaction.

The machine has the last word on what became of a request, because it alone knows whether its agent
still waits; here the first answer wins, and every answer that comes too late is told so.
"""

import sqlite3
from typing import Final

from cloudagent_backend.delivery import ladder, states
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.store import agents, approvals, clock, deliveries, events, outbox, runs
from cloudagent_backend.store.approvals import ApprovalRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.asking import clipped, summary
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import (
    ApprovalDecision,
    ApprovalRequested,
    ApprovalResolved,
    Question,
    Reason,
    Resolution,
)
from cloudagent_protocol.frames import Decide
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import (
    AgentStatus,
    ApprovalAnswer,
    ApprovalKind,
    ApprovalState,
    DeliveryState,
    EventType,
    RungName,
    RunState,
)

_S = ApprovalState
#: What a request is at its end; after anything else, a person has decided.
_STATE: Final[dict[str, ApprovalState]] = {
    Resolution.EXPIRED: _S.EXPIRED,
    Resolution.CANCELLED: _S.CANCELLED,
}


def request(
    c: sqlite3.Connection, run: RunRow, event: ApprovalRequested | Question, body: str
) -> None:
    """An agent asks: kept, told, and its message's ladder says what it waits for."""
    row = deliveries.load(c, run.delivery_ids[0])
    if row is None or row.state in states.ENDS:
        return
    kind = ApprovalKind.QUESTION if isinstance(event, Question) else ApprovalKind.PERMISSION
    asked = ApprovalRow(
        id=event.approval_id,
        user_id=run.user_id,
        host_id=run.host_id,
        agent_id=run.agent_id,
        conversation_id=run.conversation_id,
        delivery_id=row.id,
        run_id=run.id,
        kind=kind,
        state=_S.PENDING,
        asked=body,
        asked_us=min(clock.to_us(event.at), clock.now_us()),
    )
    if not approvals.insert(c, asked):
        return
    events.append(c, run.user_id, EventType.APPROVAL_REQUESTED, asked.resource)
    reason = Reason.QUESTION if kind is ApprovalKind.QUESTION else Reason.APPROVAL
    agent = agents.load_any(c, run.agent_id)
    actor = agent.name if agent else run.agent_id
    rung = NewRung(RungName.WAITING, actor, summary(event), asked.asked_us, reason.value)
    moved = ladder.move(c, row, DeliveryState.WAITING, rung)
    ladder.tell(c, moved or deliveries.note(c, row, rung))
    runs.set_state(c, run.id, RunState.WAITING)
    ladder.show_agent(c, run.user_id, run.agent_id, AgentStatus.WAITING)


def resolve(c: sqlite3.Connection, run: RunRow, event: ApprovalResolved) -> None:
    """The machine says what became of it, and its agent goes on."""
    at_us = min(clock.to_us(event.at), clock.now_us())
    for row in (deliveries.load(c, one) for one in run.delivery_ids):
        if row is None or row.state in states.ENDS:
            continue
        if told := _rung(event, at_us):
            ladder.tell(c, deliveries.note(c, row, told))
    if event.approval_id is None:
        return
    asked = approvals.load(c, event.approval_id)
    if asked is None or (asked.host_id, asked.agent_id) != (run.host_id, run.agent_id):
        return
    state = _STATE.get(event.decision, _S.RESOLVED)
    if (
        state is _S.RESOLVED
    ):  # of a history that was restored: what was decided in the meantime is lost here
        approvals.decide(
            c, asked.id, event.decision, event.by, reason=event.reason, answer=event.answer
        )
    detail = None if state is _S.RESOLVED else event.reason
    if state is _S.CANCELLED and asked.state is _S.ANSWERED:
        detail = f"the answer came too late: {detail}"
    ladder.end_request(c, asked.id, state, at_us, detail)
    _go_on(c, run)


def answer(
    c: sqlite3.Connection, user_id: UserId, by: str, approval_id: str, body: ApprovalAnswer
) -> ApprovalRow:
    """Keep a person's decision, and put it on its way to the machine.

    Raises:
        Refused: there is no such request; somebody has decided already, or the agent no longer waits;
            or it cannot be answered so.
    """
    asked = approvals.load(c, approval_id)
    if asked is None or asked.user_id != user_id:
        raise not_found()
    _check(asked, body)
    decided = approvals.decide(
        c, asked.id, body.decision, by, reason=body.reason or None, answer=body.answer
    )
    if decided is None:
        raise _too_late(asked)
    say(c, decided)
    events.append(c, user_id, EventType.APPROVAL_RESOLVED, decided.resource)
    if row := deliveries.load(c, decided.delivery_id):
        ladder.tell(c, deliveries.note(c, row, _answered(decided)))
    return decided


def say(c: sqlite3.Connection, decided: ApprovalRow) -> None:
    """Put a decision into the outbox of the machine that asked."""
    if decided.decision is None or decided.decided_us is None:
        return
    frame = Decide(
        approval_id=decided.id,
        delivery_id=decided.delivery_id,
        decision=decided.decision,
        reason=decided.reason,
        answer=decided.answer,
        actor=decided.decided_by or "",
        decided_at=clock.at(decided.decided_us),
    )
    outbox.put(c, decided.host_id, frame)


def say_again(c: sqlite3.Connection, row: DeliveryRow) -> None:
    """In a new epoch: what was decided, and went down with the old outbox."""
    for asked in approvals.open_of(c, row.id):
        if asked.state is _S.ANSWERED:
            say(c, asked)


def _check(asked: ApprovalRow, body: ApprovalAnswer) -> None:
    lasting = body.decision in {ApprovalDecision.CONVERSATION, ApprovalDecision.ALWAYS}
    if asked.kind is ApprovalKind.QUESTION:
        if lasting:
            raise Refused(ErrorCode.INVALID, "A question is answered once, or with deny.")
        if body.decision is ApprovalDecision.ONCE and not body.answer:
            raise Refused(
                ErrorCode.INVALID,
                "A question needs an answer.",
                next="Send `answer`, or decide `deny` to give none.",
            )
        return
    if body.answer is not None:
        raise Refused(ErrorCode.INVALID, "This asks whether the agent may; it takes no `answer`.")
    if lasting and getattr(asked.request, "rule", None) is None:
        raise Refused(
            ErrorCode.INVALID,
            "This can be allowed only once: no rule could say what else it would allow.",
            next="Decide `once` or `deny`.",
        )


def _too_late(asked: ApprovalRow) -> Refused:
    if asked.decision is None:
        why = {
            _S.EXPIRED: "Nobody decided in time, so it counts as refused.",
            _S.CANCELLED: f"The agent no longer waits for this: {asked.detail or 'its run is over'}.",
        }[asked.state]
        return Refused(ErrorCode.CONFLICT, why, next="Send the agent a message.")
    at = clock.rfc3339(asked.decided_us or 0)
    more = {"decision": asked.decision, "decided_by": asked.decided_by or "", "decided_at": at}
    return Refused(
        ErrorCode.CONFLICT,
        f"{asked.decided_by} has answered already, at {at}: {asked.decision}.",
        next=f"See GET /v1/approvals/{asked.id} for what became of it.",
        more={name: str(value) for name, value in more.items()},
    )


def _go_on(c: sqlite3.Connection, run: RunRow) -> None:
    """The agent works again, once nothing of its run waits for a person."""
    for delivery_id in run.delivery_ids:
        row = deliveries.load(c, delivery_id)
        waits = any(one.state is _S.PENDING for one in approvals.open_of(c, delivery_id))
        if row is None or waits or row.state is not DeliveryState.WAITING:
            continue
        if moved := ladder.move(c, row, DeliveryState.RUNNING):
            ladder.tell(c, moved)
        runs.set_state(c, run.id, RunState.RUNNING)
    if not approvals.agent_waits(c, run.agent_id):
        ladder.show_agent(c, run.user_id, run.agent_id, AgentStatus.WORKING)


def _answered(decided: ApprovalRow) -> NewRung:
    said = decided.answer and f": {clipped(decided.answer)}"
    why = decided.reason and f": {clipped(decided.reason)}"
    detail = f"{decided.decision}{said or why or ''}"
    return NewRung(RungName.ANSWERED, decided.decided_by or "", detail, decided.decided_us)


def _rung(event: ApprovalResolved, at_us: int) -> NewRung | None:
    """What the ladder says that it does not know by the answer."""
    match event.decision:
        case Resolution.RULE:
            return NewRung(RungName.ANSWERED, event.by, f"a rule allows {event.rule}", at_us)
        case Resolution.EXPIRED:
            return NewRung(RungName.ANSWERED, event.by, event.reason or "nobody answered", at_us)
        case _:
            return None
