"""After a rate limit: the message is done over when the limit is over, by itself or at a person's word.

The machine starts nothing of the account until then, and says so. What was cut off has ended, as failed;
a new delivery of the message takes its place in front of what waits for the agent. Where the agent's
owner wants it, it is sent at once, and the machine begins it when the limit is over. Otherwise it is
held here until a person says `continue`. Either way it goes on with its session and is told that it was
begun before: nothing is lost, and nothing is begun twice unsaid.

All of it runs inside the caller's transaction.
"""

import sqlite3
from datetime import datetime, timedelta
from typing import Final

from cloudagent_backend.delivery import chains, ladder, queueing
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.queueing import Submitted
from cloudagent_backend.store import agents, clock, deliveries, events, messages
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import HostId, MessageId, UserId
from cloudagent_protocol.resources import AgentLimits, DeliveryState, EventType, RungName

#: No limit that is known lasts longer than a week; what is further ahead is a mistake.
FURTHEST: Final = timedelta(days=8)
_WHY: Final = Reason.RATE_LIMIT.value


def refusal(limits: AgentLimits, times: int, ahead: timedelta) -> str | None:
    """Why an agent's turn does not go on by itself; null if it does.

    `times` it has done so for this message already; the limit is over `ahead` from now.
    """
    if not limits.auto_resume:
        return "this agent does not go on by itself"
    if times >= limits.resume_times:
        return f"it has gone on by itself {times} times already"
    if ahead > timedelta(hours=limits.resume_within_h):
        return f"that is more than {limits.resume_within_h:g} hours ahead"
    return None


def after_limit(
    c: sqlite3.Connection, over: DeliveryRow, resets_at: datetime, backlog_cap: int
) -> HostId | None:
    """A limit has ended this delivery: another takes its place. Returns whose queue has it."""
    ahead = resets_at - clock.at(clock.now_us())
    if not timedelta(0) < ahead <= FURTHEST:
        return None
    agent = agents.load(c, over.user_id, over.agent_id)
    message = messages.load(c, over.user_id, over.message_id)
    # The machine of a job, which is not the agent's own, is gone by then.
    if agent is None or message is None or agent.host_machine_id != over.host_id:
        return None
    if message.chain_id and chains.stopped_by(c, over.user_id, message.chain_id):
        return None
    why_not = refusal(agent.limits, _times(c, over), ahead)
    rung = NewRung(RungName.WAITING, ladder.BACKEND, _words(why_not), reason=_WHY)
    try:
        row = queueing.queue(
            c, message, agent, backlog_cap, worked_in=over.conversation_id, over=over, in_front=True
        )
    except Refused:  # its machine's queue is full: it stays failed, and can be tried again
        return None
    row = deliveries.resume_at(c, row, rung, clock.to_us(resets_at), over.turn, held=bool(why_not))
    message.deliveries.append(queueing.summary(row))
    events.append(c, row.user_id, EventType.MESSAGE_UPDATED, message)
    ladder.tell(c, row)
    return row.host_id


def _times(c: sqlite3.Connection, over: DeliveryRow) -> int:
    """How often it has gone on by itself since a person has said something."""
    times = 0
    row: DeliveryRow | None = over
    while row and row.resumes_us is not None and row.held_for is None and row.retry_of:
        times += 1
        row = deliveries.load(c, row.retry_of)
    return times


def _words(why_not: str | None) -> str:
    if why_not is None:
        return "it goes on by itself when its account's limit is over"
    return f"it waits for a person to let it go on: {why_not}"


def go_on(c: sqlite3.Connection, user_id: UserId, by: str, message_id: MessageId) -> Submitted:
    """A person lets a message go on that a limit has cut off; the first word counts.

    Raises:
        Refused: there is no such message, or it waits for nobody.
    """
    message = messages.load(c, user_id, message_id)
    if message is None:
        raise not_found()
    held = [row for row in deliveries.of_message(c, user_id, message_id) if _waits(row)]
    if not held:
        raise Refused(
            ErrorCode.CONFLICT,
            "It waits for nobody's word: no rate limit has cut it off, or somebody has answered.",
            next=f"See where it is: cloudagent trace {message_id}",
        )
    for row in held:
        rung = NewRung(
            RungName.WAITING, by, f"{by} lets it go on when the limit is over", reason=_WHY
        )
        released = deliveries.release(c, row, row.seq)
        ladder.tell(c, deliveries.note(c, released, rung))
    return Submitted(message, {row.host_id for row in held})


def _waits(row: DeliveryRow) -> bool:
    return row.state is DeliveryState.QUEUED and row.held and row.held_for == _WHY
