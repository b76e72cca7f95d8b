"""Host machines and their keys."""

import sqlite3

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.authenticator import Principal
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import DoneOnce, Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.delivery import commands
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import agents, events, hosts
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.errors import CloseCode, ErrorCode
from cloudagent_protocol.frames import CommandOp
from cloudagent_protocol.ids import HostId, UserId
from cloudagent_protocol.resources import (
    EventType,
    HostMachine,
    HostMachineCreate,
    HostMachineWithKey,
    Page,
)

router = APIRouter(prefix="/v1/host-machines", tags=["host machines"])


@router.post("", status_code=201, responses=documented(ErrorCode.CONFLICT))
async def create_host(
    body: HostMachineCreate, user: CurrentUser, world: CurrentWorld, once: Once
) -> HostMachineWithKey:
    """Add a machine; `raw_key` is in this answer and never again."""

    def work(c: sqlite3.Connection) -> HostMachineWithKey:
        made = hosts.create(c, user.user_id, body)
        _tell(c, user.user_id, made.id)
        return made

    made = await world.database.write(once(work, lambda host: host, secret=True))
    world.fanout.notify(user.user_id)
    return made


@router.get("")
async def list_hosts(
    user: CurrentUser, world: CurrentWorld, limit: Limit = 50, after: After = ""
) -> Page[HostMachine]:
    """Your machines, oldest first."""
    found = await world.database.read(
        lambda c: hosts.page(c, user.user_id, limit=limit + 1, after=after)
    )
    return page_of([hosts.resource(row) for row in found], limit, lambda host: host.id)


@router.get("/{host_id}", responses=documented(ErrorCode.NOT_FOUND))
async def show_host(host_id: HostId, user: CurrentUser, world: CurrentWorld) -> HostMachine:
    """One machine."""
    return hosts.resource(await world.database.read(lambda c: _own(c, user.user_id, host_id)))


@router.post("/{host_id}/rotate-key", responses=documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT))
async def rotate_key(
    host_id: HostId, user: CurrentUser, world: CurrentWorld, once: Once
) -> HostMachineWithKey:
    """Give the machine another key.

    The old one opens nothing from now on: its daemon is cut off until it has the new one, and
    ephemeral hosts that were made with it are removed.
    """
    removed: list[HostRow] = []

    def work(c: sqlite3.Connection) -> HostMachineWithKey:
        _own(c, user.user_id, host_id)
        raw_key = hosts.rotate_key(c, host_id)
        removed.extend(world.service.children_removed(c, host_id))
        _tell(c, user.user_id, host_id)
        return hosts.with_key(_own(c, user.user_id, host_id), raw_key)

    changed = await world.database.write(once(work, lambda host: host, secret=True))
    world.hub.disconnect(host_id, CloseCode.UNAUTHORIZED)
    for host in removed:
        world.service.ephemeral_removed(host)
    world.fanout.notify(user.user_id)
    return changed


_ASKED = documented(
    ErrorCode.NOT_FOUND, ErrorCode.CONFLICT, ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE
)


@router.post("/{host_id}/rescan", responses=_ASKED)
async def rescan_host(
    host_id: HostId, user: CurrentUser, world: CurrentWorld, once: Once
) -> HostMachine:
    """Have the machine look again which agent programs it has; the answer shows what it found."""
    return await _asked(world, user, host_id, CommandOp.RESCAN, once)


@router.post("/{host_id}/restart", status_code=202, responses=_ASKED)
async def restart_host(
    host_id: HostId, user: CurrentUser, world: CurrentWorld, once: Once
) -> HostMachine:
    """Have the machine's daemon start anew.

    What runs there may finish for a minute (`stop_timeout_s`); what does not is resumed by its next
    life. Refused where nobody would start it again.
    """
    return await _asked(world, user, host_id, CommandOp.RESTART, once)


async def _asked(
    world: World, user: Principal, host_id: HostId, op: CommandOp, once: DoneOnce
) -> HostMachine:
    def own(c: sqlite3.Connection) -> HostRow:
        once.before(c)
        return _own(c, user.user_id, host_id)

    host = await world.database.read(own)
    await commands.ask(world.hub, host, op, user.name)
    return await world.database.write(
        once(lambda c: hosts.resource(_own(c, user.user_id, host_id)), lambda host: host)
    )


@router.delete("/{host_id}", status_code=204, responses=documented(ErrorCode.NOT_FOUND))
async def delete_host(host_id: HostId, user: CurrentUser, world: CurrentWorld) -> None:
    """Remove the machine, its key and its agents; what they had still to do is cancelled.

    An ephemeral one has no agents of its own: what it had not begun goes back to their own machine.
    """

    def work(c: sqlite3.Connection) -> list[HostRow]:
        row = _own(c, user.user_id, host_id)
        removed = world.service.host_removed(c, user.user_id, host_id)
        for agent in agents.of_host(c, host_id):
            agents.delete(c, agent.id)
            gone = {"id": agent.id, "deleted": True}
            events.append(c, user.user_id, EventType.AGENT_UPDATED, gone)
        hosts.delete(c, host_id)
        gone = {"id": host_id, "deleted": True}
        events.append(c, user.user_id, EventType.HOST_UPDATED, gone)
        return [*removed, row] if row.parent_id else removed

    removed = await world.database.write(work)
    world.hub.disconnect(host_id, CloseCode.REVOKED)
    for host in removed:
        world.service.ephemeral_removed(host)
    world.fanout.notify(user.user_id)
    await world.service.bury(host_id)


def _own(c: sqlite3.Connection, user_id: UserId, host_id: HostId) -> HostRow:
    row = hosts.load(c, user_id, host_id)
    if row is None:
        raise not_found()
    return row


def _tell(c: sqlite3.Connection, user_id: UserId, host_id: HostId) -> None:
    events.append(c, user_id, EventType.HOST_UPDATED, hosts.resource(_own(c, user_id, host_id)))
