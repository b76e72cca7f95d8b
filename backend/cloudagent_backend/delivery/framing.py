"""The frame that carries a delivery to its machine."""

from cloudagent_backend.store import agents
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.frames import Deliver, DeliveredMessage, Retried
from cloudagent_protocol.resources import AgentSpec, Message


def may_want(own: str, wanted: str) -> bool:
    """Whether a message may want this permission mode of an agent whose own is that one.

    Never more than the agent may: its own, `plan`, in which no driver does more than look, and of an agent
    that may do everything whatever is wanted. `default` is no narrower one than `acceptEdits`: it is what
    the program on its machine is set up for.
    """
    return wanted in {own, "plan"} or own == "bypassPermissions"


def wishes(message: Message) -> str | None:
    """What the message wants in place of its agent's own, for its ladder; null: nothing."""
    wanted = {"model": message.model, "mode": message.permission_mode}
    asked = [f"the {what} {name}" for what, name in wanted.items() if name is not None]
    return f"asked for {' and '.join(asked)}" if asked else None


def narrowed(agent: AgentRow, message: Message) -> str | None:
    """Why the message does not get the mode that it asked for: its agent may do less than it might then."""
    wanted = message.permission_mode
    if wanted is None or may_want(agent.mode, wanted):
        return None
    return f"{agent.name} works in the mode {agent.mode} by now: this goes in that one, not in {wanted}"


def _as_wanted(agent: AgentRow, message: Message) -> AgentSpec:
    """The agent for this message. Its own mode may have been narrowed since that was written."""
    spec = agents.spec(agent)
    if message.model is not None:
        spec.model = message.model
    wanted = message.permission_mode
    if wanted is not None and may_want(agent.mode, wanted):
        spec.mode = wanted
    return spec


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
        agent=_as_wanted(agent, message),
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
