"""Signing up, in and out: passwords, tokens, the page's cookie, one-time links."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
import pytest
from argon2 import PasswordHasher
from typing_extensions import override

from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.api.passwords import NOBODY, Passwords
from cloudagent_backend.store import clock, keys, users
from cloudagent_backend.store.database import Database
from cloudagent_protocol.errors import ErrorCode
from fakes.server import Backend, running_backend

T = TypeVar("T")
BEN = {"email": "Ben@Example.com", "password": "correct horse"}


def visitor(backend: Backend, **more: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=backend.url, timeout=10, **more)


async def signed_up(backend: Backend, client: httpx2.AsyncClient) -> dict[str, Any]:
    answer = await client.post("/v1/auth/signup", json=BEN)
    assert answer.status_code == 201, answer.text
    return answer.json()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_sign_up_is_closed_unless_the_operator_opened_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, visitor(backend) as client:
        answer = await client.post("/v1/auth/signup", json=BEN)
        assert answer.status_code == 403
        assert "closed" in answer.json()["detail"]


async def test_who_signed_up_can_log_in_and_is_who_they_say(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        made = await signed_up(backend, client)
        assert made["user"]["email"] == "ben@example.com"
        assert not made["user"]["is_admin"]
        again = await client.post("/v1/auth/signup", json=BEN)
        assert again.status_code == 409
        client.cookies.clear()
        login = await client.post("/v1/auth/login", json=BEN)
        assert login.status_code == 200
        client.cookies.clear()
        me = await client.get("/v1/me", headers=bearer(login.json()["access_token"]))
        assert me.json() == made["user"]


async def test_a_wrong_password_and_an_unknown_account_look_the_same(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        await signed_up(backend, client)
        wrong = await client.post("/v1/auth/login", json=BEN | {"password": "wrong"})
        nobody = await client.post("/v1/auth/login", json=BEN | {"email": "no@example.com"})
        assert wrong.status_code == nobody.status_code == 401
        strip = ("detail", "next", "code")
        assert [wrong.json()[k] for k in strip] == [nobody.json()[k] for k in strip]


async def test_guessing_ends_after_five_and_the_right_password_clears_it() -> None:
    passwords = Passwords(at_once=2, failures_per_minute=5)
    right = await passwords.hash("right password")
    for _ in range(4):
        assert not await passwords.verify("a", right, "wrong")
    assert await passwords.verify("a", right, "right password")
    for _ in range(5):
        assert not await passwords.verify("a", right, "wrong")
    with pytest.raises(ApiError) as refused:
        await passwords.verify("a", right, "right password")
    assert refused.value.code is ErrorCode.RATE_LIMITED
    assert await passwords.verify("b", right, "right password"), "another account is not affected"


async def test_at_most_two_passwords_are_hashed_at_once() -> None:
    passwords = Passwords(at_once=2, failures_per_minute=5)
    refused: list[ErrorCode] = []

    async def one(n: int) -> None:
        try:
            await passwords.verify(str(n), None, "x")
        except ApiError as error:
            refused.append(error.code)

    async with anyio.create_task_group() as tg:
        for n in range(4):
            tg.start_soon(one, n)
    assert refused == [ErrorCode.RATE_LIMITED] * 2
    assert not await passwords.verify("1", None, "x"), "a refusal does not count as a guess"


def test_where_there_is_no_account_as_much_is_computed() -> None:
    assert not PasswordHasher().check_needs_rehash(NOBODY)


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        first = await signed_up(backend, client)
        old = {"refresh_token": first["refresh_token"]}
        renewed = await client.post("/v1/auth/refresh", json=old)
        assert renewed.status_code == 200
        assert renewed.json()["refresh_token"] != first["refresh_token"]
        lost = await client.post("/v1/auth/refresh", json=old)
        assert lost.status_code == 200, "the answer may have been lost: once more is fine"

        monkeypatch.setattr(users, "REUSE_GRACE_US", -1)
        stolen = await client.post("/v1/auth/refresh", json=old)
        assert stolen.status_code == 401
        newer = {"refresh_token": renewed.json()["refresh_token"]}
        assert (await client.post("/v1/auth/refresh", json=newer)).status_code == 401
        client.cookies.clear()
        me = await client.get("/v1/me", headers=bearer(renewed.json()["access_token"]))
        assert me.status_code == 401


async def test_logging_out_ends_cookie_access_token_and_refresh_token(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        made = await signed_up(backend, client)
        cookie = client.cookies["cloudagent_session"]
        assert (await client.get("/v1/me")).status_code == 200
        assert (await client.post("/v1/auth/logout", headers={"X-Cloudagent": "1"})).is_success
        assert not client.cookies, "the browser forgets it too"
        for headers in (
            {"Cookie": f"cloudagent_session={cookie}"},
            bearer(made["access_token"]),
        ):
            assert (await client.get("/v1/me", headers=headers)).status_code == 401
        body = {"refresh_token": made["refresh_token"]}
        assert (await client.post("/v1/auth/refresh", json=body)).status_code == 401


async def test_a_login_ends_when_unused_and_in_any_case_at_its_age(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        database, user_id = backend.world.database, backend.ana.user_id
        made = await database.write(lambda c: users.log_in(c, user_id))
        day = 86_400_000_000

        async def alive(**ages: int) -> bool:
            limits = users.Ages(**{"idle_us": 14 * day, "absolute_us": 90 * day} | ages)
            found = await database.read(lambda c: users.login(c, made.login_id, limits))
            return found is not None

        def age(column: str, by_us: int) -> Any:
            statement = f"UPDATE logins SET {column} = ?"
            return database.write(lambda c: c.execute(statement, (clock.now_us() - by_us,)))

        assert await alive()
        await age("seen_us", 15 * day)
        assert not await alive()
        await age("seen_us", day)
        assert await alive()
        await age("created_us", 91 * day)
        assert not await alive()
        await database.write(lambda c: users.forget_old_logins(c, users.Ages(14 * day, 90 * day)))
        rows = await database.read(
            lambda c: c.execute("SELECT count(*) FROM refresh_tokens").fetchone()
        )
        assert rows[0] == 0


async def test_a_one_time_link_lets_in_once(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, visitor(backend) as client:
        user_id = backend.ana.user_id
        key = await backend.world.database.write(lambda c: users.new_link(c, "page", user_id, 60))
        first = await client.post("/v1/auth/link", json={"key": key})
        assert first.json()["user"]["id"] == user_id
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert (await client.get("/v1/me")).status_code == 200
        assert (await client.post("/v1/auth/link", json={"key": key})).status_code == 401


async def test_a_link_is_worth_nothing_after_its_time_or_for_another_purpose(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, visitor(backend) as client:
        write, user_id = backend.world.database.write, backend.ana.user_id
        late = await write(lambda c: users.new_link(c, "page", user_id, -1))
        setup = await write(lambda c: users.new_link(c, "setup", None, 60))
        for key in (late, setup):
            assert (await client.post("/v1/auth/link", json={"key": key})).status_code == 401
        body = BEN | {"key": setup}
        made = await client.post("/v1/auth/setup", json=body)
        assert made.json()["user"]["is_admin"]
        other = body | {"email": "eve@example.com"}
        assert (await client.post("/v1/auth/setup", json=other)).status_code == 401


async def test_over_https_the_cookie_is_bound_to_the_host(tmp_path: Path) -> None:
    public = "https://agents.example.com"
    async with (
        running_backend(tmp_path, open_signup=True, public_url=public) as backend,
        visitor(backend) as client,
    ):
        answer = await client.post("/v1/auth/signup", json=BEN, headers={"Origin": public})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-cloudagent_session=")
        assert "Secure" in cookie
        assert "Path=/" in cookie


async def test_with_the_cookie_a_change_needs_the_pages_header_and_origin(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        await signed_up(backend, client)
        body = {"name": "x"}
        own = {"X-Cloudagent": "1"}
        for headers in (
            {},
            own | {"Origin": "https://evil.example"},
            own | {"Origin": "null"},
            own | {"Origin": backend.url.replace("http", "https")},
            own | {"Origin": f"{backend.url}.evil.example"},
            own | {"Sec-Fetch-Site": "cross-site"},
            own | {"Sec-Fetch-Site": "same-site"},
        ):
            answer = await client.post("/v1/tokens", json=body, headers=headers)
            assert answer.status_code == 403, headers
        for headers in (own, own | {"Origin": backend.url, "Sec-Fetch-Site": "same-origin"}):
            answer = await client.post("/v1/tokens", json=body, headers=headers)
            assert answer.status_code == 201, headers


async def test_another_sites_page_cannot_log_anybody_in(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, open_signup=True) as backend,
        visitor(backend) as client,
    ):
        for path in ("signup", "login"):
            answer = await client.post(
                f"/v1/auth/{path}", json=BEN, headers={"Origin": "https://evil.example"}
            )
            assert answer.status_code == 403


async def test_a_personal_token_is_shown_once_and_ends_when_revoked(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = (await client.post("/v1/tokens", json={"name": "ci"})).json()
        assert keys.well_formed(keys.PERSONAL, made["raw_token"])
        listed = (await client.get("/v1/tokens")).json()["data"]
        assert [one["name"] for one in listed] == ["test", "ci"]
        assert all(one["raw_token"] is None for one in listed)
        assert listed[1]["last_four"] == made["raw_token"][-4:]
        stored = await backend.world.database.read(lambda c: list(c.iterdump()))
        assert made["raw_token"] not in "\n".join(stored)

        mine = bearer(made["raw_token"])
        assert (await client.get("/v1/me", headers=mine)).status_code == 200
        listed = (await client.get("/v1/tokens")).json()["data"]
        assert listed[1]["last_used_at"] is not None
        assert (await client.delete(f"/v1/tokens/{made['id']}")).status_code == 204
        assert (await client.get("/v1/me", headers=mine)).status_code == 401


class SlowDatabase(Database):
    """A database whose answers take their time to arrive."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.path)
        self._fast = database
        self.found = anyio.Event()
        self.arrives = anyio.Event()

    @override
    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        found = await self._fast.read(work)
        self.found.set()
        await self.arrives.wait()
        return found

    @override
    async def write(
        self, work: Callable[[sqlite3.Connection], T], *, repeatable: bool = False
    ) -> T:
        return await self._fast.write(work, repeatable=repeatable)


async def test_a_token_that_is_revoked_while_it_is_looked_up_is_not_remembered(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        world, token = backend.world, backend.ana.token
        slow = SlowDatabase(world.database)
        guard = type(world.authenticator)(slow, world.settings, b"secret" * 8)
        async with anyio.create_task_group() as tg:
            tg.start_soon(guard.bearer, token)
            with anyio.fail_after(5):
                await slow.found.wait()
            await world.database.write(lambda c: c.execute("DELETE FROM tokens"))
            guard.forget()
            slow.arrives.set()
        assert await guard.bearer(token) is None


async def test_a_forged_or_expired_access_token_is_none(tmp_path: Path) -> None:
    async with running_backend(tmp_path, open_signup=True) as backend, visitor(backend) as client:
        made = await signed_up(backend, client)
        client.cookies.clear()
        world = backend.world
        late = type(world.authenticator)(
            world.database, replace(world.settings, access_token_s=-1), b"another secret" * 4
        )
        forged = late.access_token(made["user"]["id"], "x")
        head, claims, _ = made["access_token"].split(".")
        unsigned = f"eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}."
        for token in (forged, unsigned, f"{head}.{claims}.AAAA", "cat_nonsense", "x"):
            assert (await client.get("/v1/me", headers=bearer(token))).status_code == 401, token


def test_every_single_mistyped_character_of_a_key_is_noticed() -> None:
    key = keys.new_key(keys.MACHINE)
    assert len(key) == len("sk_machine_") + 46
    assert keys.well_formed(keys.MACHINE, key)
    assert not keys.well_formed(keys.PERSONAL, key)
    for position in range(len(key)):
        for other in "aZ0é\x00":
            if key[position] != other:
                wrong = key[:position] + other + key[position + 1 :]
                assert not keys.well_formed(keys.MACHINE, wrong)
    assert not keys.well_formed(keys.MACHINE, key[:-1])
    assert not keys.well_formed(keys.MACHINE, "sk_machine_")
