"""Who may do what: every route of the OpenAPI schema against everybody who should not get in.

A new route must be entered here: a public one in PUBLIC, one that takes a body in BODIES, a new
kind of object in `Things`.
"""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIWebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from cloudagent_backend.app import create_app
from cloudagent_backend.config import Settings
from cloudagent_backend.delivery import sending
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import keys
from cloudagent_protocol.events import ApprovalRequested
from cloudagent_protocol.frames import Ack
from cloudagent_protocol.ids import new_approval_id
from cloudagent_protocol.resources import Message
from fakes.desk import Run, now
from fakes.server import Backend, Person, running_backend

PUBLIC = {
    "POST /v1/auth/signup",
    "POST /v1/auth/setup",
    "POST /v1/auth/login",
    "POST /v1/auth/link",
    "POST /v1/auth/refresh",
    "POST /v1/auth/device/code",
    "POST /v1/auth/device/token",
    "GET /healthz",
    "GET /readyz",
    "GET /v1/version",
    "GET /metrics",  # to this machine only, or to an admin: see below
}
FOR_MACHINES = {
    "GET /v1/daemon/host",
    "DELETE /v1/daemon/host",
    "POST /v1/daemon/ephemeral-hosts",
    "GET /v1/daemon/attachments/{attachment_id}",
    "PUT /v1/daemon/attachments/{attachment_id}",
}
#: Made or listed for whoever asks; the other routes name an object of somebody's.
OWN = {
    "POST /v1/auth/logout",
    "POST /v1/auth/device/lookup",
    "POST /v1/auth/device/approve",
    "GET /v1/me",
    "GET /v1/tokens",
    "POST /v1/tokens",
    "GET /v1/host-machines",
    "POST /v1/host-machines",
    "GET /v1/agents",
    "GET /v1/conversations",
    "GET /v1/approvals",
    "GET /v1/chains",
    "GET /v1/usage",
    "POST /v1/attachments",
    "GET /v1/events",
}
SOCKETS = {"/v1/daemon/ws", "/v1/events/ws"}


@dataclass(frozen=True)
class Things:
    """One of each object, all of one person's."""

    host_id: str
    agent_id: str
    conversation_id: str
    message_id: str
    run_id: str
    token_id: str
    approval_id: str
    attachment_id: str

    @property
    def chain_id(self) -> str:
        """A chain is called by the message that began it."""
        return self.message_id

    def bodies(self) -> dict[str, Any]:
        return {
            "POST /v1/auth/device/lookup": {"user_code": "BBBBBBBB"},
            "POST /v1/auth/device/approve": {"user_code": "BBBBBBBB"},
            "POST /v1/attachments": "x",
            "PUT /v1/daemon/attachments/{attachment_id}": "x",
            "POST /v1/tokens": {"name": "x"},
            "POST /v1/host-machines": {"name": "x"},
            "POST /v1/daemon/ephemeral-hosts": {"name": "x"},
            "POST /v1/agents": {"name": "x", "host_machine_id": self.host_id},
            "PATCH /v1/agents/{agent_id}": {"model": "x"},
            "POST /v1/agents/{agent_id}/messages": {"text": "x"},
            "PATCH /v1/messages/{message_id}": {"text": "x"},
            "POST /v1/messages/{message_id}/move": {"before": None},
            "POST /v1/conversations": {"agent_ids": [self.agent_id]},
            "POST /v1/conversations/{conversation_id}/messages": {"text": "x"},
            "POST /v1/chains/{chain_id}": {"decision": "stop"},
            "POST /v1/agents/{agent_id}/budget": {"decision": "stop"},
            "POST /v1/approvals/{approval_id}": {"decision": "once"},
        }


NOBODYS = Things(
    *(f"{kind}_NONE" for kind in ("host", "agent", "conv", "msg", "run", "tok", "apr", "att"))
)


def operations() -> Iterator[str]:
    schema = create_app(Settings(database_url="unused.db")).openapi()
    for path, methods in schema["paths"].items():
        yield from (f"{method.upper()} {path}" for method in methods)


OPERATIONS = sorted(operations())
SECURED = [one for one in OPERATIONS if one not in PUBLIC | FOR_MACHINES]


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncGenerator[tuple[Backend, Things, Person]]:
    """A backend where ana has one of each, and ben, who has other ones."""
    async with running_backend(tmp_path) as backend:
        yield backend, await things_of(backend, backend.ana), await backend.person("ben")


async def things_of(backend: Backend, person: Person) -> Things:
    async with backend.client(person) as client:
        path = f"/v1/agents/{person.agent.id}/messages"
        message = Message.model_validate((await client.post(path, json={"text": "hi"})).json())
        [token] = (await client.get("/v1/tokens")).json()["data"]
        file = (await client.post("/v1/attachments", content=b"hers")).json()
    service, host = backend.world.service, person.host
    await backend.world.database.write(lambda c: sending.lease(c, ReadyHost(host.id), 32))
    run = Run(message)
    started = run.started()
    started.seq = 1
    machine = Machine(host.id, person.user_id, host.name)
    approval_id = new_approval_id()
    asked = run.report(ApprovalRequested(at=now(), approval_id=approval_id, tool="Bash"))
    asked.seq = 2
    await service.apply(machine, [Ack(seq=1), started, asked])
    return Things(
        host.id,
        person.agent.id,
        message.conversation_id,
        message.id,
        run.id,
        token["id"],
        approval_id,
        file["id"],
    )


async def ask(
    client: httpx2.AsyncClient, operation: str, things: Things, headers: dict[str, str]
) -> httpx2.Response:
    method, path = operation.split(" ")
    filled = re.sub(r"{(\w+)}", lambda found: getattr(things, found[1]), path)
    body = things.bodies().get(operation)
    return await client.request(method, filled, json=body, headers=headers)


def said(answer: httpx2.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json() | {"request_id": None}


def test_every_operation_has_its_row_here() -> None:
    schema = create_app(Settings(database_url="unused.db")).openapi()
    assert set(OPERATIONS) >= PUBLIC | FOR_MACHINES | OWN
    for operation in OPERATIONS:
        method, path = operation.split(" ")
        described = schema["paths"][path][method.lower()]
        assert ("security" in described) == (operation not in PUBLIC), operation
        if operation in SECURED and described.get("requestBody", {}).get("required"):
            assert operation in NOBODYS.bodies(), f"{operation} needs a body here"
        for parameter in re.findall(r"{(\w+)}", path):
            assert hasattr(NOBODYS, parameter), f"{parameter} is a new kind of object"


def test_every_socket_has_its_row_here() -> None:
    app = create_app(Settings(database_url="unused.db"))
    found = {route.path for route in app.routes if isinstance(route, APIWebSocketRoute)}
    assert found <= SOCKETS


async def test_nobody_a_wrong_token_and_a_machine_get_in_nowhere(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as (backend, things, _),
        httpx2.AsyncClient(base_url=backend.url, timeout=10) as client,
    ):
        machine_key = backend.ana.host.raw_key
        for operation in SECURED:
            for token, status in (
                (None, 401),
                ("nonsense", 401),
                (keys.new_key(keys.PERSONAL), 401),
                (machine_key, 403),
                (keys.new_key(keys.MACHINE), 403),
            ):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                answer = await ask(client, operation, things, headers)
                assert answer.status_code == status, (operation, token)
                assert answer.headers["content-type"] == "application/problem+json"
            basic = await ask(client, operation, things, {"Authorization": "Basic YTpi"})
            assert basic.status_code == 401, operation


async def test_anothers_object_is_the_same_as_none(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as (backend, things, ben),
        backend.client(ben) as client,
    ):
        for operation in SECURED:
            if operation in OWN:
                continue
            anothers = said(await ask(client, operation, things, {}))
            nobodys = said(await ask(client, operation, NOBODYS, {}))
            assert anothers[0] == 404, operation
            strip = str(things.host_id), str(NOBODYS.host_id)
            assert str(anothers).replace(strip[0], "") == str(nobodys).replace(strip[1], "")
        # Nothing of it was touched.
        async with backend.client() as anas:
            for path in (f"agents/{things.agent_id}", f"host-machines/{things.host_id}"):
                assert (await anas.get(f"/v1/{path}")).status_code == 200
            trace = (await anas.get(f"/v1/messages/{things.message_id}/trace")).json()
            assert trace["deliveries"][0]["state"] == "waiting"
            approval = (await anas.get(f"/v1/approvals/{things.approval_id}")).json()
            assert approval["state"] == "pending"
            assert len((await anas.get("/v1/tokens")).json()["data"]) == 1


async def test_lists_show_only_what_is_ones_own(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as (backend, things, ben),
        backend.client(ben) as client,
    ):
        await things_of(backend, ben)
        for operation in ("tokens", "host-machines", "agents", "conversations"):
            answer = await client.get(f"/v1/{operation}")
            assert len(answer.json()["data"]) == 1, operation
            for theirs in vars(things).values():
                assert theirs not in answer.text, operation
        for params in ({"host_machine_id": things.host_id}, {"agent_id": things.agent_id}):
            path = "agents" if "host_machine_id" in params else "conversations"
            answer = await client.get(f"/v1/{path}", params=params)
            assert answer.json()["data"] == [], params


async def test_a_person_is_no_machine(tmp_path: Path) -> None:
    async with world(tmp_path) as (backend, _, _), backend.client() as client:
        for operation in FOR_MACHINES:
            assert (await ask(client, operation, NOBODYS, {})).status_code == 401
            wrong = {"Authorization": f"Bearer {keys.new_key(keys.MACHINE)}"}
            assert (await ask(client, operation, NOBODYS, wrong)).status_code == 401


@pytest.mark.parametrize("path", sorted(SOCKETS))
async def test_a_socket_opens_to_its_own_kind_only(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as (backend, _, _):
        person, machine = backend.ana.token, backend.ana.host.raw_key
        wrong = machine if path == "/v1/events/ws" else person
        for token in (None, "nonsense", wrong, keys.new_key(keys.MACHINE)):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{backend.socket_url}{path}", additional_headers=headers)
            assert refused.value.response.status_code in {401, 403}, token


async def test_the_servers_numbers_are_for_this_machine_or_an_admin(tmp_path: Path) -> None:
    app = create_app(Settings(database_url=f"{tmp_path}/x.db"))
    remote = httpx2.ASGITransport(app, client=("203.0.113.9", 1))
    async with running_backend(tmp_path) as backend:
        app.state.world = backend.world
        async with httpx2.AsyncClient(transport=remote, base_url="http://127.0.0.1") as client:
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/metrics", headers=backend.ana.bearer)).status_code == 403
            await backend.world.database.write(lambda c: c.execute("UPDATE users SET is_admin = 1"))
            backend.world.authenticator.forget()
            assert (await client.get("/metrics", headers=backend.ana.bearer)).status_code == 200
        async with backend.client() as local:
            numbers = (await local.get("/metrics")).text
            assert "cloudagent_hosts_connected 0.0" in numbers


async def test_behind_a_proxy_nobody_is_taken_for_this_machine(tmp_path: Path) -> None:
    changes = {"public_url": "https://agents.example"}
    async with running_backend(tmp_path, **changes) as backend, backend.client() as client:
        assert (await client.get("/metrics")).status_code == 403
        del client.headers["Authorization"]
        assert (await client.get("/metrics")).status_code == 401
