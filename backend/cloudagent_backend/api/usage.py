"""What your agents have used, day by day; and whether one that has used up its budget goes on."""

from datetime import date, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.store import usage
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import Agent, ChainDecide, DayUsage, Page

router = APIRouter(prefix="/v1", tags=["usage"])
#: Days that are shown if nobody asks for others, today included.
_DAYS: Final = 30


@router.get("/usage")
async def list_usage(
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    since: Annotated[date | None, Query(description="The first day (UTC).")] = None,
    until: Annotated[date | None, Query(description="The last day (UTC).")] = None,
    agent_id: AgentId | None = None,
) -> Page[DayUsage]:
    """What your agents' turns have used, one entry for each agent and day (UTC), the newest first.

    Without `since`, of the last 30 days. A day on which an agent ended no turn has no entry.
    """
    last = until or date.fromisoformat(usage.today())
    first = since or _days_before(last, _DAYS - 1)

    def cursor(row: DayUsage) -> str:
        return f"{row.day}.{row.agent_id}"

    day, _, below = after.partition(".")
    if after and not below:
        raise ApiError(ErrorCode.INVALID, f"after: {after!r} is no `next_cursor`")
    found = await world.database.read(
        lambda c: usage.page(
            c,
            user.user_id,
            first.isoformat(),
            last.isoformat(),
            agent_id,
            limit=limit + 1,
            after=(day, below) if after else None,
        )
    )
    return page_of(found, limit, cursor)


@router.post(
    "/agents/{agent_id}/budget", responses=documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT)
)
async def decide_budget(
    agent_id: AgentId, body: ChainDecide, user: CurrentUser, world: CurrentWorld, once: Once
) -> Agent:
    """Decide about an agent that has used up its budget of the day (`Agent.pause`).

    `continue` lets it use as much again today, `stop` cancels what waits for it. The first answer
    counts; a later one is a conflict that says who was first. A new day lets it go on by itself.
    """
    return await world.service.decide_budget(
        user.user_id, user.name, agent_id, body, lambda work: once(work, lambda agent: agent)
    )


def _days_before(day: date, days: int) -> date:
    try:
        return day - timedelta(days=days)
    except OverflowError:
        return date.min
