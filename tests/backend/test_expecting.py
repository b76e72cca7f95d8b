"""A person looks at a conversation: whose machine is told, and that nothing else comes of it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudagent_backend.delivery import hub
from cloudagent_backend.store import conversations, usage
from cloudagent_protocol.frames import Deliver, Expect
from fakes.daemon import ScriptedDaemon, connection
from fakes.server import Backend, running_backend


@asynccontextmanager
async def machine(backend: Backend, *capabilities: str) -> AsyncGenerator[ScriptedDaemon]:
    async with connection(backend.socket_url, backend.ana.host.raw_key) as daemon:
        await daemon.greet(capabilities=list(capabilities))
        yield daemon


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_EXPECTS_S", 0.0)


async def a_conversation(backend: Backend) -> str:
    ana = backend.ana
    made = await backend.world.database.write(
        lambda c: conversations.create(c, ana.user_id, [ana.agent.id], None)
    )
    return made.id


async def look(backend: Backend, conversation_id: str) -> int:
    async with backend.client() as client:
        answer = await client.post(f"/v1/conversations/{conversation_id}/expect")
    return answer.status_code


async def told(daemon: ScriptedDaemon, backend: Backend) -> list[Any]:
    """What the daemon was told, up to a message that follows."""
    await backend.post("a message like any other")
    seen: list[Any] = []
    while not seen or not isinstance(seen[-1], Deliver):
        seen.append(await daemon.receive())
    return [frame for frame in seen[:-1] if isinstance(frame, Expect)]


async def test_the_machine_is_told_whose_process_may_be_started(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, machine(backend, "expect") as daemon:
        conversation_id = await a_conversation(backend)
        before = await backend.world.database.read(_events)
        assert await look(backend, conversation_id) == 204
        frame = await daemon.expect(Expect)
        assert (frame.agent.id, frame.conversation_id) == (backend.ana.agent.id, conversation_id)
        assert await backend.world.database.read(_events) == before  # nobody else hears of it


def _events(c: Any) -> int:
    [(count,)] = c.execute("SELECT count(*) FROM events").fetchall()
    return count


async def test_a_daemon_that_does_not_know_it_is_told_nothing(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, machine(backend, "commands") as daemon:
        assert await look(backend, await a_conversation(backend)) == 204
        assert await told(daemon, backend) == []


async def test_a_machine_is_not_told_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_EXPECTS_S", 600.0)
    async with running_backend(tmp_path) as backend, machine(backend, "expect") as daemon:
        first, second = await a_conversation(backend), await a_conversation(backend)
        assert [await look(backend, one) for one in (first, second, first)] == [204] * 3
        assert [one.conversation_id for one in await told(daemon, backend)] == [first]


async def test_while_a_message_is_under_way_there_is_nothing_to_expect(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, machine(backend, "expect") as daemon:
        message = await backend.post()
        await daemon.expect(Deliver)
        assert await look(backend, message.conversation_id) == 204
        assert await told(daemon, backend) == []


async def test_for_an_agent_over_its_budget_nothing_is_started(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, machine(backend, "expect") as daemon:
        conversation_id = await a_conversation(backend)
        async with backend.client() as client:
            path = f"/v1/agents/{backend.ana.agent.id}"
            limits = {"limits": {"day_tokens": 10}}
            assert (await client.patch(path, json=limits)).status_code == 200
        await backend.world.database.write(lambda c: _used(c, backend))
        assert await look(backend, conversation_id) == 204
        async with backend.client() as client:
            assert (await client.patch(path, json={"limits": {}})).status_code == 200
        assert await told(daemon, backend) == []


def _used(c: Any, backend: Backend) -> None:
    c.execute(
        "INSERT INTO usage_days (agent_id, day, user_id, input_tokens) VALUES (?, ?, ?, 99)",
        (backend.ana.agent.id, usage.today(), backend.ana.user_id),
    )


async def test_a_conversation_of_nobody_or_of_somebody_else_is_none(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        bob = await backend.person("bob")
        foreign = await backend.world.database.write(
            lambda c: conversations.create(c, bob.user_id, [bob.agent.id], None)
        )
        assert [await look(backend, one) for one in ("conv_none", foreign.id)] == [404, 404]
