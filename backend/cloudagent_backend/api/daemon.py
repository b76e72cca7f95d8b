"""What a machine key opens beside the link: its own host, and ephemeral hosts for jobs."""

import sqlite3

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentMachine
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.store import agents, events, hosts
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import (
    EphemeralHost,
    EphemeralHostCreate,
    EventType,
    HostMachine,
    HostMachineWithKey,
)

router = APIRouter(
    prefix="/v1/daemon",
    tags=["daemon"],
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.RATE_LIMITED),
)


@router.get("/host")
async def show_own_host(host: CurrentMachine) -> HostMachine:
    """The machine that the key belongs to: how a daemon checks its key."""
    return hosts.resource(host)


@router.delete("/host", status_code=204)
async def remove_own_host(host: CurrentMachine, world: CurrentWorld) -> None:
    """Remove the ephemeral host that the key belongs to: its job is over.

    What it had not begun goes back to the agents' own host. Any other host is only removed by its
    owner.
    """
    if host.parent_id is None:
        raise ApiError(
            ErrorCode.FORBIDDEN,
            f"{host.name} is not ephemeral; only its owner removes it.",
            next="Remove it in the page (Hosts).",
        )
    await world.service.remove_ephemeral(host)


@router.post(
    "/ephemeral-hosts",
    status_code=201,
    responses=documented(ErrorCode.NOT_FOUND, ErrorCode.RATE_LIMITED),
)
async def create_ephemeral_host(
    body: EphemeralHostCreate, parent: CurrentMachine, world: CurrentWorld
) -> EphemeralHost:
    """Make a host that lives as long as one job, with a key of its own, and serves your agents.

    Several may live at once: they do not take each other's place, as two daemons with one key would.
    One that stays away for `ttl_s` is removed, so that an answer that got lost leaves nothing behind.
    """
    settings = world.settings

    def work(c: sqlite3.Connection) -> tuple[HostMachineWithKey, list[agents.AgentRow]]:
        _check_may_have_another(c, parent, settings.ephemeral_hosts)
        serves = _agent_of(c, parent, body.agent) if body.agent else None
        made = hosts.create_ephemeral(c, parent, body, serves)
        row = hosts.load(c, parent.user_id, made.id)
        assert row is not None
        events.append(c, parent.user_id, EventType.HOST_UPDATED, hosts.resource(row))
        return made, agents.served_by(c, row)

    made, served = await world.database.write(work)
    world.fanout.notify(parent.user_id)
    return EphemeralHost(
        **made.model_dump(),
        agents=[agents.ref(agent) for agent in served],
        takes=body.takes,
        ttl_s=settings.ephemeral_ttl_s,
    )


def _check_may_have_another(c: sqlite3.Connection, parent: HostRow, most: int) -> None:
    if parent.parent_id is not None:
        raise ApiError(ErrorCode.FORBIDDEN, "An ephemeral host cannot make others.")
    if len(hosts.children(c, parent.id)) >= most:
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            f"{parent.name} has {most} ephemeral hosts already.",
            next="Let a job end, or remove hosts in the page.",
            headers={"Retry-After": "30"},
        )


def _agent_of(c: sqlite3.Connection, parent: HostRow, wanted: str) -> AgentId:
    found = agents.of_host(c, parent.id)
    for agent in found:
        if wanted in (agent.id, agent.name):
            return agent.id
    names = ", ".join(agent.name for agent in found[:20]) or "none"
    raise ApiError(
        ErrorCode.NOT_FOUND,
        f"{parent.name} has no agent {wanted!r} (it has: {names}).",
        next=f"Make the agent on {parent.name} in the page, or name one of these.",
    )
