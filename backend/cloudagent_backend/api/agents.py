"""Agents: making, changing and removing them. Their host's daemon is told of each change."""

import sqlite3
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import agents, events, hosts
from cloudagent_backend.store.agents import AgentRow, NameTakenError
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId, HostId, UserId
from cloudagent_protocol.resources import Agent, AgentCreate, AgentUpdate, EventType, Page

router = APIRouter(prefix="/v1/agents", tags=["agents"])

#: Fields that an agent always has; a null for them is a mistake.
_REQUIRED: Final = frozenset({"name", "driver", "mode", "env"})


@router.post("", status_code=201, responses=documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT))
async def create_agent(
    body: AgentCreate, user: CurrentUser, world: CurrentWorld, once: Once
) -> Agent:
    """Make an agent on one of your machines. Its name is yours once."""

    def work(c: sqlite3.Connection) -> Agent:
        host = hosts.load(c, user.user_id, body.host_machine_id)
        if host is None:
            raise ApiError(
                ErrorCode.NOT_FOUND,
                f"There is no host machine {body.host_machine_id[:50]!r}.",
                next="See GET /v1/host-machines for yours.",
            )
        if host.parent_id is not None:
            raise ApiError(
                ErrorCode.CONFLICT,
                f"{host.name} is the machine of a job and will be gone; an agent needs another.",
                next="See GET /v1/host-machines for those without a parent_id.",
            )
        return _told(c, _named(lambda: agents.create(c, user.user_id, body)))

    agent = await world.database.write(once(work, lambda agent: agent))
    await _after_change(world, user.user_id, agent.host_machine_id)
    return agent


@router.get("")
async def list_agents(
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    host_machine_id: HostId | None = None,
    name: Annotated[str | None, Query(max_length=100)] = None,
) -> Page[Agent]:
    """Your agents, oldest first; those of one machine, or the one of a name."""

    def work(c: sqlite3.Connection) -> list[Agent]:
        rows = agents.page(
            c, user.user_id, limit=limit + 1, after=after, host_id=host_machine_id, name=name
        )
        return [agents.resource(c, row) for row in rows]

    return page_of(await world.database.read(work), limit, lambda agent: agent.id)


@router.get("/{agent_id}", responses=documented(ErrorCode.NOT_FOUND))
async def show_agent(agent_id: AgentId, user: CurrentUser, world: CurrentWorld) -> Agent:
    """One agent."""
    return await world.database.read(lambda c: agents.resource(c, _own(c, user.user_id, agent_id)))


@router.patch("/{agent_id}", responses=documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT))
async def change_agent(
    agent_id: AgentId, body: AgentUpdate, user: CurrentUser, world: CurrentWorld
) -> Agent:
    """Change the fields that are sent; null clears an optional one.

    A run that is under way goes on as it began.
    """
    changes = body.model_dump(exclude_unset=True, mode="json")
    _check_cleared(changes)

    def work(c: sqlite3.Connection) -> Agent:
        row = _own(c, user.user_id, agent_id)
        changed = _named(lambda: agents.update(c, row, changes))
        world.service.agent_changed(c, changed)
        return _told(c, changed)

    agent = await world.database.write(work)
    await _after_change(world, user.user_id, agent.host_machine_id)
    return agent


@router.delete("/{agent_id}", status_code=204, responses=documented(ErrorCode.NOT_FOUND))
async def delete_agent(agent_id: AgentId, user: CurrentUser, world: CurrentWorld) -> None:
    """Remove the agent; what it had still to do is cancelled. Its conversations stay readable."""

    def work(c: sqlite3.Connection) -> HostId:
        row = _own(c, user.user_id, agent_id)
        world.service.agent_removed(c, user.user_id, agent_id)
        agents.delete(c, agent_id)
        gone = {"id": agent_id, "deleted": True}
        events.append(c, user.user_id, EventType.AGENT_UPDATED, gone)
        return row.host_machine_id

    host_id = await world.database.write(work)
    await _after_change(world, user.user_id, host_id)


def _own(c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> AgentRow:
    row = agents.load(c, user_id, agent_id)
    if row is None:
        raise not_found()
    return row


def _named(step: Callable[[], AgentRow]) -> AgentRow:
    try:
        return step()
    except NameTakenError as error:
        raise ApiError(
            ErrorCode.CONFLICT,
            f"You have an agent named {error} already.",
            next="Choose another name, or change that agent.",
        ) from error


def _told(c: sqlite3.Connection, row: AgentRow) -> Agent:
    agent = agents.resource(c, row)
    events.append(c, row.user_id, EventType.AGENT_UPDATED, agent)
    return agent


def _check_cleared(changes: dict[str, Any]) -> None:
    cleared = sorted(name for name in _REQUIRED if name in changes and changes[name] is None)
    if cleared:
        raise ApiError(ErrorCode.INVALID, f"{', '.join(cleared)}: cannot be null")


async def _after_change(world: World, user_id: UserId, host_id: HostId) -> None:
    await world.service.agents_changed(host_id)
    world.fanout.notify(user_id)
