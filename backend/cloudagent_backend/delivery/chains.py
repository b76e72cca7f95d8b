"""Turns of a chain: counted where work is leased, and a person is asked when they are used up.

Two agents that always message each other are stopped by two limits. A message to an agent has a
depth, which no such message may exceed (`relay.py`). And a chain has a number of turns: what it
wants beyond them stays queued, held, until a person says `continue` or `stop`. The count is exact,
because a turn is taken in the transaction that leases the delivery; what was leased before the
pause had its turn and goes on.

All of it runs inside the caller's transaction.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import chains, deliveries, events, messages, usage
from cloudagent_backend.store.chains import Allowance
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import MessageId, UserId
from cloudagent_protocol.resources import (
    Chain,
    ChainState,
    EventType,
    RungName,
)


@dataclass(frozen=True)
class Limits:
    """What agents may do by themselves before a person is asked."""

    #: Depth above which a message to an agent is refused.
    hops: int = 8
    #: Turns that a chain has at once: at first, and again with each `continue`.
    turns: int = 30
    #: Tokens and price that a chain may use, likewise; null: as much as it wants.
    tokens: int | None = None
    cost_usd: float | None = None

    @property
    def allowance(self) -> Allowance:
        return Allowance(self.turns, self.tokens, self.cost_usd)


def may_go(c: sqlite3.Connection, row: DeliveryRow) -> bool:
    """Whether this queued delivery may be leased now; if not, it is held and its chain pauses.

    One that has had its turn already (a machine forgot it, it is sent again) takes no second one.
    """
    if row.chain_id is None or row.turn is not None:
        return True
    if (turn := chains.take_turn(c, row.chain_id)) is not None:
        deliveries.give_turn(c, row, turn)
        return True
    hold(c, row)
    chains.pause(c, row.chain_id)
    return False


def tell_paused(c: sqlite3.Connection, rows: Iterable[DeliveryRow]) -> None:
    """Tell of each chain of these deliveries that is paused, once."""
    for user_id, chain_id in {(row.user_id, row.chain_id): None for row in rows if row.chain_id}:
        chain = chains.load(c, user_id, chain_id)
        if chain and chain.state is ChainState.PAUSED:
            events.append(c, user_id, EventType.CHAIN_UPDATED, chains.resource(c, chain))


def hold(c: sqlite3.Connection, row: DeliveryRow) -> None:
    """Keep a queued delivery back until a person has decided."""
    detail = "the agents have had what this chain may use; a person decides whether they go on"
    rung = NewRung(RungName.WAITING, ladder.BACKEND, detail, reason=Reason.CHAIN_PAUSED.value)
    ladder.tell(c, deliveries.hold(c, row, rung))


def tell(c: sqlite3.Connection, user_id: UserId, chain_id: MessageId) -> None:
    """The chain has paused, more waits for it, or a person has decided."""
    if row := chains.load(c, user_id, chain_id):
        events.append(c, user_id, EventType.CHAIN_UPDATED, chains.resource(c, row))


def show(c: sqlite3.Connection, user_id: UserId, chain_id: MessageId) -> Chain:
    """A chain of the user's, also one in which no agent has messaged another one yet.

    Raises:
        Refused: there is no message of this id, or it began no chain.
    """
    if row := chains.load(c, user_id, chain_id):
        return chains.resource(c, row)
    message = messages.load(c, user_id, chain_id)
    if message is None or message.chain_id != message.id:
        raise not_found()
    return Chain(
        id=message.id,
        conversation_id=message.conversation_id,
        author=message.author,
        opening=message.text[: chains.OPENING_CHARS],
        state=ChainState.ACTIVE,
        turns=0,
        turns_allowed=0,
        usage=usage.of_message(c, message.id),
        waiting=0,
        pauses=0,
        conversation_ids=[message.conversation_id],
        agent_ids=[],
    )


def stopped_by(c: sqlite3.Connection, user_id: UserId, chain_id: MessageId) -> str | None:
    """Who has stopped the chain; null if it goes on."""
    row = chains.load(c, user_id, chain_id)
    if row is None or row.state is not ChainState.STOPPED:
        return None
    return row.last_answer.by if row.last_answer else ladder.BACKEND
