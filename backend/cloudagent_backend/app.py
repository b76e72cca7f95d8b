"""The composition root: the world, the routes, and what runs beside them."""

import logging
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from fastapi import APIRouter, FastAPI

from cloudagent_backend import crash
from cloudagent_backend.api import (
    accounts,
    agents,
    approvals,
    attachments,
    chains,
    conversations,
    daemon,
    device,
    errors,
    health,
    host_machines,
    idempotency,
    link,
    messages,
    runs,
    stream,
    tokens,
    ui,
    usage,
)
from cloudagent_backend.api.attempts import Attempts, Pacing
from cloudagent_backend.api.authenticator import Authenticator
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.express import Express
from cloudagent_backend.api.intake import Intake
from cloudagent_backend.api.limits import Gate
from cloudagent_backend.api.links import Links
from cloudagent_backend.api.metrics import Metered, Metrics
from cloudagent_backend.api.passwords import Passwords
from cloudagent_backend.api.world import World
from cloudagent_backend.config import Settings
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.dispatcher import Dispatcher
from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store import clock, device_logins, users
from cloudagent_backend.store import idempotency as answers
from cloudagent_backend.store.blobs import Blobs, files_beside
from cloudagent_backend.store.database import open_database
from cloudagent_protocol.errors import ErrorCode, Problem
from cloudagent_protocol.version import DISTRIBUTION

logger = logging.getLogger(__name__)

#: How often old answers and ended logins are removed.
_TIDY_EVERY_S: Final = 3_600.0
#: Any request can meet these; routes document the rest of theirs.
_COMMON: Final = documented(
    ErrorCode.BAD_REQUEST,
    ErrorCode.FORBIDDEN,
    ErrorCode.TOO_LARGE,
    ErrorCode.INVALID,
    ErrorCode.UNAVAILABLE,
)
_SIGNED_IN: Final = documented(ErrorCode.UNAUTHORIZED)


def _routes() -> APIRouter:
    """All of them; the busiest first: they are tried in turn."""
    routes = APIRouter(responses=_COMMON, redirect_slashes=False)
    people = (
        messages, conversations, runs, stream, agents, approvals, chains, usage,
        host_machines, tokens,
    )  # fmt: skip
    for part in people:
        routes.include_router(part.router, responses=_SIGNED_IN)
    routes.include_router(attachments.router, responses=_SIGNED_IN)
    routes.include_router(attachments.machines)
    for part in (link, daemon, accounts, device, health):
        routes.include_router(part.router)
    return routes


_ROUTES: Final = _routes()


def create_app(settings: Settings, *, page: Path = ui.BUILT) -> FastAPI:
    """The application. It lives between the start and the end of its lifespan."""
    metrics = Metrics()

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncGenerator[None]:
        async with running_world(settings, metrics) as world:
            app.state.world = world
            yield

    app = FastAPI(
        title="cloudagent",
        version=DISTRIBUTION,
        summary="Message your coding agents, which live on your own machines.",
        lifespan=living,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_COMMON,
    )
    errors.install(app)
    idempotency.install(app)
    # As they are, instead of `include_router`: what FastAPI makes of each is made once in a process.
    app.router.routes.extend(_ROUTES.routes)
    app.router.default = ui.Page(page)
    app.add_middleware(Express)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Metered, metrics=metrics)
    _describe_problems(app)
    return app


@asynccontextmanager
async def running_world(settings: Settings, metrics: Metrics) -> AsyncGenerator[World]:
    """The world, with what runs in it; links and streams are ended when it is left."""
    crash.arm(settings.crash_at)
    async with open_database(settings.database_url) as database:
        hub = Hub()
        fanout = Fanout(database, coalesce_s=settings.coalesce_s, ping_s=settings.ping_s)
        service = Service(
            database,
            hub,
            fanout,
            window=settings.window,
            backlog_cap=settings.backlog_cap,
            limits=Limits(
                settings.hop_limit,
                settings.chain_turns,
                settings.chain_tokens,
                settings.chain_cost_usd,
            ),
        )
        dispatcher = Dispatcher(
            database, service, hub, poll_s=settings.poll_s, events_kept=settings.events_kept
        )
        secret = await database.write(lambda c: users.server_secret(c, "access_tokens"))
        world = World(
            settings=settings,
            database=database,
            service=service,
            hub=hub,
            links=Links(database, service, hub),
            fanout=fanout,
            intake=Intake(database, Blobs(files_beside(database.path)), settings),
            authenticator=Authenticator(database, settings, secret),
            passwords=Passwords(
                at_once=settings.password_hashes_at_once,
                failures_per_minute=settings.failed_logins_per_minute,
            ),
            metrics=metrics,
            wrong_keys=Attempts(settings.wrong_keys_per_minute, 60),
            guesses_of_user=Attempts(settings.wrong_codes_of_user, 3_600),
            guesses_of_address=Attempts(settings.wrong_codes_of_address, 3_600),
            pacing=Pacing(settings.device_interval_s),
        )
        await service.start()
        async with anyio.create_task_group() as tg:
            tg.start_soon(dispatcher.run)
            tg.start_soon(world.links.run)
            tg.start_soon(_tidy, world)
            tg.start_soon(_reap, world)
            try:
                yield world
            finally:
                end_streams(world)
                with anyio.CancelScope(shield=True):
                    await world.links.settle()
                tg.cancel_scope.cancel()


def end_streams(world: World) -> None:
    """Close what would go on for ever: links (1012), and who follows events."""
    world.hub.shutdown()
    world.fanout.shutdown()


async def _tidy(world: World) -> None:
    while True:
        try:
            await world.database.write(answers.forget_old)
            await world.database.write(device_logins.forget_old)
            await world.database.write(
                lambda c: users.forget_old_logins(c, world.authenticator.ages)
            )
            await world.intake.tidy()
        except (sqlite3.Error, OSError):  # a full disk, a lock: that must not end the server
            logger.exception("tidying failed; it is tried again", extra={"action": "tidy"})
        await anyio.sleep(_TIDY_EVERY_S)


async def _reap(world: World) -> None:
    """Remove the hosts of jobs that vanished; not before those of a former life could come back."""
    ttl_s = world.settings.ephemeral_ttl_s
    while True:
        await anyio.sleep(ttl_s)
        try:
            gone = await world.service.reap(clock.now_us() - int(ttl_s * 1_000_000))
        except sqlite3.Error:
            logger.exception("reaping failed; it is tried again", extra={"action": "reap"})
        else:
            if gone:
                logger.info("removed %d ephemeral hosts", gone, extra={"action": "reap"})


def _describe_problems(app: FastAPI) -> None:
    """Add the `Problem` schema, which the documented errors refer to, to the OpenAPI schema."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        described = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(described.pop("$defs", {}) | {"Problem": described})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  FastAPI's documented way to extend it
