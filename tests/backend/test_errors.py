"""Every error is a problem with a request id, whatever was sent."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cloudagent_backend.app import create_app
from cloudagent_backend.config import Settings
from cloudagent_backend.store.database import Database
from fakes.server import running_backend

JSON = {"Content-Type": "application/json"}


def agent(name: str) -> bytes:
    return b'{"name": "' + name.encode() + b'", "host_machine_id": "h"}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/agents", b"", 422, "invalid"),
        ("POST", "/v1/agents", b"{", 400, "bad_request"),
        ("POST", "/v1/agents", b"[" * 100_000, 400, "bad_request"),
        ("POST", "/v1/agents", b'{"name": "\xff"}', 400, "bad_request"),
        ("POST", "/v1/agents", agent("\\ud800"), 422, "invalid"),
        ("POST", "/v1/agents", agent("\\u0000"), 422, "invalid"),
        ("POST", "/v1/agents", b'{"\\ud800": 1}', 422, "invalid"),
        ("POST", "/v1/agents", b"[1, 2]", 422, "invalid"),
        ("POST", "/v1/agents", b'{"name": NaN}', 422, "invalid"),
        ("POST", "/v1/agents", b'{"name": ' + b"9" * 5_000 + b"}", 400, "bad_request"),
        ("POST", "/v1/tokens", b'{"name": "x", "colour": 1}', 422, "invalid"),
        ("POST", "/v1/tokens", b"x" * 1_048_577, 413, "too_large"),
        ("PUT", "/v1/tokens", b"{}", 405, "method_not_allowed"),
        ("POST", "/somewhere", b"", 405, "method_not_allowed"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("GET", "/v1", b"", 404, "not_found"),
        ("GET", "/v1/agents/agent_none", b"", 404, "not_found"),
        ("GET", "/v1/agents/%00%ff", b"", 404, "not_found"),
        ("GET", "/v1/agents?limit=0", b"", 422, "invalid"),
        ("GET", "/v1/agents?limit=99999999999999999999999", b"", 422, "invalid"),
        ("GET", "/assets/none.js", b"", 404, "not_found"),
    ],
)
async def test_what_is_wrong_is_told_as_a_problem(
    tmp_path: Path, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        answer = await client.request(method, path, content=body, headers=JSON)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
        assert problem["detail"]
        assert problem["next"]
        assert problem["request_id"] == answer.headers["x-request-id"]


async def test_an_id_that_no_encoding_can_spell_is_a_mistake_of_the_callers(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        bad = '"\\ud800"'
        conversation = await client.post(
            "/v1/conversations", json={"agent_ids": [backend.ana.agent.id]}
        )
        for path, body in (
            ("/v1/agents", f'{{"name": "x", "host_machine_id": {bad}}}'),
            ("/v1/conversations", f'{{"agent_ids": [{bad}]}}'),
            (
                f"/v1/agents/{backend.ana.agent.id}/messages",
                f'{{"text": "x", "conversation_id": {bad}}}',
            ),
            (
                f"/v1/conversations/{conversation.json()['id']}/messages",
                f'{{"text": "x", "agent_id": {bad}}}',
            ),
        ):
            answer = await client.post(path, content=body.encode(), headers=JSON)
            assert answer.status_code == 422, path


async def test_a_schema_error_names_the_field_and_not_what_was_sent(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        answer = await client.post("/v1/auth/login", json={"email": 3, "password": ["hunter2"]})
        assert "password" in answer.json()["detail"]
        assert "hunter2" not in answer.text


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        await backend.world.database.write(
            lambda c: c.execute("UPDATE host_machines SET runtimes = 'not JSON'")
        )
        answer = await client.get("/v1/host-machines")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (500, "internal")
        assert "JSON" not in answer.text
        assert any(getattr(one, "id", "") == problem["request_id"] for one in caplog.records)


async def test_a_store_that_fails_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with running_backend(tmp_path) as backend, backend.client() as client:
        await client.get("/v1/me")
        with monkeypatch.context() as patch:
            patch.setattr(Database, "write", full)
            answer = await client.post("/v1/tokens", json={"name": "x"})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_every_operation_documents_its_problems(tmp_path: Path) -> None:
    schema = create_app(Settings(database_url=str(tmp_path / "x.db"))).openapi()
    assert schema["openapi"].startswith("3.1")
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            found = operation["responses"]
            assert {"400", "403", "413", "422", "503"} <= set(found), (method, path)
            assert ("401" in found) == ("security" in operation) or path in {
                "/v1/auth/setup",
                "/v1/auth/login",
                "/v1/auth/link",
                "/v1/auth/refresh",
                "/metrics",
            }
            for status, response in found.items():
                # A file answers a range that it has not as files do (RFC 9110 §15.5.17).
                if status.startswith(("4", "5")) and status != "416":
                    assert set(response["content"]) == {"application/problem+json"}, (method, path)
