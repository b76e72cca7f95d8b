"""Chains: what followed from a person's message where agents message each other, and whether it may go on."""

import sqlite3
from typing import Final

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.delivery import chains as rules
from cloudagent_backend.store import chains
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import MessageId
from cloudagent_protocol.resources import Chain, ChainDecide, ChainState, Page

router = APIRouter(prefix="/v1/chains", tags=["chains"])
_MISSING: Final = documented(ErrorCode.NOT_FOUND)


@router.get("")
async def list_chains(
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    state: ChainState | None = None,
) -> Page[Chain]:
    """Your chains in which agents have messaged agents, newest first; those of one state."""

    def work(c: sqlite3.Connection) -> list[Chain]:
        rows = chains.page(c, user.user_id, limit=limit + 1, after=after, state=state)
        return [chains.resource(c, row) for row in rows]

    return page_of(await world.database.read(work), limit, lambda chain: chain.id)


@router.get("/{chain_id}", responses=_MISSING)
async def show_chain(chain_id: MessageId, user: CurrentUser, world: CurrentWorld) -> Chain:
    """One chain, by the id of the message that began it."""
    return await world.database.read(lambda c: rules.show(c, user.user_id, chain_id))


@router.post("/{chain_id}", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def decide(
    chain_id: MessageId, body: ChainDecide, user: CurrentUser, world: CurrentWorld, once: Once
) -> Chain:
    """Decide about a chain that has paused.

    `continue` gives it as many turns again, `stop` ends what is left of it. The first answer
    counts; a later one is a conflict that says who was first.
    """
    return await world.service.decide(
        user.user_id,
        user.name,
        chain_id,
        body,
        lambda work: once(work, lambda decided: decided.chain),
    )
