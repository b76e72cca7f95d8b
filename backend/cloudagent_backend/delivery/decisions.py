"""A person's word about a chain that has paused; the first one counts. Inside the caller's transaction."""

import sqlite3
from dataclasses import dataclass

from cloudagent_backend.delivery import chains as rules
from cloudagent_backend.delivery import ladder, stopping
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store import chains, deliveries, outbox
from cloudagent_backend.store.chains import ChainRow
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import HostId, MessageId, UserId
from cloudagent_protocol.resources import Chain, ChainDecide, ChainState


@dataclass(frozen=True)
class Decided:
    chain: Chain
    #: Whose machines have something to do now.
    hosts: set[HostId]


def decide(
    c: sqlite3.Connection,
    user_id: UserId,
    by: str,
    chain_id: MessageId,
    body: ChainDecide,
    limits: Limits,
) -> Decided:
    """Let the chain go on with so many turns more, or end all that is left of it.

    Raises:
        Refused: there is no such chain, or it waits for nobody: who has answered is told.
    """
    shown = rules.show(c, user_id, chain_id)
    row = chains.load(c, user_id, chain_id)
    if row is None or row.state is not ChainState.PAUSED or body.pause not in {None, row.pauses}:
        raise _too_late(row, shown)
    decided = chains.answer(c, row, body.decision, by, limits.allowance)
    left = deliveries.open_of_chain(c, chain_id)
    if body.decision == "stop":
        for one in left:
            stopping.stop(c, one, by, detail="the chain was stopped")
    else:
        _release(c, [one for one in left if one.held and one.held_for is None])
    rules.tell(c, user_id, chain_id)
    return Decided(chains.resource(c, decided), {one.host_id for one in left})


def _release(c: sqlite3.Connection, rows: list[DeliveryRow]) -> None:
    """Back into the queue, at its end: what was sent meanwhile has overtaken them."""
    for row in rows:
        ladder.tell(c, deliveries.release(c, row, outbox.renumbered(c, row.host_id)))


def _too_late(row: ChainRow | None, shown: Chain) -> Refused:
    answer = row.last_answer if row else None
    if answer is None:
        return Refused(
            ErrorCode.CONFLICT,
            f"The chain has not paused: it has had {shown.turns} turns.",
            next="To stop what its agents do now, interrupt their runs.",
        )
    return Refused(
        ErrorCode.CONFLICT,
        f"{answer.by} has answered already: {answer.decision}.",
        next=f"See GET /v1/chains/{shown.id} for how it stands.",
    )
