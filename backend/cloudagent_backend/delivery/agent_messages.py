"""What an agent says: from a machine's frame to a message. Inside the caller's transaction."""

import sqlite3

from cloudagent_backend.delivery.enclosing import enclose_of_agent
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay, linked
from cloudagent_backend.delivery.rights import check_id
from cloudagent_backend.delivery.run_reports import deliveries_of
from cloudagent_backend.store import (
    agents,
    clock,
    conversations,
    messages,
    runs,
)
from cloudagent_backend.store.messages import Cause
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import (
    Send,
)
from cloudagent_protocol.ids import HostId, MessageId
from cloudagent_protocol.resources import (
    Author,
    Message,
)


def take_in(c: sqlite3.Connection, machine: Machine, frame: Send, relay: Relay) -> set[HostId]:
    check_id("msg", frame.message_id)
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
        rows = deliveries_of(c, run)
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
