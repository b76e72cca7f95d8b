"""Files by the Python clients and by `cloudagent send --attach`, against the real backend."""

import json
import sys
from pathlib import Path

import anyio
import pytest
import typer
from anyio.to_thread import run_sync

from cloudagent import AsyncCloudAgent, CloudAgent, InvalidRequestError
from cloudagent.cli.send import _files
from cloudagent.turn import message_body
from cloudagent_protocol.content import Attachment
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


async def test_a_file_of_a_path_is_sent_again_whole_by_both_clients(tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(range(256)) * 5_000)
    async with running_backend(tmp_path) as backend:

        def blocking() -> Attachment:
            with CloudAgent(backend.url, backend.ana.token) as ca:
                first = ca.attachments.upload("a.bin", large, idempotency_key="once")
                assert ca.attachments.upload("a.bin", large, idempotency_key="once") == first
                return first

        first = await run_sync(blocking)
        assert first.size_bytes == 1_280_000
        async with AsyncCloudAgent(backend.url, backend.ana.token) as ca:
            again = await ca.attachments.upload("b.bin", large)
            assert again.sha256 == first.sha256
            assert await ca.attachments.download(again.id) == large.read_bytes()


async def test_the_files_of_a_message_are_saved_and_overwrite_nothing(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "shot.png").write_text("mine")
    async with running_backend(tmp_path) as backend:
        async with AsyncCloudAgent(backend.url, backend.ana.token) as ca:
            made = await ca.attachments.upload("shot.png", PNG)
            turn = await (await ca.agents.get("frontend")).send("look", attachments=[made.id])
        env = {"CLOUDAGENT_URL": backend.url, "CLOUDAGENT_TOKEN": backend.ana.token}
        words = [sys.executable, "-m", "cloudagent.cli", "download", turn.message.id]
        with anyio.fail_after(60):
            done = await anyio.run_process([*words, "--to", str(saved)], env=env)
    assert done.stdout.decode().strip() == str(saved / "2-shot.png")
    assert (saved / "2-shot.png").read_bytes() == PNG
    assert (saved / "shot.png").read_text() == "mine"


ADDRESSES = Path(__file__).parents[1] / "daemon" / "addresses.jsonl"


def test_no_address_is_attached() -> None:
    for row in map(json.loads, ADDRESSES.read_text().splitlines()):
        if "\0" not in row["url"]:
            with pytest.raises(typer.BadParameter, match="nothing is fetched from addresses"):
                _files([Path(row["url"])])


def test_too_many_files_are_refused_before_they_are_sent() -> None:
    with pytest.raises(InvalidRequestError, match="it may have 20"):
        message_body("x", attachments=[f"att_{number}" for number in range(21)])
