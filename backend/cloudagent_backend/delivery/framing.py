"""The frame that carries a delivery to its machine."""

from cloudagent_backend.store import agents
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.frames import Deliver, DeliveredMessage, Retried
from cloudagent_protocol.resources import Message


def deliver(
    row: DeliveryRow,
    agent: AgentRow,
    message: Message,
    hop_limit: int,
    retry: Retried | None = None,
    *,
    seq: int = 0,
) -> Deliver:
    """The message, and everything that is needed to run the agent on it."""
    elsewhere = row.conversation_id != message.conversation_id
    return Deliver(
        seq=seq,
        delivery_id=row.id,
        delivery_seq=row.seq,
        mode=row.mode,
        agent=agents.spec(agent),
        message=DeliveredMessage(
            id=message.id,
            conversation_id=row.conversation_id,
            author=message.author,
            text=message.text,
            created_at=message.created_at,
            chain_id=message.chain_id,
            depth=message.depth,
            caused_by=message.caused_by,
            attachments=message.attachments or None,
            written_in=message.conversation_id if elsewhere else None,
        ),
        retry=retry,
        hop_limit=hop_limit,
    )
