"""Files by the Python clients and by `cloudagent send --attach`, against the real backend."""

import json
import sys
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from cloudagent import AsyncCloudAgent, CloudAgent, InvalidRequestError
from cloudagent.turn import message_body
from fakes.server import running_backend

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 50


async def test_both_clients_send_a_file_and_read_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:

        def blocking() -> tuple[str, bytes]:
            with CloudAgent(backend.url, backend.ana.token) as ca:
                made = ca.attachments.upload("shot.png", PNG)
                thrown = ca.attachments.upload("oops.txt", b"oops")
                ca.attachments.delete(thrown.id)
                turn = ca.agents.get("frontend").send("", attachments=[made.id])
                assert turn.message.attachments == [made]
                return made.id, ca.attachments.download(made.id)

        first, content = await run_sync(blocking)
        assert content == PNG
        async with AsyncCloudAgent(backend.url, backend.ana.token) as ca:
            made = await ca.attachments.upload("shot.png", PNG)
            assert made.id != first
            agent = await ca.agents.get("frontend")
            turn = await agent.send("and this", attachments=[made.id])
            assert [one.name for one in turn.message.attachments] == ["shot.png"]
            assert await ca.attachments.download(made.id) == PNG


async def test_a_file_is_attached_on_the_command_line(tmp_path: Path) -> None:
    shot, notes = tmp_path / "shot.png", tmp_path / "notes.txt"
    shot.write_bytes(PNG)
    notes.write_text("what I saw")
    async with running_backend(tmp_path) as backend:
        env = {"CLOUDAGENT_URL": backend.url, "CLOUDAGENT_TOKEN": backend.ana.token}
        words = [sys.executable, "-m", "cloudagent.cli", "send", "frontend", "look"]
        words += ["--attach", str(shot), "--attach", str(notes), "--json"]
        with anyio.fail_after(60):
            done = await anyio.run_process(words, env=env)
        sent = json.loads(done.stdout)
        kinds = [(one["name"], one["media_type"]) for one in sent["attachments"]]
        assert kinds == [("shot.png", "image/png"), ("notes.txt", "text/plain")]
        with anyio.fail_after(60):
            missing = await anyio.run_process(
                [*words[:6], "--attach", str(tmp_path / "none")], env=env, check=False
            )
        assert missing.returncode == 2
        assert b"none" in missing.stderr


def test_too_many_files_are_refused_before_they_are_sent() -> None:
    with pytest.raises(InvalidRequestError, match="it may have 20"):
        message_body("x", attachments=[f"att_{number}" for number in range(21)])
