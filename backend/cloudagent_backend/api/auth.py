"""Who may: the guards of the routes, of the page's sockets and of the daemons' endpoint."""

import time
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import Depends, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from cloudagent_backend.api.authenticator import Principal
from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.api.limits import is_address
from cloudagent_backend.api.world import World, world_of
from cloudagent_backend.config import Settings
from cloudagent_backend.store import keys
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.errors import ErrorCode

__all__ = [
    "CurrentMachine",
    "CurrentUser",
    "Principal",
    "authenticate_machine",
    "bearer_token",
    "check_origin",
    "cookie_name",
    "principal_of_websocket",
]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: The page's own requests carry it; a form or an image of another site cannot.
PAGE_HEADER: Final = "x-cloudagent"
_COOKIE: Final = "cloudagent_session"

# For the OpenAPI schema only; the guards below read the headers themselves.
_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="A JWT or `cat_...`.")
_cookie = APIKeyCookie(name=_COOKIE, auto_error=False, scheme_name="session")
_key = HTTPBearer(auto_error=False, scheme_name="machine_key", description="`sk_machine_...`.")


def cookie_name(settings: Settings) -> str:
    return f"__Host-{_COOKIE}" if settings.secure else _COOKIE


async def current_user(
    request: Request,
    _token: Annotated[Any, Security(_bearer)],
    _session: Annotated[Any, Security(_cookie)],
) -> Principal:
    """The person who sent the request.

    Raises:
        ApiError: nobody we know, a machine, or a page of another site.
    """
    world = world_of(request)
    token = bearer_token(request)
    if token is not None:
        return await _by_token(world, token)
    cookie = request.cookies.get(cookie_name(world.settings))
    principal = await world.authenticator.session(cookie) if cookie else None
    if principal is None:
        raise _unknown()
    if request.method not in _SAFE:
        _check_same_site(request, world.settings)
    return principal


CurrentUser = Annotated[Principal, Depends(current_user)]


async def principal_of_websocket(websocket: WebSocket) -> Principal:
    """The person who opened the socket: by Bearer token, or by cookie from a page of our own.

    Raises:
        ApiError: as `current_user`; before the socket is accepted it becomes an HTTP answer.
    """
    world = world_of(websocket)
    origin = websocket.headers.get("origin")
    if origin is not None and not _is_own(origin, websocket, world.settings):
        raise _foreign(origin)
    token = bearer_token(websocket)
    if token is not None:
        return await _by_token(world, token)
    cookie = websocket.cookies.get(cookie_name(world.settings))
    if cookie and origin is None:
        raise ApiError(ErrorCode.FORBIDDEN, "A socket with a cookie must have an Origin.")
    principal = await world.authenticator.session(cookie) if cookie else None
    if principal is None:
        raise _unknown()
    return principal


async def authenticate_machine(connection: HTTPConnection) -> HostRow:
    """The host whose key the connection carries.

    Raises:
        ApiError: no or a wrong key, a person's token, or a browser: daemons have no Origin.
    """
    if connection.headers.get("origin") is not None:
        raise ApiError(ErrorCode.FORBIDDEN, "This endpoint is for daemons, not for browsers.")
    world, token = world_of(connection), bearer_token(connection)
    host = await world.authenticator.machine(token) if token else None
    if host is None:
        _count_wrong_key(world, connection.client.host if connection.client else "unknown")
        raise await _no_key(world, token)
    return host


def _count_wrong_key(world: World, address: str) -> None:
    """Guessing is slowed down. A right key is never kept waiting: many may share an address."""
    now = time.monotonic()
    if (wait_s := world.wrong_keys.wait_s(address, now)) > 0:
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            "Too many wrong machine keys came from this address.",
            next="Wait a minute.",
            headers={"Retry-After": str(int(wait_s) + 1)},
        )
    world.wrong_keys.count(address, now)


async def _no_key(world: World, token: str | None) -> ApiError:
    """A key that was good once is told apart: its daemon must stop what it runs."""
    if token and await world.authenticator.was_revoked(token):
        return ApiError(
            ErrorCode.REVOKED,
            "This machine was removed, and its key revoked.",
            next="`cloudagent-daemon login` makes it a new machine.",
        )
    return ApiError(
        ErrorCode.UNAUTHORIZED,
        "This machine key is not valid.",
        next="`cloudagent-daemon login` gets a new one.",
    )


async def _current_machine(request: Request, _shown: Annotated[Any, Security(_key)]) -> HostRow:
    return await authenticate_machine(request)


CurrentMachine = Annotated[HostRow, Depends(_current_machine)]


async def _by_token(world: World, token: str) -> Principal:
    if token.startswith(keys.MACHINE):
        raise ApiError(
            ErrorCode.FORBIDDEN,
            "A machine key opens only /v1/daemon.",
            next="Use a personal access token (`cat_...`) here.",
        )
    principal = await world.authenticator.bearer(token)
    if principal is None:
        raise _unknown()
    return principal


def _unknown() -> ApiError:
    return ApiError(ErrorCode.UNAUTHORIZED, "You are not signed in, or no longer.")


def bearer_token(connection: HTTPConnection) -> str | None:
    """What follows `Bearer`; empty, and so wrong, for another scheme."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


# --- pages of other sites -----------------------------------------------------------------


def check_origin(request: Request) -> None:
    """For routes that make a session: refuse what a page of another site sends.

    Raises:
        ApiError: see there.
    """
    origin = request.headers.get("origin")
    if origin is not None and not _is_own(origin, request, world_of(request).settings):
        raise _foreign(origin)
    if request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        raise ApiError(ErrorCode.FORBIDDEN, "A page of another site sent this.")


def _check_same_site(request: Request, settings: Settings) -> None:
    check_origin(request)
    if request.headers.get(PAGE_HEADER) is None:
        raise ApiError(
            ErrorCode.FORBIDDEN,
            "A request with the page's cookie must carry the header `X-Cloudagent: 1`.",
        )


def _is_own(origin: str, connection: HTTPConnection, settings: Settings) -> bool:
    """Exactly where the page is served: the public URL, or the address that was asked for.

    An address, not a name: a name of somebody else's can be made to point here (DNS rebinding).
    """
    origin = origin.lower()
    if origin == settings.public_origin:
        return True
    host = connection.headers.get("host", "").lower()
    return origin == f"http://{host}" and is_address(urlsplit(origin).hostname or "")


def _foreign(origin: str) -> ApiError:
    return ApiError(
        ErrorCode.FORBIDDEN,
        f"The origin {origin[:100]!r} is not this server's.",
        next="Open the page under its own address, or start the backend with --public-url.",
    )
