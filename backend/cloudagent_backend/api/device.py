"""Login of a machine by a code: the machine waits, a person looks who asks and decides (RFC 8628).

The person types what stands on the machine's screen, so it is that machine that is let in. What can
go wrong is somebody else's code: sent to them in a message (phishing), which the page warns of with
the address and the name of who asks; or guessed by them, which would put a stranger's machine into
their account, and so is bounded per person and per address.
"""

import sqlite3
import time
from typing import Final, NoReturn

from fastapi import APIRouter
from starlette.requests import Request

from cloudagent_backend.api.auth import CurrentUser, bearer_token
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.store import clock, device_logins, events, hosts, keys
from cloudagent_backend.store.device_logins import DeviceLoginRow, Issued, NotIssued
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.device import (
    DeviceAnswer,
    DeviceCode,
    DeviceCodeRequest,
    DeviceLogin,
    DeviceQuestion,
    DeviceState,
    DeviceToken,
    DeviceTokenRequest,
    KnownHost,
    normalised,
    shown,
)
from cloudagent_protocol.errors import CloseCode, ErrorCode
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import EventType

router = APIRouter(prefix="/v1/auth/device", tags=["device login"])

_PAGE: Final = "/device"
_AGAIN: Final = "Start `cloudagent-daemon login` on the machine again: it shows a new code."
_WHY_NOT: Final = {
    NotIssued.PENDING: (ErrorCode.AUTHORIZATION_PENDING, "Nobody has approved it yet.", None),
    NotIssued.DENIED: (ErrorCode.ACCESS_DENIED, "The login was denied in the page.", _AGAIN),
    NotIssued.EXPIRED: (ErrorCode.EXPIRED_TOKEN, "The code's time is over.", _AGAIN),
    NotIssued.UNKNOWN: (ErrorCode.INVALID_GRANT, "This code is not known, or was used.", _AGAIN),
}


@router.post("/code", responses=documented(ErrorCode.RATE_LIMITED))
async def ask_for_code(
    body: DeviceCodeRequest, request: Request, world: CurrentWorld
) -> DeviceCode:
    """Begin to log a machine in. Its older key, as Bearer, makes it the same host as before."""
    settings, address = world.settings, _address(request)
    key = bearer_token(request) or ""

    def work(c: sqlite3.Connection) -> device_logins.Codes:
        _check_room(c, world, address)
        known = _shown_host(c, key)
        life_s = settings.device_code_s
        return device_logins.begin(c, body, address=address, known=known, life_s=life_s)

    made = await world.database.write(work)
    code = shown(made.user_code)
    page = (settings.public_url or str(request.base_url)).rstrip("/") + _PAGE
    return DeviceCode(
        device_code=made.device_code,
        user_code=code,
        verification_uri=page,
        verification_uri_complete=f"{page}?code={code}",
        expires_in=settings.device_code_s,
        interval=settings.device_interval_s,
    )


@router.post("/token", responses=documented(ErrorCode.ACCESS_DENIED))
async def ask_for_key(body: DeviceTokenRequest, world: CurrentWorld) -> DeviceToken:
    """The machine key, once a person has approved.

    Until then a 400 whose `code` is one of `authorization_pending`, `slow_down`, `access_denied`,
    `expired_token`, `invalid_grant`.
    """
    code, who = body.device_code, keys.digest(body.device_code)
    why_not = await world.database.read(lambda c: device_logins.standing(c, code))
    # Only a code that exists is paced: others cost one look, and would fill the memory.
    if why_not is not NotIssued.UNKNOWN and world.pacing.too_fast(who, time.monotonic()):
        raise _oauth(ErrorCode.SLOW_DOWN, "Too fast: wait five seconds more between two polls.")
    if why_not is not None:
        _refuse(why_not)

    def work(c: sqlite3.Connection) -> Issued | NotIssued:
        issued = device_logins.redeem(c, code)
        if isinstance(issued, Issued):
            _tell(c, issued)
        return issued

    issued = await world.database.write(work)
    if isinstance(issued, NotIssued):  # two polls at once: the other one has it
        _refuse(issued)
    world.pacing.forget(who)
    world.hub.disconnect(issued.host_id, CloseCode.UNAUTHORIZED)
    world.fanout.notify(issued.user_id)
    return issued.token


@router.post(
    "/lookup",
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.NOT_FOUND, ErrorCode.RATE_LIMITED),
)
async def look_up(
    body: DeviceQuestion, user: CurrentUser, request: Request, world: CurrentWorld
) -> DeviceLogin:
    """Who asks to be let in with this code, and from where."""
    code = _checked(world, body.user_code, user.user_id, request)
    found = await world.database.read(lambda c: _shown(c, code, user.user_id, request))
    return found or _unknown(world, user.user_id, request)


@router.post(
    "/approve",
    responses=documented(
        ErrorCode.UNAUTHORIZED, ErrorCode.NOT_FOUND, ErrorCode.CONFLICT, ErrorCode.RATE_LIMITED
    ),
)
async def decide(
    body: DeviceAnswer, user: CurrentUser, request: Request, world: CurrentWorld
) -> DeviceLogin:
    """Let the machine in, or not. The first answer counts."""
    code = _checked(world, body.user_code, user.user_id, request)
    state = DeviceState.APPROVED if body.decision == "approve" else DeviceState.DENIED

    def work(c: sqlite3.Connection) -> DeviceLogin | None:
        if device_logins.by_user_code(c, code) is None:
            return None
        if not device_logins.decide(c, code, user.user_id, state, body.name):
            raise ApiError(ErrorCode.CONFLICT, "This login was answered before.", next=_AGAIN)
        return _shown(c, code, user.user_id, request)

    return await world.database.write(work) or _unknown(world, user.user_id, request)


def _shown_host(c: sqlite3.Connection, key: str) -> HostRow | None:
    """The host whose key, or last key, was shown: a machine that logs in anew stays the same host."""
    if not keys.well_formed(keys.MACHINE, key):
        return None
    known = hosts.by_key(c, key) or hosts.by_former_key(c, key)
    # An ephemeral host is over with its job, and no machine's own.
    return known if known and known.deleted_us is None and known.parent_id is None else None


def _check_room(c: sqlite3.Connection, world: World, address: str) -> None:
    here, everywhere = device_logins.waiting(c, address)
    settings = world.settings
    if here >= settings.device_logins_per_address or everywhere >= settings.device_logins:
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            "Too many machines wait to be let in at this moment.",
            next="Try again in some minutes, or use a machine key from the page (Host machines).",
            headers={"Retry-After": str(settings.device_code_s)},
        )


def _shown(
    c: sqlite3.Connection, code: str, user_id: UserId, request: Request
) -> DeviceLogin | None:
    row = device_logins.by_user_code(c, code)
    if row is None or row.user_id not in (None, user_id):
        return None  # another person's answer is none of this one's business
    host = hosts.load(c, user_id, row.host_id) if row.host_id else None
    return _resource(row, host, _address(request))


def _resource(row: DeviceLoginRow, host: HostRow | None, your_address: str) -> DeviceLogin:
    suggested = host.name if host else device_logins.suggested_name(row)
    return DeviceLogin(
        user_code=shown(row.user_code),
        state=row.state,
        hostname=row.hostname,
        os=row.os,
        daemon_version=row.daemon_version,
        address=row.address,
        your_address=your_address,
        requested_at=clock.at(row.created_us),
        expires_at=clock.at(row.expires_us),
        name=row.name or suggested,
        host=KnownHost(id=host.id, name=host.name) if host else None,
    )


def _checked(world: World, typed: str, user_id: UserId, request: Request) -> str:
    """The code, if it can be one and its sender has not guessed too often."""
    now = time.monotonic()
    wait_s = max(
        world.guesses_of_user.wait_s(user_id, now),
        world.guesses_of_address.wait_s(_address(request), now),
    )
    if wait_s > 0:
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            "Too many wrong codes.",
            next="Wait, then start `cloudagent-daemon login` again and type its code with care.",
            headers={"Retry-After": str(int(wait_s) + 1)},
        )
    code = normalised(typed)
    if code is None:  # nothing was guessed
        raise _no_such_code()
    return code


def _unknown(world: World, user_id: UserId, request: Request) -> NoReturn:
    now = time.monotonic()
    world.guesses_of_user.count(user_id, now)
    world.guesses_of_address.count(_address(request), now)
    raise _no_such_code()


def _no_such_code() -> ApiError:
    return ApiError(
        ErrorCode.NOT_FOUND,
        "No machine waits with this code.",
        next="Compare it with the machine's screen. A code is good for ten minutes, and once.",
    )


def _refuse(why_not: NotIssued) -> NoReturn:
    code, detail, next_step = _WHY_NOT[why_not]
    raise _oauth(code, detail, next_step)


def _oauth(code: ErrorCode, detail: str, next_step: str | None = None) -> ApiError:
    """An error as OAuth has it: clients of that kind look at `error` (RFC 6749 §5.2)."""
    wait = "Poll again after the interval."
    return ApiError(code, detail, next=next_step or wait, more={"error": code.value})


def _tell(c: sqlite3.Connection, issued: Issued) -> None:
    host = hosts.load(c, issued.user_id, issued.host_id)
    assert host is not None
    events.append(c, issued.user_id, EventType.HOST_UPDATED, hosts.resource(host))


def _address(request: Request) -> str:
    """Where the request came from; behind a proxy on this machine, what that one tells."""
    return request.client.host if request.client else "unknown"
