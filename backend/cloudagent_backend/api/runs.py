"""Runs: what an agent does with a message, event by event."""

import sqlite3
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import page_of
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import diffs, runs
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import RunId, UserId
from cloudagent_protocol.resources import Page, Run, RunDiff, RunInterrupt

router = APIRouter(prefix="/v1/runs", tags=["runs"])
_MISSING: Final = documented(ErrorCode.NOT_FOUND)


@router.get("/{run_id}", responses=_MISSING)
async def show_run(run_id: RunId, user: CurrentUser, world: CurrentWorld) -> Run:
    """One run."""
    row = await world.database.read(lambda c: _own(c, user.user_id, run_id))
    return row.resource


@router.get("/{run_id}/events", responses=_MISSING)
async def list_events(
    run_id: RunId,
    user: CurrentUser,
    world: CurrentWorld,
    limit: Annotated[int, Query(ge=1, le=500, description="Entries of a page at most.")] = 100,
    after: Annotated[int, Query(ge=0, le=2**53, description="The `seq` after which to go on.")] = 0,
) -> Page[dict[str, Any]]:
    """A run's events in their order, each `{seq, type, at, ...}`."""

    def work(c: sqlite3.Connection) -> list[dict[str, Any]]:
        _own(c, user.user_id, run_id)
        return runs.events(c, run_id, after=after, limit=limit + 1)

    found = await world.database.read(work)
    return page_of(found, limit, lambda event: str(event["seq"]))


@router.get("/{run_id}/diff", responses=_MISSING)
async def show_diff(run_id: RunId, user: CurrentUser, world: CurrentWorld) -> RunDiff:
    """What a run changed in the repository that it worked in; without files, where that is nothing.

    404 too while nothing was told of it: it still works, or its folder is in no repository.
    """

    def work(c: sqlite3.Connection) -> RunDiff:
        _own(c, user.user_id, run_id)
        diff = diffs.load(c, run_id)
        if diff is None:
            raise not_found()
        return RunDiff(run_id=run_id, **dict(diff))

    return await world.database.read(work)


@router.post(
    "/{run_id}/interrupt",
    status_code=202,
    responses=_MISSING | documented(ErrorCode.CONFLICT),
)
async def interrupt_run(
    run_id: RunId,
    user: CurrentUser,
    world: CurrentWorld,
    once: Once,
    body: RunInterrupt | None = None,
) -> Run:
    """Ask the machine to stop a run. It ends a moment later, or when the machine is back.

    The agent is asked first, so that it can leave its work in order. With `now` its processes are killed
    at once, whether it was asked before or not.
    """
    return await world.service.interrupt(
        user.user_id,
        user.name,
        run_id,
        lambda work: once(work, lambda row: row.resource),
        now=body is not None and body.now,
    )


def _own(c: sqlite3.Connection, user_id: UserId, run_id: RunId) -> RunRow:
    row = runs.load(c, run_id)
    if row is None or row.user_id != user_id:
        raise not_found()
    return row
