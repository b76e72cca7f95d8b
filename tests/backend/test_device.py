"""Login of a machine by a code: the whole flow, and everything that must not let anybody in."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from cloudagent_backend.api.attempts import Attempts, Pacing
from cloudagent_backend.store import clock, device_logins, keys
from cloudagent_protocol.device import CODE_LETTERS, GRANT, normalised, shown
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import encode
from fakes.desk import hello
from fakes.server import Backend, Person, running_backend

ASKED = {"hostname": "mbp-ana.local", "os": "linux", "daemon_version": "0.3.0"}
NOBODYS_CODE = "BBBB-BBBB"


@asynccontextmanager
async def machine(backend: Backend, key: str | None = None) -> AsyncGenerator["Machine"]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=backend.url, timeout=10, headers=headers) as client:
        answer = await client.post("/v1/auth/device/code", json=ASKED)
        assert answer.status_code == 200, answer.text
        yield Machine(client, answer.json())


class Machine:
    """A machine that waits to be let in."""

    def __init__(self, client: httpx2.AsyncClient, codes: dict[str, Any]) -> None:
        self.client = client
        self.codes = codes
        self.user_code: str = codes["user_code"]

    async def poll(self) -> httpx2.Response:
        body = {"grant_type": GRANT, "device_code": self.codes["device_code"]}
        return await self.client.post("/v1/auth/device/token", json=body)

    async def refused(self) -> str:
        answer = await self.poll()
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"] == answer.json()["code"]
        return answer.json()["error"]


async def look(backend: Backend, code: str, person: Person | None = None) -> httpx2.Response:
    async with backend.client(person) as client:
        return await client.post("/v1/auth/device/lookup", json={"user_code": code})


async def decide(
    backend: Backend, code: str, person: Person | None = None, **more: Any
) -> httpx2.Response:
    async with backend.client(person) as client:
        return await client.post("/v1/auth/device/approve", json={"user_code": code, **more})


async def hosts(backend: Backend, person: Person | None = None) -> dict[str, Any]:
    async with backend.client(person) as client:
        found = (await client.get("/v1/host-machines")).json()["data"]
    return {host["id"]: host for host in found}


@asynccontextmanager
async def unpaced(tmp_path: Path, **changes: Any) -> AsyncGenerator[Backend]:
    """A backend that may be polled as fast as a test likes."""
    async with running_backend(tmp_path, device_interval_s=0, **changes) as backend:
        yield backend


async def test_a_machine_that_a_person_approves_gets_its_key_once(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        assert mbp.codes["verification_uri"] == f"{backend.url}/device"
        assert (
            mbp.codes["verification_uri_complete"] == f"{backend.url}/device?code={mbp.user_code}"
        )
        assert await mbp.refused() == "authorization_pending"
        seen = (await look(backend, mbp.user_code)).json()
        assert {name: seen[name] for name in ASKED} == ASKED
        assert (seen["address"], seen["your_address"]) == ("127.0.0.1", "127.0.0.1")
        assert (seen["state"], seen["name"], seen["host"]) == ("pending", "mbp-ana", None)
        approved = await decide(backend, mbp.user_code, name="Ana's laptop")
        assert approved.json()["state"] == "approved"
        assert "sk_machine_" not in approved.text, "the browser never sees the key"

        got = (await mbp.poll()).json()
        assert (got["host_name"], got["approved_by"]) == ("Ana's laptop", "ana@example.com")
        assert (got["token_type"], got["known_before"]) == ("Bearer", False)
        own = await mbp.client.get(
            "/v1/daemon/host", headers={"Authorization": f"Bearer {got['access_token']}"}
        )
        assert (own.json()["id"], own.json()["hostname"]) == (got["host_id"], "mbp-ana.local")
        assert got["host_id"] in await hosts(backend)
        assert await mbp.refused() == "invalid_grant"
        kept = await backend.world.database.read(lambda c: "\n".join(c.iterdump()))
        assert got["access_token"] not in kept
        assert mbp.codes["device_code"] not in kept


async def test_polls_all_at_once_get_one_key(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        await decide(backend, mbp.user_code)
        before = await hosts(backend)
        answers: list[httpx2.Response] = []

        async def poll() -> None:
            answers.append(await mbp.poll())

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(poll)
        assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
        assert len(await hosts(backend)) == len(before) + 1


async def test_a_denied_machine_gets_nothing(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        assert (await decide(backend, mbp.user_code, decision="deny")).json()["state"] == "denied"
        assert await mbp.refused() == "access_denied"
        late = await decide(backend, mbp.user_code)
        assert late.status_code == 409, "the first answer counts"
        assert await mbp.refused() == "access_denied"
        assert len(await hosts(backend)) == 1


async def test_a_code_is_over_after_its_time(tmp_path: Path) -> None:
    async with unpaced(tmp_path, device_code_s=0) as backend, machine(backend) as mbp:
        assert await mbp.refused() == "expired_token"
        assert (await look(backend, mbp.user_code)).status_code == 404
        assert (await decide(backend, mbp.user_code)).status_code == 404


async def test_an_approval_does_not_outlive_its_code(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        await decide(backend, mbp.user_code)
        await backend.world.database.write(
            lambda c: c.execute("UPDATE device_logins SET expires_us = ?", (clock.now_us(),))
        )
        assert await mbp.refused() == "expired_token"
        assert len(await hosts(backend)) == 1


async def test_who_polls_too_fast_is_told_to_slow_down(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, machine(backend) as mbp:
        assert await mbp.refused() == "authorization_pending"
        assert await mbp.refused() == "slow_down"
        await decide(backend, mbp.user_code)
        assert await mbp.refused() == "slow_down", "an approval is no excuse"


def test_each_poll_that_is_too_fast_makes_the_interval_five_seconds_longer() -> None:
    pacing = Pacing(5)
    assert not pacing.too_fast(b"a", 100)
    assert not pacing.too_fast(b"a", 105)
    assert pacing.too_fast(b"a", 109.9)
    assert pacing.too_fast(b"a", 119.8), "ten seconds now"
    assert not pacing.too_fast(b"a", 134.8)
    assert not pacing.too_fast(b"b", 134.8), "each has its own pace"


def test_guesses_are_forgotten_after_their_window() -> None:
    attempts = Attempts(2, 60)
    attempts.count("ana", 0)
    assert attempts.wait_s("ana", 1) == 0
    attempts.count("ana", 10)
    assert attempts.wait_s("ana", 11) == 49
    assert attempts.wait_s("ben", 11) == 0
    assert attempts.wait_s("ana", 60) == 0


async def test_guessing_ends_after_five_wrong_codes_even_for_the_right_one(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        for _ in range(3):
            assert (await look(backend, NOBODYS_CODE)).status_code == 404
        for _ in range(2):
            assert (await decide(backend, NOBODYS_CODE)).status_code == 404
        for answer in (await look(backend, mbp.user_code), await decide(backend, mbp.user_code)):
            assert answer.status_code == 429
            assert 3_500 < int(answer.headers["Retry-After"]) <= 3_601
        assert await mbp.refused() == "authorization_pending"
        ben = await backend.person("ben")
        assert (await look(backend, mbp.user_code, ben)).status_code == 200


async def test_an_address_has_its_own_bound_of_wrong_codes(tmp_path: Path) -> None:
    async with unpaced(tmp_path, wrong_codes_of_address=6) as backend, machine(backend) as mbp:
        ben, carl = await backend.person("ben"), await backend.person("carl")
        for person in (ben, ben, ben, carl, carl, carl):
            await look(backend, NOBODYS_CODE, person)
        assert (await look(backend, mbp.user_code)).status_code == 429


async def test_what_can_be_no_code_is_no_guess(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        for typed in ("AEIO-UAEI", "BBBB", "BBBB-BBBB-BBBB", "\u0412\u0412\u0412\u0412BBBB", "💥"):
            assert (await look(backend, typed)).status_code == 404
        typed = mbp.user_code.lower().replace("-", " ")
        assert (await look(backend, typed)).json()["user_code"] == mbp.user_code


async def test_one_persons_answer_is_hidden_from_the_next(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        ben = await backend.person("ben")
        await decide(backend, mbp.user_code, ben)
        assert (await look(backend, mbp.user_code)).status_code == 404
        assert (await decide(backend, mbp.user_code)).status_code == 409
        assert (await mbp.poll()).json()["approved_by"] == "ben@example.com"


async def test_a_machine_that_shows_its_key_stays_the_same_host(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend:
        host = backend.ana.host
        url = f"{backend.socket_url}/v1/daemon/ws"
        old = {"Authorization": f"Bearer {host.raw_key}"}
        async with (
            machine(backend, host.raw_key) as mbp,
            connect(url, additional_headers=old) as link,
        ):
            await link.send(encode(hello()))
            await link.recv()
            seen = (await look(backend, mbp.user_code)).json()
            assert seen["host"] == {"id": host.id, "name": host.name}
            await decide(backend, mbp.user_code)
            got = (await mbp.poll()).json()
            with anyio.fail_after(2):
                await link.wait_closed()
            assert link.close_code == CloseCode.UNAUTHORIZED
        assert (got["host_id"], got["known_before"]) == (host.id, True)
        assert got["host_name"] == host.name
        assert list(await hosts(backend)) == [host.id]
        # The key that was rotated away still tells which machine shows it, and opens nothing.
        async with machine(backend, host.raw_key) as again:
            seen = (await look(backend, again.user_code)).json()
            assert seen["host"]["id"] == host.id
            refused = await again.client.get("/v1/daemon/host", headers=old)
            assert refused.status_code == 401


async def test_another_persons_or_a_removed_host_is_not_taken_over(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend:
        ben, host = await backend.person("ben"), backend.ana.host
        async with machine(backend, host.raw_key) as mbp:
            assert (await look(backend, mbp.user_code, ben)).json()["host"] is None
            await decide(backend, mbp.user_code, ben)
            got = (await mbp.poll()).json()
            assert got["host_id"] != host.id
            assert got["host_id"] in await hosts(backend, ben)
        async with machine(backend, host.raw_key) as mbp, backend.client() as client:
            await decide(backend, mbp.user_code)
            await client.delete(f"/v1/host-machines/{host.id}")
            got = (await mbp.poll()).json()
            assert (got["host_id"] == host.id, got["known_before"]) == (False, False)
        async with machine(backend, keys.new_key(keys.MACHINE)) as stranger:
            assert (await look(backend, stranger.user_code)).json()["host"] is None


async def test_an_ephemeral_host_is_over_with_its_job_and_not_logged_in_again(
    tmp_path: Path,
) -> None:
    async with unpaced(tmp_path) as backend:
        parent = {"Authorization": f"Bearer {backend.ana.host.raw_key}"}
        async with httpx2.AsyncClient(base_url=backend.url, headers=parent) as client:
            made = await client.post("/v1/daemon/ephemeral-hosts", json={"name": "job-1"})
            assert made.status_code == 201, made.text
        async with machine(backend, made.json()["raw_key"]) as job:
            assert (await look(backend, job.user_code)).json()["host"] is None


async def test_too_many_waiting_machines_are_refused(tmp_path: Path) -> None:
    async with unpaced(tmp_path, device_logins_per_address=3) as backend:
        async with httpx2.AsyncClient(base_url=backend.url) as client:
            answers = [await client.post("/v1/auth/device/code", json={}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429]
        assert answers[-1].json()["next"]
        await backend.world.database.write(
            lambda c: c.execute("UPDATE device_logins SET address = 'elsewhere'")
        )
        async with machine(backend):
            pass


@pytest.mark.parametrize("field", ["hostname", "os", "daemon_version"])
@pytest.mark.parametrize("said", ["a\x1b[2J", "a\u202eb", "a\nb", "x" * 256])
async def test_what_a_machine_says_of_itself_is_plain(
    tmp_path: Path, field: str, said: str
) -> None:
    async with unpaced(tmp_path) as backend, httpx2.AsyncClient(base_url=backend.url) as client:
        answer = await client.post("/v1/auth/device/code", json=ASKED | {field: said})
        assert answer.status_code == 422


async def test_a_page_of_another_site_cannot_approve(tmp_path: Path) -> None:
    async with unpaced(tmp_path, open_signup=True) as backend, machine(backend) as mbp:
        async with httpx2.AsyncClient(base_url=backend.url) as browser:
            account = {"email": "eve@example.com", "password": "correct horse"}
            assert (await browser.post("/v1/auth/signup", json=account)).status_code == 201
            body = {"user_code": mbp.user_code}
            for headers in (
                {},
                {"X-Cloudagent": "1", "Origin": "https://evil.example"},
                {"X-Cloudagent": "1", "Sec-Fetch-Site": "cross-site"},
            ):
                answer = await browser.post("/v1/auth/device/approve", json=body, headers=headers)
                assert answer.status_code == 403
        assert await mbp.refused() == "authorization_pending"


async def test_behind_a_proxy_the_address_is_the_machines_and_the_page_is_public(
    tmp_path: Path,
) -> None:
    async with (
        unpaced(tmp_path, public_url="https://agents.example") as backend,
        httpx2.AsyncClient(
            base_url=backend.url, headers={"X-Forwarded-For": "203.0.113.9"}
        ) as client,
    ):
        codes = (await client.post("/v1/auth/device/code", json=ASKED)).json()
        assert codes["verification_uri"] == "https://agents.example/device"
        seen = (await look(backend, codes["user_code"])).json()
        assert (seen["address"], seen["your_address"]) == ("203.0.113.9", "127.0.0.1")


async def test_codes_are_random_and_long(tmp_path: Path) -> None:
    async with (
        unpaced(tmp_path, device_logins_per_address=200) as backend,
        httpx2.AsyncClient(base_url=backend.url) as client,
    ):
        asked = [await client.post("/v1/auth/device/code", json={}) for _ in range(50)]
    made = [answer.json() for answer in asked]
    assert len({codes["user_code"] for codes in made}) == 50
    for codes in made:
        assert normalised(codes["user_code"]) == codes["user_code"].replace("-", "")
        assert len(codes["device_code"]) * 6 >= 128  # base 64
        assert (codes["expires_in"], codes["interval"]) == (600, 0)


async def test_old_logins_are_forgotten(tmp_path: Path) -> None:
    async with unpaced(tmp_path) as backend, machine(backend) as mbp:
        database, hour_us = backend.world.database, 3_600_000_000
        await database.write(
            lambda c: c.execute(
                "UPDATE device_logins SET expires_us = ?", (clock.now_us() - hour_us,)
            )
        )
        await database.write(device_logins.forget_old)
        assert await mbp.refused() == "invalid_grant"


@given(st.text(CODE_LETTERS, min_size=8, max_size=8))
def test_a_code_is_read_however_it_is_typed(code: str) -> None:
    for typed in (shown(code), code.lower(), f" {code[:3]} {code[3:]} "):
        assert normalised(typed) == code


@given(st.text(max_size=20))
def test_what_is_read_as_a_code_is_one(typed: str) -> None:
    code = normalised(typed)
    assert code is None or (len(code) == 8 and set(code) <= set(CODE_LETTERS))
