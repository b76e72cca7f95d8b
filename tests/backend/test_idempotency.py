"""`Idempotency-Key`: done once, answered as often as asked."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_backend.store import clock
from fakes.server import running_backend

KEY = {"Idempotency-Key": "5b1c"}


async def test_the_same_request_is_done_once_and_answered_the_same(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path, body = f"/v1/agents/{backend.ana.agent.id}/messages", {"text": "hello"}
        first = await client.post(path, json=body, headers=KEY)
        again = await client.post(path, json=body, headers=KEY)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        other = await client.post(path, json=body, headers={"Idempotency-Key": "other"})
        assert other.json()["id"] != first.json()["id"]


async def test_the_same_key_for_something_else_is_a_mistake(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        await client.post(path, json={"text": "hello"}, headers=KEY)
        body = await client.post(path, json={"text": "other"}, headers=KEY)
        assert (body.status_code, body.json()["code"]) == (422, "idempotency_mismatch")
        where = await client.post("/v1/tokens", json={"name": "x"}, headers=KEY)
        assert (where.status_code, where.json()["code"]) == (422, "idempotency_mismatch")


async def test_requests_that_come_at_once_are_done_once(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ids: set[str] = set()

        async def send() -> None:
            path, body = f"/v1/agents/{backend.ana.agent.id}/messages", {"text": "hello"}
            ids.add((await client.post(path, json=body, headers=KEY)).json()["id"])

        async with anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(send)
        assert len(ids) == 1


async def test_a_retry_that_is_sent_twice_is_one(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        message = await backend.post()
        assert (await client.delete(f"/v1/messages/{message.id}")).status_code == 200
        path = f"/v1/messages/{message.id}/retry"
        first, again = [await client.post(path, headers=KEY) for _ in range(2)]
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert len(first.json()["deliveries"]) == 2
        assert (await client.post(path)).status_code == 409


async def test_a_key_is_its_owners(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ben = await backend.person("ben")
        body = {"agent_ids": [backend.ana.agent.id]}
        mine = await client.post("/v1/conversations", json=body, headers=KEY)
        assert mine.status_code == 201
        async with backend.client(ben) as his:
            answer = await his.post("/v1/conversations", json=body, headers=KEY)
            assert answer.status_code == 404


async def test_a_refused_request_may_be_sent_again(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        body = {"name": "api", "host_machine_id": backend.ana.host.id}
        await client.post("/v1/agents", json=body)
        refused = await client.post("/v1/agents", json=body, headers=KEY)
        assert refused.status_code == 409
        [agent] = (await client.get("/v1/agents", params={"name": "api"})).json()["data"]
        await client.delete(f"/v1/agents/{agent['id']}")
        assert (await client.post("/v1/agents", json=body, headers=KEY)).status_code == 201


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tokens", {"name": "ci"}),
        ("/v1/host-machines", {"name": "mbp"}),
        ("/v1/host-machines/{host}/rotate-key", None),
    ],
)
async def test_a_secret_is_neither_kept_nor_made_twice(
    tmp_path: Path, path: str, body: dict[str, Any] | None
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path = path.format(host=backend.ana.host.id)
        first = await client.post(path, json=body, headers=KEY)
        assert first.is_success
        again = await client.post(path, json=body, headers=KEY)
        assert again.status_code == 409
        assert "shown only once" in again.json()["detail"]
        kept = await backend.world.database.read(
            lambda c: c.execute("SELECT body FROM idempotency").fetchall()
        )
        assert [row["body"] for row in kept] == [None]


async def test_after_a_day_a_key_is_free_again(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path, body = f"/v1/agents/{backend.ana.agent.id}/messages", {"text": "hello"}
        first = await client.post(path, json=body, headers=KEY)
        yesterday = clock.now_us() - 86_400_000_001
        await backend.world.database.write(
            lambda c: c.execute("UPDATE idempotency SET created_us = ?", (yesterday,))
        )
        second = await client.post(path, json=body, headers=KEY)
        assert second.json()["id"] != first.json()["id"]


async def test_a_key_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        answer = await client.post(
            "/v1/tokens", json={"name": "x"}, headers={"Idempotency-Key": "k" * 256}
        )
        assert answer.status_code == 422
