"""Agents: what can be made and changed, and that their host's daemon hears of it."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import connect

from cloudagent_protocol.frames import AgentsChanged, decode, encode
from fakes.desk import hello
from fakes.server import Backend, running_backend


def wanted(backend: Backend, **more: Any) -> dict[str, Any]:
    return {"name": "api", "host_machine_id": backend.ana.host.id} | more


async def test_an_agent_is_made_with_what_was_asked_for(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        body = wanted(
            backend,
            driver="builtin",
            model="some-model",
            instructions="Be brief.",
            mode="plan",
            command=["prog", "--flag"],
            env={"A": "1"},
            cwd="~/src",
            hang_timeout_s=7_200,
            unattended="deny",
            worktree="per_conversation",
            limits={
                "auto_resume": True,
                "resume_times": 2,
                "resume_within_h": 6.5,
                "day_tokens": 1_000,
                "day_cost_usd": None,
            },
        )
        made = await client.post("/v1/agents", json=body)
        assert made.status_code == 201
        assert made.json() == {
            **body,
            "id": made.json()["id"],
            "runtime": "local_daemon",
            "status": "offline",
            "pause": None,
            "created_at": made.json()["created_at"],
        }
        assert (await client.get(f"/v1/agents/{made.json()['id']}")).json() == made.json()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\x00b"},
        {"name": "x" * 101},
        {"driver": "emacs"},
        {"mode": "yolo"},
        {"runtime": "cloud"},
        {"command": []},
        {"command": ["a\nb"]},
        {"env": {"1X": "a"}},
        {"env": {"A": "a\x1bb"}},
        {"env": {"A": 1}},
        {"cwd": "relative"},
        {"hang_timeout_s": 0},
        {"unattended": "allow"},
        {"worktree": "always"},
        {"hang_timeout_s": 1e9},
        {"hang_timeout_s": "long"},
        {"limits": {"resume_times": 0}},
        {"limits": {"resume_within_h": 1e9}},
        {"limits": {"colour": "red"}},
        {"model": "-rf"},
        {"model": "a b"},
        {"colour": "red"},
    ],
)
async def test_what_does_not_fit_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        answer = await client.post("/v1/agents", json=wanted(backend, **wrong))
        assert answer.status_code == 422
        assert next(iter(wrong)) in answer.json()["detail"]


async def test_the_host_must_be_ones_own(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        ben = await backend.person("ben")
        for host_id in (ben.host.id, "host_none"):
            answer = await client.post("/v1/agents", json=wanted(backend, host_machine_id=host_id))
            assert answer.status_code == 404


async def test_a_name_is_ones_own_once_and_free_again_after_removal(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        first = await client.post("/v1/agents", json=wanted(backend))
        second = await client.post("/v1/agents", json=wanted(backend))
        assert second.status_code == 409
        other = backend.ana.agent.id
        clash = await client.patch(f"/v1/agents/{other}", json={"name": "api"})
        assert clash.status_code == 409
        same = await client.patch(f"/v1/agents/{other}", json={"name": "frontend"})
        assert same.status_code == 200
        assert (await client.delete(f"/v1/agents/{first.json()['id']}")).status_code == 204
        assert (await client.post("/v1/agents", json=wanted(backend))).status_code == 201
        ben = await backend.person("ben")
        async with backend.client(ben) as his:
            body = wanted(backend, host_machine_id=ben.host.id)
            assert (await his.post("/v1/agents", json=body)).status_code == 201


async def test_a_change_touches_only_what_was_sent_and_null_clears(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await client.post("/v1/agents", json=wanted(backend, model="m", cwd="/x"))
        path = f"/v1/agents/{made.json()['id']}"
        changed = (await client.patch(path, json={"model": None, "env": {"B": "2"}})).json()
        assert changed == made.json() | {"model": None, "env": {"B": "2"}}
        assert (await client.patch(path, json={})).json() == changed
        for field in ("name", "driver", "mode", "env"):
            answer = await client.patch(path, json={field: None})
            assert answer.status_code == 422
            assert field in answer.json()["detail"]
        moved = await client.patch(path, json={"host_machine_id": "host_x"})
        assert moved.status_code == 422


async def test_agents_are_found_by_name_and_by_host(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        await client.post("/v1/agents", json=wanted(backend))

        async def found(**params: str) -> list[str]:
            page = (await client.get("/v1/agents", params=params)).json()
            return [agent["name"] for agent in page["data"]]

        assert await found() == ["frontend", "api"]
        assert await found(name="api") == ["api"]
        assert await found(host_machine_id="host_none") == []


async def test_the_hosts_daemon_and_the_event_log_hear_of_every_change(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        headers = {"Authorization": f"Bearer {backend.ana.host.raw_key}"}
        url = f"{backend.socket_url}/v1/daemon/ws"
        async with connect(url, additional_headers=headers) as link:
            await link.send(encode(hello()))

            async def told() -> list[str]:
                with anyio.fail_after(5):
                    while True:
                        frame = decode(await link.recv())
                        if isinstance(frame, AgentsChanged):
                            return [agent.name for agent in frame.agents]

            made = await client.post("/v1/agents", json=wanted(backend))
            assert made.json()["status"] == "idle", "its host is here"
            assert await told() == ["frontend", "api"]
            path = f"/v1/agents/{made.json()['id']}"
            await client.patch(path, json={"name": "web"})
            assert await told() == ["frontend", "web"]
            await client.delete(path)
            assert await told() == ["frontend"]
        rows = await backend.world.database.read(
            lambda c: c.execute("SELECT data FROM events WHERE type = 'agent.updated'").fetchall()
        )
        last = [row["data"] for row in rows if made.json()["id"] in row["data"]][-2:]
        assert '"web"' in last[0]
        assert '"deleted":true' in last[-1].replace(" ", "") or '"deleted":true' in last[0]
