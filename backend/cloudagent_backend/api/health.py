"""Whether the server lives and is ready, how it fares, and which version it is."""

import sqlite3

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from cloudagent_backend.api.auth import current_user
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.limits import is_loopback
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.store import counts, schema
from cloudagent_backend.store.database import DatabaseError
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.version import DISTRIBUTION, MINIMUM_DAEMON, SUPPORTED

router = APIRouter(tags=["server"])


class Health(BaseModel):
    status: str = "ok"


class Version(BaseModel):
    version: str
    #: Versions of the wire protocol that it speaks.
    protocol: list[int]
    minimum_daemon_version: str


@router.get("/healthz")
async def show_health() -> Health:
    """The process lives."""
    return Health()


@router.get("/readyz", responses=documented(ErrorCode.UNAVAILABLE))
async def show_readiness(world: CurrentWorld) -> Health:
    """The database answers and has the right schema."""
    try:
        found = await world.database.read(schema.version)
    except (sqlite3.Error, DatabaseError) as error:
        raise ApiError(ErrorCode.UNAVAILABLE, "The database does not answer.") from error
    if found != len(schema.MIGRATIONS):
        raise ApiError(ErrorCode.UNAVAILABLE, f"The database has schema version {found}.")
    return Health()


@router.get("/v1/version")
async def show_version() -> Version:
    """Which version this server is, and what it speaks."""
    return Version(
        version=DISTRIBUTION, protocol=list(SUPPORTED), minimum_daemon_version=MINIMUM_DAEMON
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN),
)
async def show_metrics(request: Request, world: CurrentWorld) -> Response:
    """Numbers for Prometheus: to this machine itself, or to an admin's token."""
    peer = request.client.host if request.client else ""
    # With a public URL there is a proxy, most likely here: then everybody comes from this machine.
    if world.settings.public_url or not is_loopback(peer):
        principal = await current_user(request, None, None)
        if not principal.user.is_admin:
            raise ApiError(ErrorCode.FORBIDDEN, "Only an admin may see the server's numbers.")
    taken = await world.database.read(counts.take)
    text = world.metrics.text(taken, world.hub.connected)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
