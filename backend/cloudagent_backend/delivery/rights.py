"""What a machine may say and read: ids that it makes, agents that it speaks for."""

import re
import sqlite3

from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import (
    agents,
    conversations,
)
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.ids import AgentId, ConversationId


def check_id(kind: str, given: str) -> None:
    """Ids that are made on machines end up in paths, pages and logs."""
    if not re.fullmatch(kind + "_[0-9A-Za-z]{1,40}", given):
        raise ProtocolError(f"not an id of a {kind}")


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
