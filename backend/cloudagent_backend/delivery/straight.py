"""The short way: a message for a machine that is here, with room, and with nothing before it.

What `sending.lease` does for everything that waits is done here with the insert: the delivery begins
as `leased`, and its frame is handed back, to be written as soon as the transaction is on the disk.
All of it runs inside the caller's transaction. (docs/decisions/0020)
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from cloudagent_backend.delivery import budgets, ladder
from cloudagent_backend.delivery.framing import deliver, wishes
from cloudagent_backend.store import deliveries, outbox
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_backend.store.outbox import OutboxRow
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.ids import HostId, new_delivery_id
from cloudagent_protocol.resources import DeliveryMode, DeliveryState, Message, RungName


@dataclass(frozen=True)
class Way:
    """How far the short way is open."""

    #: Whether a machine can take work now, and nobody else takes it from it.
    open_to: Callable[[HostId], bool]
    #: Deliveries of a machine that may be unfinished, the new one included.
    room: int
    hop_limit: int


@dataclass(frozen=True)
class OnItsWay:
    """A delivery that is leased, and the frame that is to be written after the commit."""

    row: DeliveryRow
    frame: OutboxRow


def send(
    c: sqlite3.Connection, message: Message, agent: AgentRow, mode: DeliveryMode, way: Way
) -> OnItsWay | None:
    """A leased delivery, not told yet; null, and nothing is changed, if it has to queue."""
    host_id = agent.host_machine_id
    # One that interrupts is numbered before others, and makes way for itself.
    # An agent with a budget is looked at where deliveries are leased.
    budget = budgets.has_one(agent.limits)
    if mode is DeliveryMode.INTERRUPT or budget or not way.open_to(host_id):
        return None
    numbers = outbox.take_free_way(c, host_id, agent.id, way.room)
    if numbers is None:
        return None
    row = DeliveryRow(
        id=new_delivery_id(),
        user_id=agent.user_id,
        host_id=host_id,
        agent_id=agent.id,
        conversation_id=message.conversation_id,
        message_id=message.id,
        seq=numbers.delivery,
        state=DeliveryState.LEASED,
        mode=mode,
    )
    try:
        frame = outbox.keep(
            c, host_id, deliver(row, agent, message, way.hop_limit, seq=numbers.frame)
        )
    except ProtocolError:  # too large: what it means is told where everything else is leased
        outbox.leave_free_way(c, host_id)
        return None
    row = deliveries.insert(c, row, [NewRung(RungName.STORED, ladder.BACKEND, wishes(message))])
    return OnItsWay(row, frame)
