"""Asking the running daemon: who may, what is answered, and that nothing of it hurts the daemon."""

import json
import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from cloudagent_daemon import control, selfcheck
from cloudagent_daemon.control_server import MAX_OPEN, Answer, ControlServer
from cloudagent_daemon.sockets import MAX_PATH_BYTES


async def hello() -> dict[str, Any]:
    return {"said": "hello"}


@asynccontextmanager
async def answering(state_dir: Path, runtime_dir: Path, **answers: Answer) -> AsyncGenerator[None]:
    server = ControlServer({"report": hello, **answers}, state_dir, runtime_dir)
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve)
        yield
        tasks.cancel_scope.cancel()


async def asked(state_dir: Path, verb: Any = "report", timeout_s: float = 5.0) -> dict[str, Any]:
    return await run_sync(control.ask, state_dir, verb, timeout_s)


async def raw(state_dir: Path, data: bytes) -> bytes:
    async with await anyio.connect_unix(state_dir / control.SOCKET) as stream:
        await stream.send(data)
        with anyio.fail_after(5):
            try:
                return await stream.receive()
            except anyio.EndOfStream:
                return b""


async def test_the_answer_is_what_the_daemon_says(tmp_path: Path) -> None:
    async with answering(tmp_path, tmp_path / "run"):
        assert await asked(tmp_path) == {"said": "hello"}


async def test_nobody_else_on_the_machine_can_reach_the_socket(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with answering(state, tmp_path / "run"):
        assert stat.S_IMODE((state / control.SOCKET).stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700


async def test_nothing_is_left_when_the_daemon_ends(tmp_path: Path) -> None:
    async with answering(tmp_path, tmp_path / "run"):
        pass
    assert not (tmp_path / control.SOCKET).exists()
    with pytest.raises(control.NoAnswerError, match="No such file"):
        await asked(tmp_path)


async def test_the_socket_of_a_life_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / control.SOCKET))
    with pytest.raises(control.NoAnswerError, match="refused"):
        await asked(tmp_path)
    async with answering(tmp_path, tmp_path / "run"):
        assert await asked(tmp_path) == {"said": "hello"}


async def test_a_home_too_deep_for_a_socket_is_served_all_the_same(tmp_path: Path) -> None:
    state = tmp_path / ("d" * 100) / ("p" * 31)
    async with answering(state, state / "run"):
        assert await asked(state) == {"said": "hello"}
        elsewhere = Path((state / f"{control.SOCKET}.path").read_text().strip())
        assert len(os.fsencode(elsewhere)) <= MAX_PATH_BYTES
    assert not elsewhere.parent.exists()
    assert list(state.iterdir()) == [state / "run"]


async def test_a_pointer_of_an_earlier_life_does_not_mislead(tmp_path: Path) -> None:
    (tmp_path / f"{control.SOCKET}.path").write_text("/nonexistent/control.sock\n")
    async with answering(tmp_path, tmp_path / "run"):
        assert await asked(tmp_path) == {"said": "hello"}


@pytest.mark.parametrize(
    "question", [b"\n", b"[]\n", b"nonsense\n", b'{"ask": 7}\n', b"[" * 4_000 + b"\n"]
)
async def test_a_question_that_is_none_is_answered_with_an_error(
    tmp_path: Path, question: bytes
) -> None:
    async with answering(tmp_path, tmp_path / "run"):
        assert "knows no" in json.loads(await raw(tmp_path, question))["error"]
        assert await asked(tmp_path) == {"said": "hello"}


async def test_a_question_without_an_end_is_cut_off(tmp_path: Path) -> None:
    async with answering(tmp_path, tmp_path / "run"):
        assert await raw(tmp_path, b"x" * 10_000) == b""


async def test_a_fault_is_told_and_the_next_question_answered(tmp_path: Path) -> None:
    async def fails() -> dict[str, Any]:
        raise RuntimeError("no such luck")

    async with answering(tmp_path, tmp_path / "run", check=fails):
        with pytest.raises(control.NoAnswerError, match="check failed: RuntimeError: no such luck"):
            await asked(tmp_path, "check")
        assert await asked(tmp_path) == {"said": "hello"}


async def test_checks_are_made_one_at_a_time(tmp_path: Path) -> None:
    running, most = 0, 0

    async def check() -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return {}

    async with answering(tmp_path, tmp_path / "run", check=check):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(asked, tmp_path, "check")
        assert most == 1


async def test_a_daemon_that_hangs_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    async def hangs() -> dict[str, Any]:
        await anyio.sleep_forever()
        return {}

    async with answering(tmp_path, tmp_path / "run", check=hangs):
        with pytest.raises(control.NoAnswerError, match=r"no answer within 0\.2 s"):
            await asked(tmp_path, "check", 0.2)


async def test_those_who_come_and_say_nothing_do_not_shut_others_out_for_long(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, tmp_path / "run"):
        path = tmp_path / control.SOCKET
        silent = [await anyio.connect_unix(path) for _ in range(MAX_OPEN)]
        with pytest.raises(control.NoAnswerError):
            await asked(tmp_path)
        for stream in silent:
            await stream.aclose()
        with anyio.fail_after(5):
            while True:
                try:
                    assert await asked(tmp_path) == {"said": "hello"}
                except control.NoAnswerError:
                    continue
                break


async def test_a_backend_that_keeps_nothing_is_not_waited_for_for_ever() -> None:
    found = await selfcheck.round_trip(anyio.sleep_forever, 0.01)
    assert found == {"ms": None, "problem": "the backend did not acknowledge within 0.01 s"}
