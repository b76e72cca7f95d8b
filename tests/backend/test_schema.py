"""The API against its own schema: generated requests, good and bad, on a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cloudagent_backend.app import create_app
from cloudagent_backend.config import Settings
from fakes.server import Backend, running_backend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Never ends; its tests are in test_stream.py.
ENDLESS = {"/v1/events"}
#: Each costs a password hash.
COSTLY = {"/v1/auth/login"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def operations() -> list[tuple[str, str]]:
    paths = create_app(Settings(database_url="unused.db")).openapi()["paths"]
    found = [(p, m) for p, methods in paths.items() for m in methods if p not in ENDLESS]
    # What removes things comes last, so that the others meet something that exists.
    return sorted(found, key=lambda one: (one[1] == "delete", one))


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    directory: Path = tmp_path_factory.mktemp("schema")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_backend(directory)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def known(backend: Backend) -> dict[str, str]:
    """Ids of things that exist."""
    with httpx2.Client(base_url=backend.url, headers=backend.ana.bearer) as client:
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        message = client.post(path, json={"text": "hello"}).json()
        token = client.post("/v1/tokens", json={"name": "to delete"}).json()
    return {
        "agent_id": backend.ana.agent.id,
        "host_id": backend.ana.host.id,
        "host_machine_id": backend.ana.host.id,
        "conversation_id": message["conversation_id"],
        "message_id": message["id"],
        "chain_id": message["id"],
        "token_id": token["id"],
    }


@pytest.mark.parametrize(("path", "method"), operations(), ids=lambda one: str(one))
def test_no_request_breaks_it_or_gets_what_the_schema_does_not_tell(
    backend: Backend, known: dict[str, str], path: str, method: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{backend.url}/openapi.json")
    operation = schema[path][method]
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    bad = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    is_machines = path.startswith("/v1/daemon")
    key = backend.ana.host.raw_key if is_machines else backend.ana.token

    @given(case=good | bad, real=st.booleans())
    @settings(
        max_examples=8 if path in COSTLY else 20,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    def check(case: Any, real: bool) -> None:
        if real:
            fill(case.path_parameters, known)
            fill(case.body, known)
        response = case.call(headers={"Authorization": f"Bearer {key}"})
        case.validate_response(response, checks=CHECKS)

    check()


def fill(fields: Any, known: dict[str, str]) -> None:
    """Put ids of things that exist where an id is asked for."""
    if isinstance(fields, dict):
        fields.update({name: value for name, value in known.items() if name in fields})
