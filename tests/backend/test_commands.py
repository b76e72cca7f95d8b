"""What a person asks of a machine's daemon: rescan and restart."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from cloudagent_backend.delivery import commands
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store import hosts
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.frames import Command, CommandOp, CommandResult, HostReport
from cloudagent_protocol.resources import Runtime
from fakes.daemon import ScriptedDaemon, connection
from fakes.server import Backend, running_backend

FOUND = Runtime(name="claude_code", version="9.0", path="/usr/bin/claude")


class Asking:
    """A request under way."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.answer: httpx2.Response | None = None

    async def body(self) -> tuple[int, dict[str, Any]]:
        with anyio.fail_after(5):
            await self.over.wait()
        assert self.answer
        return self.answer.status_code, self.answer.json()


@asynccontextmanager
async def asked(backend: Backend, op: str, key: str | None = None) -> AsyncGenerator[Asking]:
    asking = Asking()
    headers = {"Idempotency-Key": key} if key else {}

    async def post() -> None:
        path = f"/v1/host-machines/{backend.ana.host.id}/{op}"
        async with backend.client() as client:
            asking.answer = await client.post(path, headers=headers)
        asking.over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post)
        yield asking


@asynccontextmanager
async def machine(backend: Backend, *capabilities: str) -> AsyncGenerator[ScriptedDaemon]:
    async with connection(backend.socket_url, backend.ana.host.raw_key) as daemon:
        await daemon.greet(capabilities=list(capabilities))
        yield daemon


async def test_a_rescan_is_answered_with_what_was_found(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        machine(backend, "commands") as daemon,
        asked(backend, "rescan") as asking,
    ):
        command = await daemon.expect(Command)
        assert (command.op, command.actor) == ("rescan", "ana")
        await daemon.send(HostReport(runtimes=[FOUND]))
        await daemon.settle()
        # One that nobody waits for, and then the one that counts.
        await daemon.send(CommandResult(id=command.id + 1, error="no"))
        await daemon.send(CommandResult(id=command.id))
        status, host = await asking.body()
        assert status == 200
        assert [runtime["version"] for runtime in host["runtimes"]] == ["9.0"]


async def test_a_restart_is_asked_for_once_however_often_the_request_is_sent(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, machine(backend, "commands") as daemon:
        async with asked(backend, "restart", "k1") as asking:
            command = await daemon.expect(Command)
            await daemon.send(CommandResult(id=command.id))
            assert (await asking.body())[0] == 202
        async with asked(backend, "restart", "k1") as again:
            assert (await again.body())[0] == 202
            assert again.answer
            assert again.answer.headers["Idempotency-Replayed"] == "true"
        async with asked(backend, "restart", "k2") as another:
            await daemon.send(CommandResult(id=(await daemon.expect(Command)).id))
            assert (await another.body())[0] == 202


async def test_a_daemon_that_will_not_says_why(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        machine(backend, "commands") as daemon,
        asked(backend, "restart", "k1") as asking,
    ):
        command = await daemon.expect(Command)
        await daemon.send(CommandResult(id=command.id, error="nobody would start it again"))
        status, problem = await asking.body()
        assert (status, problem["code"]) == (409, "conflict")
        assert problem["detail"] == "No restart of ana-mbp: nobody would start it again."


@pytest.mark.parametrize("op", list(CommandOp))
async def test_a_machine_that_is_away_or_too_old_says_so(tmp_path: Path, op: CommandOp) -> None:
    async with running_backend(tmp_path) as backend:
        async with asked(backend, op) as asking:
            status, problem = await asking.body()
            assert status == 409
            assert problem["detail"] == "ana-mbp is offline, so its daemon cannot be asked."
            assert "cloudagent-daemon start" in problem["next"]
        async with machine(backend, "interrupt_mode"), asked(backend, op) as asking:
            status, problem = await asking.body()
            assert status == 409
            assert problem["detail"] == (
                f"The daemon on ana-mbp (0.3.0) is too old to be asked for a {op}."
            )
            assert "uv tool upgrade cloudagent-daemon" in problem["next"]


async def test_a_daemon_that_goes_away_or_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with machine(backend, "commands") as daemon, asked(backend, "restart") as asking:
            await daemon.expect(Command)
            await daemon.socket.close()
            status, problem = await asking.body()
            assert status == 503
            assert "whether it did the restart is not known" in problem["detail"]
        async with machine(backend, "commands") as daemon:
            await daemon.send()
            world, who = backend.world, backend.ana
            host = await world.database.read(lambda c: hosts.load(c, who.user_id, who.host.id))
            assert host
            with anyio.fail_after(5):
                with pytest.raises(Refused) as refused:
                    await commands.ask(world.hub, host, CommandOp.RESCAN, "ana", answer_s=0.05)
                assert refused.value.code is ErrorCode.UNAVAILABLE
                async with anyio.create_task_group() as tasks:
                    for _ in range(commands.MAX_ASKED):
                        tasks.start_soon(
                            lambda: commands.ask(world.hub, host, CommandOp.RESCAN, "ana")
                        )
                        await daemon.expect(Command)
                    with pytest.raises(Refused) as refused:
                        await commands.ask(world.hub, host, CommandOp.RESCAN, "ana")
                    assert refused.value.code is ErrorCode.RATE_LIMITED
                    tasks.cancel_scope.cancel()
