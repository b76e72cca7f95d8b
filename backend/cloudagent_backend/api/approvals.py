"""What agents ask people: may I, and which of these; and the first answer to it."""

import sqlite3
from typing import Annotated, Final

from fastapi import APIRouter, Query

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import approvals
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import ApprovalId
from cloudagent_protocol.resources import Approval, ApprovalAnswer, ApprovalState, Page

router = APIRouter(prefix="/v1/approvals", tags=["approvals"])
_MISSING: Final = documented(ErrorCode.NOT_FOUND)


@router.get("")
async def list_approvals(
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    state: ApprovalState | None = None,
    conversation_id: Annotated[str | None, Query(max_length=100)] = None,
) -> Page[Approval]:
    """What your agents have asked you, newest first; those of one state or conversation."""

    def work(c: sqlite3.Connection) -> list[Approval]:
        rows = approvals.page(
            c,
            user.user_id,
            limit=limit + 1,
            after=after,
            state=state,
            conversation_id=conversation_id,
        )
        return [row.resource for row in rows]

    return page_of(await world.database.read(work), limit, lambda approval: approval.id)


@router.get("/{approval_id}", responses=_MISSING)
async def show_approval(
    approval_id: ApprovalId, user: CurrentUser, world: CurrentWorld
) -> Approval:
    """One request, with what became of it."""
    row = await world.database.read(lambda c: approvals.load(c, approval_id))
    if row is None or row.user_id != user.user_id:
        raise not_found()
    return row.resource


@router.post("/{approval_id}", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def answer(
    approval_id: ApprovalId,
    body: ApprovalAnswer,
    user: CurrentUser,
    world: CurrentWorld,
    once: Once,
) -> Approval:
    """Decide what an agent asks. The first answer counts.

    A later one is a conflict that says who was first, and when (`decided_by`, `decided_at`,
    `decision`). `conversation` and `always` allow what `rule` says, and nothing where it is null.
    """
    return await world.service.answer(
        user.user_id,
        user.name,
        approval_id,
        body,
        lambda work: once(work, lambda row: row.resource),
    )
