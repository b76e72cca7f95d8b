"""Files of a message: all of them are here before its agent begins, or it does not begin."""

import hashlib
from base64 import b64decode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from cloudagent_backend.delivery import sending
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.files import FileRefusedError, Files
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import always
from cloudagent_daemon.runs.enclosed import (
    PICTURE_BYTES,
    Enclosed,
    Porter,
    Removed,
    names,
    pictures,
    words,
)
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Outcome, Reason, Retry
from cloudagent_protocol.frames import Deliver, DeliveryReport, decode
from cloudagent_protocol.ids import AttachmentId, new_attachment_id, new_delivery_id
from contracts.drivers import PNG, with_files
from fakes.runs import RecordedUplink, a_delivery, a_world
from fakes.server import Backend, running_backend

BODY = bytes(range(256)) * 4_000


def an_attachment(body: bytes = BODY, name: str = "shot.png") -> Attachment:
    return Attachment(
        id=new_attachment_id(),
        name=name,
        media_type="image/png",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )


@asynccontextmanager
async def sent_file(tmp_path: Path) -> AsyncGenerator[tuple[Backend, Files, Deliver]]:
    """A file that went with a message, and the machine that the message is for."""
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await client.post("/v1/attachments", params={"name": "log.bin"}, content=BODY)
        path = f"/v1/agents/{backend.ana.agent.id}/messages"
        body = {"text": "look", "attachments": [made.json()["id"]]}
        assert (await client.post(path, json=body)).status_code == 201
        host_id = backend.ana.host.id
        await backend.world.database.write(lambda c: sending.lease(c, ReadyHost(host_id), 32))
        [row] = await backend.world.database.read(
            lambda c: c.execute("SELECT frame FROM outbox WHERE type = 'deliver'").fetchall()
        )
        deliver = decode(row[0])
        assert isinstance(deliver, Deliver)
        yield backend, Files(Way(backend.url), always(backend.ana.host.raw_key)), deliver


async def test_a_file_comes_whole_and_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    async with sent_file(tmp_path) as (_, files, deliver):
        [wanted] = deliver.message.attachments or []
        part = tmp_path / "part"
        await files.fetch(wanted, part)
        assert part.read_bytes() == BODY
        part.write_bytes(BODY[:1_000])
        await files.fetch(wanted, part)
        assert part.read_bytes() == BODY
        # What lay there is not of this file: it is not taken for it, and the next attempt begins anew.
        part.write_bytes(b"?" * 1_000)
        with pytest.raises(UnreachableError, match="damaged"):
            await files.fetch(wanted, part)
        await files.fetch(wanted, part)
        assert part.read_bytes() == BODY


async def test_a_file_that_is_not_for_this_machine_is_refused_for_good(tmp_path: Path) -> None:
    async with sent_file(tmp_path) as (backend, files, deliver):
        [wanted] = deliver.message.attachments or []
        other = wanted.model_copy(update={"id": AttachmentId("att_none")})
        with pytest.raises(FileRefusedError, match="404"):
            await files.fetch(other, tmp_path / "part")
        bens = await backend.person("ben")
        theirs = Files(Way(backend.url), always(bens.host.raw_key))
        with pytest.raises(FileRefusedError, match="404"):
            await theirs.fetch(wanted, tmp_path / "part")
        wrong = Files(Way(backend.url), always("sk_machine_no"))
        with pytest.raises(UnreachableError, match="401"):
            await wrong.fetch(wanted, tmp_path / "part")
        assert not (tmp_path / "part").exists()


async def test_the_files_are_there_before_the_run_and_the_trace_says_so(tmp_path: Path) -> None:
    async with sent_file(tmp_path) as (_, files, deliver):
        uplink, space = RecordedUplink(), Workspace(tmp_path / "agents", deliver.agent)
        space.prepare()
        porter = Porter(files, uplink, Keeper())
        brought = await porter.bring(deliver, space, StopSignal())
        assert isinstance(brought, list)
        [one] = brought
        assert isinstance(one, Enclosed)
        assert one.path == space.attachments / deliver.message.id / "log.bin"
        assert one.path.read_bytes() == BODY
        [told] = uplink.frames
        assert isinstance(told, DeliveryReport)
        assert (told.reason, told.detail) == (
            Reason.FETCHING,
            "fetching a file (1.02 MB) before it begins",
        )
        # A further attempt has them already, and says nothing.
        assert await porter.bring(deliver, space, StopSignal()) == brought
        assert len(uplink.frames) == 1


async def test_a_file_that_cannot_be_had_keeps_the_run_from_beginning(tmp_path: Path) -> None:
    async with sent_file(tmp_path) as (_, files, deliver):
        space = Workspace(tmp_path / "agents", deliver.agent)
        message = deliver.message.model_copy(update={"attachments": [an_attachment()]})
        lost = deliver.model_copy(update={"message": message})
        failed = await Porter(files, RecordedUplink(), Keeper()).bring(lost, space, StopSignal())
        assert isinstance(failed, Failure)
        assert failed.reason is Reason.ATTACHMENT_MISSING
        assert "shot.png cannot be had" in failed.detail


async def test_a_file_that_was_removed_is_gone_without_it_and_the_agent_is_told(
    tmp_path: Path,
) -> None:
    async with sent_file(tmp_path) as (backend, files, deliver):
        space = Workspace(tmp_path / "agents", deliver.agent)
        porter = Porter(files, RecordedUplink(), Keeper())
        [wanted] = deliver.message.attachments or []
        async with backend.client() as client:
            await client.delete(f"/v1/attachments/{wanted.id}")
        # The frame was on its way before: the machine asks for the file, and hears of it.
        assert await porter.bring(deliver, space, StopSignal()) == [Removed("log.bin")]
        told = words([Removed("log.bin")])
        assert told.startswith("\n\n[Removed from this message by a person")
        assert "- log.bin]" in told

        # One that says so itself: nothing is fetched, and a copy from before goes.
        copy = space.attachments / deliver.message.id / "log.bin"
        copy.write_bytes(BODY)
        known = wanted.model_copy(update={"removed_at": deliver.message.created_at})
        message = deliver.message.model_copy(update={"attachments": [known]})
        again = deliver.model_copy(update={"message": message})
        offline = Porter(None, RecordedUplink(), Keeper())
        assert await offline.bring(again, space, StopSignal()) == [Removed("log.bin")]
        assert not copy.exists()
        assert pictures([Removed("log.bin")]) == []


async def test_a_backend_that_is_away_is_waited_for_until_it_is_too_long_or_a_stop(
    tmp_path: Path,
) -> None:
    away = Files(Way("http://127.0.0.1:1"), always("sk_machine_x"))
    deliver = a_delivery()
    message = deliver.message.model_copy(update={"attachments": [an_attachment()]})
    deliver = deliver.model_copy(update={"message": message})
    space = Workspace(tmp_path / "agents", deliver.agent)
    short = Porter(away, RecordedUplink(), Keeper(), patience_s=0.2)
    failed = await short.bring(deliver, space, StopSignal())
    assert isinstance(failed, Failure)
    assert failed.reason is Reason.ATTACHMENT_MISSING
    stop = StopSignal()
    stop.request("Ana")
    with anyio.fail_after(10):
        stopped = await Porter(away, RecordedUplink(), Keeper()).bring(deliver, space, stop)
    assert isinstance(stopped, Failure)


def test_names_are_ours_and_none_is_given_twice() -> None:
    said = [an_attachment(name=name) for name in ("a.png", "A.png", "../../a.png", ".part")]
    assert names(said) == ["a.png", "2-A.png", "3-a.png", "part"]


def test_the_agent_is_told_where_the_files_are(tmp_path: Path) -> None:
    assert words([]) == ""
    told = words([Enclosed(tmp_path / "a.png", "image/png", 3_240_000)])
    assert told.startswith("\n\n[Files that came with this message")
    assert f"- {tmp_path}/a.png (image/png, 3.24 MB)]" in told


def test_a_model_is_shown_the_pictures_that_it_can_take(tmp_path: Path) -> None:
    def enclosed(name: str, said: str, body: bytes) -> Enclosed:
        (tmp_path / name).write_bytes(body)
        return Enclosed(tmp_path / name, said, len(body))

    small = enclosed("small.png", "image/png", PNG)
    # Whatever it was said to be: it is told by its bytes.
    told = enclosed("other.gif", "image/gif", b"\xff\xd8\xff" + bytes(9))
    script = enclosed("x.svg", "image/png", b"<svg>")
    text = enclosed("a.txt", "text/plain", b"words")
    large = enclosed("large.png", "image/png", PNG + bytes(PICTURE_BYTES))
    shown = pictures([small, told, script, text, large])
    assert [(one.path.name, one.media_type) for one in shown] == [
        ("small.png", "image/png"),
        ("other.gif", "image/jpeg"),
    ]
    assert b64decode(shown[0].data) == PNG
    many = [enclosed(f"{n}.png", "image/png", PNG + bytes(3_000_000)) for n in range(4)]
    assert len(pictures(many)) == 2, "no more than a line of a program may have"


async def test_a_model_that_takes_no_pictures_is_given_their_paths(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        seen = await world.run(with_files(world, "@@blind\n@@pictures", {"shot.png": PNG}))
        assert [send.text for send in seen.sends] == ["none"]
        [retry] = [event for event in seen.events if isinstance(event, Retry)]
        assert retry.reason is Reason.INVALID_REQUEST
        # Without any there is nothing to leave out: it is the program's last word.
        failed = await world.run("@@error 400 invalid_request")
        assert failed.end.reason is Reason.INVALID_REQUEST


async def test_a_run_begins_with_its_files_or_ends_without_having_begun(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        wanted = an_attachment(b"what I saw", "notes.txt")
        deliver = world.deliver("@@reply read it")
        message = deliver.message.model_copy(update={"attachments": [wanted]})
        deliver = deliver.model_copy(update={"message": message})
        lost = await world.run(deliver)
        assert (lost.end.outcome, lost.end.reason) == (Outcome.FAILED, Reason.ATTACHMENT_MISSING)
        assert lost.launches == []
        place = world.workspace / "attachments" / deliver.message.id / "notes.txt"
        place.write_bytes(b"what I saw")
        again = deliver.model_copy(update={"delivery_id": new_delivery_id()})
        assert (await world.run(again)).end.outcome is Outcome.REPLIED
        [recalled] = (await world.run("@@recall")).sends
        assert str(place) in recalled.text
