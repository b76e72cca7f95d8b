"""Signing up, in and out, and the one-time links."""

import sqlite3
from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response
from pydantic import Field, StringConstraints

from cloudagent_backend.api.auth import CurrentUser, check_origin, cookie_name
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.store import keys, users
from cloudagent_backend.store.users import EmailTakenError, LoginSecrets
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.resources import Body, Name, Session, User

router = APIRouter(tags=["accounts"])

Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        to_lower=True,
        max_length=254,
        pattern=r"^[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]+$",
    ),
]
#: Long enough that guessing over the network is hopeless beside the limit of failed logins.
MIN_PASSWORD_CHARS: Final = 8
NewPassword = Annotated[str, Field(min_length=MIN_PASSWORD_CHARS, max_length=200, repr=False)]
Secret = Annotated[str, Field(min_length=1, max_length=200, repr=False)]

FromOwnPage = Depends(check_origin)


class Login(Body):
    email: Email
    password: Secret


class Signup(Body):
    email: Email
    password: NewPassword
    name: Name | None = None


class Setup(Signup):
    key: Secret


class Link(Body):
    key: Secret


class Refresh(Body):
    refresh_token: Secret


@router.post(
    "/v1/auth/signup",
    status_code=201,
    dependencies=[FromOwnPage],
    responses=documented(ErrorCode.FORBIDDEN, ErrorCode.CONFLICT, ErrorCode.RATE_LIMITED),
)
async def sign_up(body: Signup, world: CurrentWorld, response: Response) -> Session:
    """Make an account, where the operator has opened sign-up."""
    if not world.settings.open_signup:
        raise ApiError(
            ErrorCode.FORBIDDEN,
            "Sign-up is closed on this server.",
            next="Ask its operator for an account.",
        )
    hashed = await world.passwords.hash(body.password)
    return await _enter(world, response, lambda c: _new_user(c, body, hashed))


@router.post(
    "/v1/auth/setup",
    status_code=201,
    dependencies=[FromOwnPage],
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.CONFLICT, ErrorCode.RATE_LIMITED),
)
async def set_up(body: Setup, world: CurrentWorld, response: Response) -> Session:
    """Make the first account, an admin's, with the key of the link that `serve` printed."""
    # Looked at first, so that a wrong key does not cost a hash.
    if not await world.database.read(lambda c: users.link_is_open(c, "setup", body.key)):
        raise _used_up()
    hashed = await world.passwords.hash(body.password)

    def work(c: sqlite3.Connection) -> User:
        if users.use_link(c, "setup", body.key) is None:
            raise _used_up()
        return _new_user(c, body, hashed, is_admin=True)

    return await _enter(world, response, work)


@router.post(
    "/v1/auth/login",
    dependencies=[FromOwnPage],
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.RATE_LIMITED),
)
async def log_in(body: Login, world: CurrentWorld, response: Response) -> Session:
    """Sign in with a password. The page gets a cookie beside the tokens."""
    known = await world.database.read(lambda c: users.password_hash(c, body.email))
    if not await world.passwords.verify(body.email, known, body.password):
        raise ApiError(
            ErrorCode.UNAUTHORIZED,
            "There is no account with this email address and password.",
            next="Check both; an admin can set up an account with `cloudagent-backend`.",
        )

    def work(c: sqlite3.Connection) -> User:
        user = users.by_email(c, body.email)
        assert user is not None, "accounts are never removed"
        return user

    return await _enter(world, response, work)


@router.post(
    "/v1/auth/link",
    dependencies=[FromOwnPage],
    responses=documented(ErrorCode.UNAUTHORIZED),
)
async def enter_by_link(body: Link, world: CurrentWorld, response: Response) -> Session:
    """Sign in with the key of a one-time link."""

    def work(c: sqlite3.Connection) -> User:
        link = users.use_link(c, "page", body.key)
        user = users.load(c, link["user_id"]) if link else None
        if user is None:
            raise _used_up()
        return user

    return await _enter(world, response, work)


@router.post("/v1/auth/refresh", responses=documented(ErrorCode.UNAUTHORIZED))
async def refresh(body: Refresh, world: CurrentWorld) -> Session:
    """A new access token and a new refresh token; the one that was sent is used up."""
    authenticator = world.authenticator
    token = body.refresh_token
    well_formed = keys.well_formed(keys.RENEWAL, token)
    renewed = (
        await world.database.write(lambda c: users.refresh(c, token, authenticator.ages))
        if well_formed
        else None
    )
    if renewed is None:
        authenticator.forget()
        raise ApiError(ErrorCode.UNAUTHORIZED, "This refresh token is not valid any more.")
    login, fresh = renewed
    return _session(world, login.user, LoginSecrets(login.id, "", fresh))


@router.post(
    "/v1/auth/logout",
    status_code=204,
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN),
)
async def log_out(user: CurrentUser, world: CurrentWorld, response: Response) -> None:
    """End this login: its cookie and all of its tokens. A personal access token stays."""
    login_id = user.login_id
    if login_id is not None:
        await world.database.write(lambda c: users.log_out(c, login_id))
        world.authenticator.forget()
    response.delete_cookie(
        cookie_name(world.settings), secure=world.settings.secure, httponly=True, samesite="lax"
    )


@router.get("/v1/me", responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN))
async def show_me(user: CurrentUser) -> User:
    """Who you are."""
    return user.user


def _new_user(
    c: sqlite3.Connection, body: Signup, password_hash: str, *, is_admin: bool = False
) -> User:
    try:
        return users.create(
            c, body.email, name=body.name, password_hash=password_hash, is_admin=is_admin
        )
    except EmailTakenError as error:
        raise ApiError(
            ErrorCode.CONFLICT,
            "There is an account with this email address already.",
            next="Sign in instead.",
        ) from error


async def _enter(
    world: World, response: Response, find: Callable[[sqlite3.Connection], User]
) -> Session:
    """Begin a login for the person that `find` gives; the page's cookie goes onto the answer."""

    def work(c: sqlite3.Connection) -> tuple[User, LoginSecrets]:
        user = find(c)
        return user, users.log_in(c, user.id)

    user, made = await world.database.write(work)
    settings = world.settings
    response.set_cookie(
        cookie_name(settings),
        made.session,
        max_age=settings.login_absolute_s,
        secure=settings.secure,
        httponly=True,
        samesite="lax",
    )
    return _session(world, user, made)


def _session(world: World, user: User, made: LoginSecrets) -> Session:
    return Session(
        user=user,
        access_token=world.authenticator.access_token(user.id, made.login_id),
        refresh_token=made.refresh,
        expires_in=world.settings.access_token_s,
    )


def _used_up() -> ApiError:
    return ApiError(
        ErrorCode.UNAUTHORIZED,
        "This link was used before, or its time is over.",
        next="Start `cloudagent up` or `cloudagent-backend serve` again: it prints a new one.",
    )
