"""The command `cloudagent-backend`."""

import asyncio
import contextlib
import getpass
import json
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from argon2 import PasswordHasher
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from cloudagent_backend import config
from cloudagent_backend.api.accounts import MIN_PASSWORD_CHARS, Email
from cloudagent_backend.config import ConfigError, Settings
from cloudagent_backend.log import start_logging
from cloudagent_backend.server import Server, spare_the_collector
from cloudagent_backend.store import tokens, users
from cloudagent_backend.store.database import (
    Database,
    DatabaseError,
    migrate,
    open_database,
    path_of,
)
from cloudagent_backend.store.users import EmailTakenError
from cloudagent_protocol.resources import User

_FAILED: Final = 1
_USAGE: Final = 2
_CONFLICT: Final = 6
_CONFIGURATION: Final = 78
_INTERRUPTED: Final = 130

#: The name of the tokens that `grant` makes, and how many of them stay valid.
_UP: Final = "cloudagent up"
_UPS_KEPT: Final = 5

T = TypeVar("T")

app = typer.Typer(
    name="cloudagent-backend",
    help="The server that your agents' machines connect to.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", help="sqlite:///PATH; the default is in ~/.cloudagent"),
]


def main() -> None:
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = None,
    database_url: DatabaseUrl = None,
    public_url: Annotated[
        str | None, typer.Option(help="Where people reach it, if not there: https://...")
    ] = None,
    open_signup: Annotated[
        bool, typer.Option("--open-signup", help="Let anyone who reaches it make an account.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Serve the API and the page until stopped. Says `Listening on URL` when ready."""
    settings = _settings(
        host=host,
        port=port,
        database_url=database_url,
        public_url=public_url,
        open_signup=open_signup or None,
    )
    start_logging(debug=debug)
    with _only_server(settings):
        code = asyncio.run(_serve(settings))
    raise typer.Exit(code)


@app.command("migrate")
def migrate_database(database_url: DatabaseUrl = None) -> None:
    """Bring the database to this version's schema. `serve` does it too."""
    settings = _settings(database_url=database_url)
    try:
        steps = migrate(settings.database_url)
    except DatabaseError as error:
        _fail(_FAILED, "The database was not migrated.", str(error))
    applied = f"{steps} migration{'s' if steps > 1 else ''} applied"
    print(applied if steps else "up to date")


@app.command()
def create_user(
    email: Annotated[str, typer.Option(help="Email address, to sign in with.")],
    name: Annotated[str | None, typer.Option(help="Name to show.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an account."""
    settings = _settings(database_url=database_url)
    address = _email(email)
    hashed = PasswordHasher().hash(_password(from_stdin=password_stdin))

    async def work(database: Database) -> User:
        return await database.write(
            lambda c: users.create(c, address, name=name, password_hash=hashed, is_admin=admin)
        )

    try:
        user = _with_database(settings, work)
    except EmailTakenError:
        _fail(_CONFLICT, "The account was not made.", f"There is one of {address} already.")
    print(f"made {user.id} ({user.email})")


@app.command(hidden=True)
def grant(
    email: Annotated[str, typer.Option()],
    database_url: DatabaseUrl = None,
    json_: Annotated[bool, typer.Option("--json", help="What it prints anyway.")] = False,
) -> None:
    """Let whoever may read the database file in: a token and a one-time link, as JSON.

    The account is made if it is missing. `cloudagent up` calls this.
    """
    settings = _settings(database_url=database_url)
    address = _email(email)

    def give(c: sqlite3.Connection) -> dict[str, str]:
        first = not users.any_user(c)
        user = users.by_email(c, address) or users.create(c, address, is_admin=first)
        tokens.keep_newest(c, user.id, _UP, _UPS_KEPT - 1)
        token = tokens.create(c, user.id, _UP)
        link = users.new_link(c, "page", user.id, settings.one_time_link_s)
        return {
            "user_id": user.id,
            "email": user.email,
            "access_token": token.raw_token or "",
            "link_key": link,
        }

    print(json.dumps(_with_database(settings, lambda database: database.write(give))))


# --- serving ------------------------------------------------------------------------------


async def _serve(settings: Settings) -> int:
    server = Server(settings, _say)
    spare_the_collector()
    try:
        await server.serve()
    except SystemExit:  # uvicorn's way to say that it could not listen; it has logged why
        return _FAILED
    if not server.started:
        return _FAILED
    return _INTERRUPTED if server.signal == signal.SIGINT else 0


@contextlib.contextmanager
def _only_server(settings: Settings) -> Generator[None]:
    """The live links are in one process: a second one on the same database would not see them."""
    try:
        migrate(settings.database_url)
        lock = FileLock(f"{path_of(settings.database_url)}.lock", timeout=0)
        with lock:
            yield
    except DatabaseError as error:
        _fail(_FAILED, "The backend did not start.", str(error))
    except Timeout:
        _fail(
            _CONFLICT,
            "The backend did not start.",
            f"Another one serves {path_of(settings.database_url)}.",
            "Stop it, or give this one another --database-url.",
        )


# --- small things ---------------------------------------------------------------------------


def _settings(**flags: Any) -> Settings:
    try:
        settings = config.load(**flags)
        path_of(settings.database_url)
    except (ConfigError, DatabaseError) as error:
        _fail(_CONFIGURATION, "A setting cannot be used.", str(error))
    return settings


def _with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_database(settings.database_url) as database:
            return await work(database)

    try:
        return asyncio.run(run())
    except DatabaseError as error:
        _fail(_FAILED, "The database cannot be used.", str(error))


def _email(text: str) -> str:
    try:
        return TypeAdapter[str](Email).validate_python(text)
    except ValidationError:
        _fail(_USAGE, "The account was not made.", f"{text!r} is no email address.")


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = getpass.getpass("Password: ")
    else:
        _fail(_USAGE, "There is no terminal to ask for a password.", "", "Use --password-stdin.")
    if len(password) < MIN_PASSWORD_CHARS:
        _fail(_USAGE, "The password is too short.", f"It needs {MIN_PASSWORD_CHARS} characters.")
    return password


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(code: int, what: str, why: str, next_step: str = "") -> NoReturn:
    _say("\n".join(line for line in (what, why, next_step) if line))
    raise typer.Exit(code)
