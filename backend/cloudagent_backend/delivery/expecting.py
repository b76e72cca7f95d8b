"""Whose process may be started because a person looks at a conversation; read, never written."""

import sqlite3

from cloudagent_backend.delivery import budgets
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.delivery.states import ENDS
from cloudagent_backend.store import agents, conversations, deliveries
from cloudagent_backend.store.agents import AgentRow
from cloudagent_protocol.ids import ConversationId, UserId


def expected(
    c: sqlite3.Connection, user_id: UserId, conversation_id: ConversationId
) -> AgentRow | None:
    """The agent that the person's next message would go to, if it would begin at once.

    None of several agents: it is not known which. None that has used up its budget, and none whose
    conversation is at work. What else would hold it up, its machine knows.

    Raises:
        Refused: there is no such conversation.
    """
    conversation = conversations.load(c, user_id, conversation_id)
    if conversation is None:
        raise not_found()
    if conversation.kind != "people" or len(conversation.agent_ids) != 1:
        return None
    agent = agents.load(c, user_id, conversation.agent_ids[0])
    if agent is None or budgets.why_not(c, agent):
        return None
    newest = deliveries.of_conversation(c, conversation_id, limit=1, after="")
    return agent if all(row.state in ENDS for row in newest) else None
