"""Host machines: keys shown once, revoked and rotated keys, and whose they are."""

import logging
import random
from pathlib import Path

import anyio
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from cloudagent_backend.store import keys
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import encode
from fakes.desk import hello
from fakes.server import Backend, running_backend


def machine(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def closed_with(backend: Backend, key: str, *, act: str, path: str) -> int:
    """The code that a live link of this key is closed with after a request."""
    url = f"{backend.socket_url}/v1/daemon/ws"
    async with backend.client() as client, connect(url, additional_headers=machine(key)) as link:
        await link.send(encode(hello()))
        await link.recv()
        assert (await client.request(act, path)).is_success
        with anyio.fail_after(2):
            await link.wait_closed()
        assert link.close_code is not None
        return link.close_code


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        body = {"name": " mbp ", "hostname": "mbp.local", "os": "linux", "daemon_version": "0.3.0"}
        made = (await client.post("/v1/host-machines", json=body)).json()
        assert made["name"] == "mbp"
        assert made["state"] == "offline"
        assert keys.well_formed(keys.MACHINE, made["raw_key"])
        shown = (await client.get(f"/v1/host-machines/{made['id']}")).json()
        assert "raw_key" not in shown
        assert shown["key_last_four"] == made["raw_key"][-4:]
        stored = await backend.world.database.read(lambda c: list(c.iterdump()))
        assert made["raw_key"] not in "\n".join(stored)


async def test_a_daemon_can_ask_which_host_its_key_is_for(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        host = backend.ana.host
        answer = await client.get("/v1/daemon/host", headers=machine(host.raw_key))
        assert answer.json()["id"] == host.id
        wrong = await client.get("/v1/daemon/host", headers=machine(host.raw_key[:-1] + "_"))
        assert wrong.status_code == 401
        unknown = await client.get("/v1/daemon/host", headers=machine(keys.new_key(keys.MACHINE)))
        assert unknown.status_code == 401
        browser = machine(host.raw_key) | {"Origin": backend.url}
        assert (await client.get("/v1/daemon/host", headers=browser)).status_code == 403


async def test_a_key_with_a_wrong_checksum_costs_no_query(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        database = backend.world.database
        database.close()  # any query would raise now
        wrong = backend.ana.host.raw_key[:-1] + "_"
        assert await backend.world.authenticator.machine(wrong) is None


async def test_guessing_keys_is_slowed_down_and_a_right_key_is_not(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, wrong_keys_per_minute=5) as backend,
        backend.client() as client,
    ):
        wrong = [machine(keys.new_key(keys.MACHINE)) for _ in range(7)]
        seen = [await client.get("/v1/daemon/host", headers=one) for one in wrong]
        assert [answer.status_code for answer in seen] == [401] * 5 + [429] * 2
        assert int(seen[-1].headers["Retry-After"]) <= 60
        right = await client.get("/v1/daemon/host", headers=machine(backend.ana.host.raw_key))
        assert right.status_code == 200


def test_a_hundred_thousand_wrong_keys_have_no_right_form() -> None:
    right = keys.new_key(keys.MACHINE)
    chance = random.Random(8628)
    wrong = [right[:n] for n in range(len(right))]
    alphabet = "".join(sorted(set(right))) + "_-é\0 "
    while len(wrong) < 100_000:
        place = chance.randrange(len(right))
        other = chance.choice([one for one in alphabet if one != right[place]])
        wrong.append(right[:place] + other + right[place + 1 :] + "x" * chance.choice([0, 0, 1]))
    assert keys.well_formed(keys.MACHINE, right)
    assert not any(keys.well_formed(keys.MACHINE, one) for one in wrong)


async def test_rotating_gives_another_key_and_cuts_the_old_one_off(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        host = backend.ana.host
        path = f"/v1/host-machines/{host.id}/rotate-key"
        code = await closed_with(backend, host.raw_key, act="POST", path=path)
        assert code == CloseCode.UNAUTHORIZED
        rotated = (await client.post(path)).json()["raw_key"]
        for key, status in ((host.raw_key, 401), (rotated, 200)):
            answer = await client.get("/v1/daemon/host", headers=machine(key))
            assert answer.status_code == status
            # Only whose host is gone has to stop what it runs.
            assert answer.json().get("code") != "revoked"


@pytest.mark.parametrize(
    ("act", "path", "code"),
    [
        ("POST", "/rotate-key", CloseCode.UNAUTHORIZED),
        ("DELETE", "", CloseCode.REVOKED),
    ],
)
async def test_a_key_that_is_revoked_before_its_hello_gets_no_link(
    tmp_path: Path, act: str, path: str, code: CloseCode
) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        host = backend.ana.host
        url = f"{backend.socket_url}/v1/daemon/ws"
        async with connect(url, additional_headers=machine(host.raw_key)) as link:
            assert (await client.request(act, f"/v1/host-machines/{host.id}{path}")).is_success
            await link.send(encode(hello()))
            with anyio.fail_after(2):
                await link.wait_closed()
            assert link.close_code == code


async def test_a_refused_handshake_is_no_fault_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_backend(tmp_path) as backend:
        url = f"{backend.socket_url}/v1/daemon/ws"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=machine(keys.new_key(keys.MACHINE)))
        assert refused.value.response.status_code == 401
        assert b'"code":"unauthorized"' in refused.value.response.body
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_removing_a_host_revokes_its_key_and_takes_its_agents_along(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        host, agent = backend.ana.host, backend.ana.agent
        sent = await client.post(f"/v1/agents/{agent.id}/messages", json={"text": "hello"})
        path = f"/v1/host-machines/{host.id}"
        code = await closed_with(backend, host.raw_key, act="DELETE", path=path)
        assert code == CloseCode.REVOKED
        for gone in (path, f"/v1/agents/{agent.id}"):
            assert (await client.get(gone)).status_code == 404
        assert (await client.get("/v1/host-machines")).json()["data"] == []
        key_now = await client.get("/v1/daemon/host", headers=machine(host.raw_key))
        assert (key_now.status_code, key_now.json()["code"]) == (401, "revoked")
        trace = (await client.get(f"/v1/messages/{sent.json()['id']}/trace")).json()
        assert trace["deliveries"][0]["state"] in {"cancelled", "failed", "dead"}


async def test_lists_come_page_by_page(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        for n in range(4):
            await client.post("/v1/host-machines", json={"name": f"h{n}"})
        seen: list[str] = []
        params = {"limit": "2"}
        while True:
            page = (await client.get("/v1/host-machines", params=params)).json()
            seen += [host["name"] for host in page["data"]]
            if page["next_cursor"] is None:
                break
            params["after"] = page["next_cursor"]
        assert seen == ["ana-mbp", "h0", "h1", "h2", "h3"]
