"""What the routes work with: made once by `app.py`, found on `app.state.world`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from cloudagent_backend.api.attempts import Attempts, Pacing
from cloudagent_backend.api.authenticator import Authenticator
from cloudagent_backend.api.intake import Intake
from cloudagent_backend.api.links import Links
from cloudagent_backend.api.metrics import Metrics
from cloudagent_backend.api.passwords import Passwords
from cloudagent_backend.config import Settings
from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store.database import Database


@dataclass(frozen=True)
class World:
    settings: Settings
    database: Database
    #: The verbs of delivery: submit, report, cancel ...
    service: Service
    #: The live links of the hosts, and who serves their connections.
    hub: Hub
    links: Links
    #: Who follows which user's event log.
    fanout: Fanout
    #: Where files come in and lie.
    intake: Intake
    authenticator: Authenticator
    passwords: Passwords
    metrics: Metrics
    #: Wrong machine keys, by address.
    wrong_keys: Attempts
    #: Wrong codes of the device login, and how often machines ask whether they were approved.
    guesses_of_user: Attempts
    guesses_of_address: Attempts
    pacing: Pacing


def world_of(connection: HTTPConnection) -> World:
    world: World = connection.app.state.world
    return world


async def _current_world(connection: HTTPConnection) -> World:
    return world_of(connection)  # no coroutine would mean: looked up in a thread, by FastAPI


CurrentWorld = Annotated[World, Depends(_current_world)]
