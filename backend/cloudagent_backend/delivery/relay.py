"""From an agent to another one: whose message goes where, and what becomes of one that may not go.

Two agents of a person have one conversation with each other, and what either says in it is
delivered to the other. The other works on it there, unless it is an *answer*: then it works on it
where it had asked, so that the answer meets the work that it was needed for.

What cannot be delivered is kept, with a delivery that says why. If it was a question, its author is
told by a message of the system's, because it may have ended its turn to wait for the answer.

All of it runs inside the caller's transaction.
"""

import sqlite3
from dataclasses import dataclass

from cloudagent_backend.delivery import chains as rules
from cloudagent_backend.delivery import ladder, queueing
from cloudagent_backend.delivery.away import away
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store import (
    agents,
    chains,
    clock,
    conversations,
    deliveries,
    events,
    hosts,
    messages,
)
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.messages import Cause
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import AgentEntry, FindAgent, FoundAgent
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    HostId,
    MessageId,
    UserId,
    new_delivery_id,
    new_message_id,
)
from cloudagent_protocol.resources import (
    Author,
    ChainState,
    DeliveryState,
    EventType,
    Message,
    RungName,
)

_SYSTEM = Author(type="system", id="system", name="cloudagent")
#: Characters of an undelivered message that its author is shown.
_QUOTED_CHARS = 500
_PAUSED = (
    "the chain of messages that this belongs to has had its turns; it is delivered when a person "
    "lets it go on"
)


# --- rules ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A message's place in its chain."""

    chain_id: MessageId
    depth: int
    caused_by: MessageId | None


def linked(message_id: MessageId, cause: Cause | None) -> Link:
    """The place of what an agent says.

    Without a known cause (it is from before a restored backup) it begins a chain, but at depth 1,
    because it is no person's message.
    """
    if cause is None:
        return Link(message_id, 1, None)
    return Link(cause.chain_id, cause.depth + 1, cause.id)


def answers(conversation_id: ConversationId, target: AgentId, cause: Cause | None) -> bool:
    """Whether what is said to `target` in their conversation answers what it had asked there."""
    return (
        cause is not None
        and cause.conversation_id == conversation_id
        and cause.author.id == target
        and cause.asked_in is not None
    )


def workplace(
    conversation_id: ConversationId, target: AgentId, cause: Cause | None
) -> ConversationId:
    """The conversation in which `target` works on what is said to it."""
    if cause and cause.asked_in and answers(conversation_id, target, cause):
        return cause.asked_in
    return conversation_id


def refusal(depth: int, hops: int) -> str | None:
    """Why a message of this depth goes to no agent; null if it may."""
    if depth <= hops:
        return None
    return (
        f"it would be number {depth} in a chain of messages that a person began, and an agent gets "
        f"none above {hops}"
    )


# --- what a tool asks -----------------------------------------------------------------


def roster(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> list[AgentEntry]:
    """Whom the agent may message: the other agents of its owner."""
    rows = agents.page(c, user_id, limit=1_000, after="")
    return [_entry(c, row) for row in rows if row.id != agent_id]


def _entry(c: sqlite3.Connection, row: AgentRow) -> AgentEntry:
    host = hosts.load_any(c, row.host_machine_id)
    return AgentEntry(
        id=row.id,
        name=row.name,
        driver=row.driver,
        host=host.name if host else "unknown",
        status=agents.resource(c, row).status,
    )


def find(
    c: sqlite3.Connection, user_id: UserId, query: FindAgent, limits: Limits
) -> FoundAgent | str:
    """Where the agent's message to another one goes; a text for a model if it may not be sent."""
    target = _named(c, user_id, query.wanted)
    if target is None:
        others = ", ".join(entry.name for entry in roster(c, user_id, query.agent_id))
        return f"There is no agent {query.wanted!r}. You can message: {others or 'nobody'}."
    if target.id == query.agent_id:
        return "That is you: an agent cannot message itself."
    cause = messages.cause(c, user_id, query.caused_by, query.agent_id)
    if cause and (why := refusal(cause.depth + 1, limits.hops)):
        return f"{why}. End your turn with what you have."
    if cause and (by := rules.stopped_by(c, user_id, cause.chain_id)):
        return f"{by} has stopped this chain of messages. End your turn."
    return FoundAgent(
        id=target.id,
        name=target.name,
        conversation_id=conversations.between(c, user_id, query.agent_id, target.id),
        waits_for=_waits_for(c, target, cause),
    )


def _named(c: sqlite3.Connection, user_id: UserId, wanted: str) -> AgentRow | None:
    """An agent of the user's by its id, its name, or its name in other letters, in this order."""
    if by_id := agents.load(c, user_id, AgentId(wanted)):
        return by_id
    if exact := agents.page(c, user_id, limit=1, after="", name=wanted):
        return exact[0]
    rows = agents.page(c, user_id, limit=1_000, after="")
    alike = [row for row in rows if row.name.casefold() == wanted.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def _waits_for(c: sqlite3.Connection, target: AgentRow, cause: Cause | None) -> str | None:
    chain = chains.load(c, target.user_id, cause.chain_id) if cause else None
    if chain and chain.state is ChainState.PAUSED:
        return _PAUSED
    gone = away(c, target.host_machine_id, target.id)
    if gone is None:
        return None
    since = f" since {clock.rfc3339(gone.since_us)}" if gone.since_us else ""
    return f"its machine {gone.words}{since}; it is delivered when that is back"


# --- what was sent --------------------------------------------------------------------


@dataclass(frozen=True)
class Relay:
    """How agents' messages are taken in."""

    limits: Limits
    backlog_cap: int

    def take(
        self,
        c: sqlite3.Connection,
        user_id: UserId,
        message: Message,
        other: AgentId | None,
        cause: Cause | None,
    ) -> set[HostId]:
        """Keep what an agent said, in a conversation with `other` if that is not null.

        Returns whose machines have work now.
        """
        to_person = message.in_reply_to and cause and cause.author.type == "user"
        if other is None or to_person:
            if messages.insert(c, user_id, message):
                events.append(c, user_id, EventType.MESSAGE_CREATED, message)
            return set()
        asked_in = (cause.worked_in if cause else None) or message.conversation_id
        if not messages.insert(c, user_id, message, asked_in):
            return set()
        target = agents.load_any(c, other)
        if target is None:  # its row is kept when it is removed, so this was another database's
            events.append(c, user_id, EventType.MESSAGE_CREATED, message)
            return set()
        row = self._deliver(c, message, target, workplace(message.conversation_id, other, cause))
        if row.state is DeliveryState.DEAD and not (
            message.auto_published or answers(message.conversation_id, other, cause)
        ):
            return self._give_notice(c, message, target, asked_in, row) | {row.host_id}
        return {row.host_id}

    def _deliver(
        self, c: sqlite3.Connection, message: Message, target: AgentRow, where: ConversationId
    ) -> DeliveryRow:
        """A delivery, queued if it may be, told with its message."""
        user_id, chain_id = target.user_id, message.chain_id or message.id
        chain = chains.begin(c, user_id, chain_id, self.limits.allowance)
        why, reason = refusal(message.depth, self.limits.hops), Reason.HOP_LIMIT.value
        if message.author.type == "system":
            why = None  # a notice of ours is no hop of the agents'
        if target.deleted_us is not None:
            why, reason = f"{target.name} was removed", Reason.AGENT_UNKNOWN.value
        row: DeliveryRow | None = None
        if chain.state is ChainState.STOPPED:
            by = chain.last_answer.by if chain.last_answer else ladder.BACKEND
            why_so = Reason.INTERRUPTED.value
            rung = NewRung(RungName.CANCELLED, by, "the chain was stopped", reason=why_so)
            row = _ended(c, message, target, where, rung, why_so)
        elif why is None:
            try:
                row = queueing.queue(c, message, target, self.backlog_cap, worked_in=where)
            except Refused as refused:
                why, reason = refused.detail, Reason.BACKLOG_FULL.value
        if row is None:
            rung = NewRung(RungName.DEAD, ladder.BACKEND, why, reason=reason)
            row = _ended(c, message, target, where, rung, reason)
        message.deliveries = [queueing.summary(row)]
        events.append(c, user_id, EventType.MESSAGE_CREATED, message)
        if chain.state is ChainState.PAUSED and row.state is DeliveryState.QUEUED:
            rules.hold(c, row)
            rules.tell(c, user_id, chain_id)
        else:
            ladder.tell(c, row)
        return row

    def _give_notice(
        self,
        c: sqlite3.Connection,
        lost: Message,
        target: AgentRow,
        where: ConversationId,
        row: DeliveryRow,
    ) -> set[HostId]:
        """Tell an agent, where it asked, that its question reached nobody."""
        author = agents.load(c, target.user_id, AgentId(lost.author.id))
        if author is None:
            return set()
        why = deliveries.trace(row).rungs[-1].detail
        quoted = "\n".join(f"> {line}" for line in lost.text[:_QUOTED_CHARS].splitlines())
        notice = Message(
            id=new_message_id(),
            conversation_id=where,
            author=_SYSTEM,
            text=f"Your message {lost.id} did not reach {target.name}: {why}.\n\n{quoted}",
            created_at=clock.at(clock.now_us()),
            chain_id=lost.chain_id,
            depth=lost.depth + 1,
            caused_by=lost.id,
        )
        messages.insert(c, author.user_id, notice)
        return {self._deliver(c, notice, author, where).host_id}


def _ended(
    c: sqlite3.Connection,
    message: Message,
    target: AgentRow,
    where: ConversationId,
    rung: NewRung,
    reason: str,
) -> DeliveryRow:
    """A delivery that is over before it began; it has no place in its host's queue."""
    row = DeliveryRow(
        id=new_delivery_id(),
        user_id=target.user_id,
        host_id=target.host_machine_id,
        agent_id=target.id,
        conversation_id=where,
        message_id=message.id,
        seq=0,
        state=DeliveryState(rung.name.value),
        outcome=rung.name.value,
        reason=reason,
        chain_id=message.chain_id,
    )
    return deliveries.insert(c, row, [NewRung(RungName.STORED, ladder.BACKEND), rung])
