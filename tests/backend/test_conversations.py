"""Messages, conversations and runs over HTTP: pages, owners, repeats, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloudagent_protocol.content import MAX_TEXT_CHARS
from cloudagent_protocol.events import Outcome
from cloudagent_protocol.frames import Interrupt
from fakes.daemon import connection
from fakes.desk import Run
from fakes.server import Backend, running_backend


async def pages(client: Any, path: str, **params: Any) -> list[list[Any]]:
    """All pages of a list."""
    found: list[list[Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await client.get(path, params=params | ({"after": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["data"])
        cursor = answer.json()["next_cursor"]
    return found


async def test_messages_are_listed_oldest_first_page_by_page(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        sent = [await backend.post(f"{n}") for n in range(5)]
        path = f"/v1/conversations/{sent[0].conversation_id}/messages"
        found = await pages(client, path, limit=2)
        assert [[m["text"] for m in page] for page in found] == [["0", "1"], ["2", "3"], ["4"]]
        found = await pages(client, path, limit=2, order="desc")
        assert [[m["text"] for m in page] for page in found] == [["4", "3"], ["2", "1"], ["0"]]
        assert found[0][0]["deliveries"][0]["state"] == "queued"


async def test_an_exact_page_has_no_next(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        message = await backend.post()
        path = f"/v1/conversations/{message.conversation_id}/messages"
        assert (await client.get(path, params={"limit": 1})).json()["next_cursor"] is None


async def test_a_conversation_can_be_begun_listed_and_shown(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        agent_id = backend.ana.agent.id
        made = [
            (await client.post("/v1/conversations", json={"agent_ids": [agent_id], "title": t}))
            for t in ("one", "two", "three")
        ]
        assert {answer.status_code for answer in made} == {201}
        found = await pages(client, "/v1/conversations", limit=2, agent_id=agent_id)
        assert [[c["title"] for c in page] for page in found] == [["three", "two"], ["one"]]
        other = await pages(client, "/v1/conversations", agent_id="agent_other")
        assert other == [[]]
        one = made[0].json()
        assert (await client.get(f"/v1/conversations/{one['id']}")).json() == one
        answer = await client.post(f"/v1/conversations/{one['id']}/messages", json={"text": "hi"})
        assert answer.status_code == 201
        assert answer.json()["deliveries"][0]["agent_id"] == agent_id
        shown = (await client.get(f"/v1/conversations/{one['id']}")).json()
        assert shown["last_message_at"] == answer.json()["created_at"]


async def test_a_repeated_send_is_answered_again_and_sent_once(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        key = {"Idempotency-Key": "k-1"}
        first, again = [
            await client.post(path, json={"text": "once"}, headers=key) for _ in range(2)
        ]
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        other = await client.post(path, json={"text": "other"}, headers=key)
        assert other.status_code == 422
        path = f"/v1/conversations/{first.json()['conversation_id']}/messages"
        assert len((await client.get(path)).json()["data"]) == 1


JSON = {"Content-Type": "application/json"}
PATHS = [
    ("GET", "/v1/messages/{message}"),
    ("GET", "/v1/messages/{message}/trace"),
    ("DELETE", "/v1/messages/{message}"),
    ("GET", "/v1/conversations/{conversation}"),
    ("GET", "/v1/conversations/{conversation}/messages"),
    ("GET", "/v1/conversations/{conversation}/traces"),
    ("GET", "/v1/conversations/{conversation}/runs"),
    ("POST", "/v1/conversations/{conversation}/messages"),
    ("POST", "/v1/agents/{agent}/messages"),
    ("GET", "/v1/runs/{run}"),
    ("GET", "/v1/runs/{run}/events"),
    ("POST", "/v1/runs/{run}/interrupt"),
]


async def begin_run(backend: Backend, daemon: Any) -> Run:
    await daemon.greet()
    run = Run(await backend.post())
    await daemon.deliver()
    await daemon.send(run.started())
    await daemon.settle()
    return run


def daemon_of(backend: Backend) -> Any:
    return connection(backend.socket_url, backend.ana.host.raw_key)


async def test_what_is_another_persons_is_not_there(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, daemon_of(backend) as daemon:
        run = await begin_run(backend, daemon)
        bob = await backend.person("bob")
        ids = {
            "message": run.message.id,
            "conversation": run.message.conversation_id,
            "agent": backend.ana.agent.id,
            "run": run.id,
        }
        nothing = dict.fromkeys(ids, "nothing_0")
        async with backend.client(bob) as client:
            for method, path in PATHS:
                body = {"text": "hi"} if path.endswith("messages") and method == "POST" else None
                answers = [
                    await client.request(method, path.format(**given), json=body)
                    for given in (ids, nothing)
                ]
                assert [answer.status_code for answer in answers] == [404, 404], path
                bodies = [answer.json() | {"request_id": ""} for answer in answers]
                assert bodies[0] == bodies[1], path


async def test_nobody_gets_nothing(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ids = dict.fromkeys(("message", "conversation", "agent", "run"), "x")
        for method, path in PATHS:
            answer = await client.request(
                method, path.format(**ids), json={"text": "x"}, headers={"Authorization": ""}
            )
            assert answer.status_code == 401, path


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": " \n "},
        {"text": "a\x00b"},
        {"text": "\ud800"},
        {"text": "x" * (MAX_TEXT_CHARS + 1)},
        {"text": "x", "mode": "shout"},
        {"text": "x", "unknown": 1},
        {"text": 7},
    ],
)
async def test_a_message_that_is_none_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        answer = await client.post(path, content=json.dumps(body), headers=JSON)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.get("/v1/conversations")).json()["data"] == []


async def test_a_message_as_large_as_may_be_is_delivered(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, daemon_of(backend) as daemon:
        await daemon.greet()
        text = "👋" * MAX_TEXT_CHARS
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        body = json.dumps({"text": text}, ensure_ascii=False)
        async with backend.client() as client:
            assert (await client.post(path, content=body, headers=JSON)).status_code == 201
        assert (await daemon.deliver()).message.text == text


async def test_a_full_backlog_is_said_so(tmp_path: Path) -> None:
    async with running_backend(tmp_path, backlog_cap=1) as backend, backend.client() as client:
        await backend.post()
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        answer = await client.post(path, json={"text": "one too many"})
        assert (answer.status_code, answer.json()["code"]) == (429, "backlog_full")
        assert "ana-mbp" in answer.json()["next"]


async def test_a_run_is_shown_followed_and_stopped(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        backend.client() as client,
        daemon_of(backend) as daemon,
    ):
        run = await begin_run(backend, daemon)
        await daemon.send(run.ready(), run.text("On it."))
        await daemon.settle()
        path = f"/v1/conversations/{run.message.conversation_id}"
        [[shown]] = await pages(client, f"{path}/runs")
        assert (shown["id"], shown["state"], shown["session_id"]) == (run.id, "running", "s-1")
        [[trace]] = await pages(client, f"{path}/traces")
        assert (trace["message_id"], trace["state"]) == (run.message.id, "running")
        events = await pages(client, f"/v1/runs/{run.id}/events", limit=2)
        assert [[e["type"] for e in page] for page in events] == [["started", "ready"], ["text"]]
        for _ in range(2):
            answer = await client.post(f"/v1/runs/{run.id}/interrupt")
            assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert (await daemon.expect(Interrupt)).actor == "ana"
        await daemon.send(run.finished(Outcome.CANCELLED))
        await daemon.settle()
        assert (await client.get(f"/v1/runs/{run.id}")).json()["outcome"] == "cancelled"
        assert (await client.post(f"/v1/runs/{run.id}/interrupt")).status_code == 409
        assert (await client.delete(f"/v1/messages/{run.message.id}")).status_code == 409


async def test_a_removed_agent_takes_its_queue_with_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        message = await backend.post()
        await client.delete(f"/v1/agents/{backend.ana.agent.id}")
        trace = (await client.get(f"/v1/messages/{message.id}/trace")).json()["deliveries"][0]
        assert trace["state"] == "cancelled"
        path = f"/v1/conversations/{message.conversation_id}/messages"
        answer = await client.post(path, json={"text": "anyone?"})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_a_removed_host_ends_what_was_open_and_closes_its_link(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        backend.client() as client,
        daemon_of(backend) as daemon,
    ):
        run = await begin_run(backend, daemon)
        await client.delete(f"/v1/host-machines/{backend.ana.host.id}")
        assert await daemon.closed() == 4403
        trace = (await client.get(f"/v1/messages/{run.message.id}/trace")).json()
        assert trace["deliveries"][0]["state"] == "dead"
        assert (await client.get(f"/v1/runs/{run.id}")).json()["state"] == "finished"


async def test_a_rotated_key_closes_the_link_of_the_old_one(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        backend.client() as client,
        daemon_of(backend) as daemon,
    ):
        await daemon.greet()
        await client.post(f"/v1/host-machines/{backend.ana.host.id}/rotate-key")
        assert await daemon.closed() == 4401
