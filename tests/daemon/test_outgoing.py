"""Files that agents send: copied when they say so, brought to the backend, never without their message."""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.copies import Copies
from cloudagent_daemon.link.courier import Courier
from cloudagent_daemon.link.files import FileRefusedError, Files
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import always
from cloudagent_daemon.runs.picking import copies_of
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Outcome, ToolResult
from cloudagent_protocol.frames import Send, decode
from cloudagent_protocol.ids import AgentId, AttachmentId
from daemon.test_spool import send
from fakes.runs import RecordedUplink, World, a_world
from fakes.server import running_backend

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
ATTACH = '@@call attach_file {"path": "chart.png"}'


def answers(uplink: RecordedUplink) -> list[str]:
    return [str(event.output) for event in uplink.events if isinstance(event, ToolResult)]


@asynccontextmanager
async def drawn(tmp_path: Path) -> AsyncGenerator[World]:
    """An agent that has drawn a chart."""
    async with a_world(tmp_path) as world:
        folder = world.workspace / "workspace"
        folder.mkdir(parents=True)
        (folder / "chart.png").write_bytes(PNG)
        yield world


def copied(world: World) -> list[str]:
    return sorted(path.name for path in copies_of(world.settings).folder.glob("*"))


# --- in a run ---


async def test_a_file_goes_with_the_agent_s_next_message_as_it_was(tmp_path: Path) -> None:
    async with drawn(tmp_path) as world:
        seen = await world.run(f"{ATTACH}\n{ATTACH}\n@@reply look\n@@reply and more")
        [first, second] = seen.sends
        [file] = first.attachments or []
        assert (file.name, file.media_type, second.attachments) == ("chart.png", "image/png", None)
        assert "goes with your next message" in answers(seen)[0]
        assert copied(world) == [file.id]
        assert copies_of(world.settings).path(file.id).read_bytes() == PNG


async def test_a_message_names_its_files_or_is_not_sent(tmp_path: Path) -> None:
    async with drawn(tmp_path) as world:
        paths = ["chart.png", "none.png"]
        order = f"@@call send_message {json.dumps({'text': 'hi', 'attachments': paths})}"
        seen = await world.run(f"{order}\n@@say over")
        assert (
            "Nothing was sent: none.png cannot be sent: there is no such file" in answers(seen)[0]
        )
        assert [(one.text, one.attachments) for one in seen.sends] == [("over", None)]
        assert copied(world) == []
        seen = await world.run(order.replace("none", "chart"))
        assert [one.name for one in seen.sends[0].attachments or ()] == ["chart.png", "chart.png"]


@pytest.mark.parametrize(
    ("orders", "outcome", "sent"),
    [
        (f"{ATTACH}\n@@say here it is", Outcome.AUTO_PUBLISHED, [("here it is", 1)]),
        (f"@@reply look\n{ATTACH}", Outcome.REPLIED, [("look", 0), ("", 1)]),
        (f"{ATTACH}\n@@silent nothing to say", Outcome.AUTO_PUBLISHED, [("", 1)]),
        (f"{ATTACH}\n@@crash", Outcome.FAILED, []),
    ],
)
async def test_what_waits_for_a_message_goes_at_the_turn_s_end_if_that_is_in_order(
    tmp_path: Path, orders: str, outcome: Outcome, sent: list[tuple[str, int]]
) -> None:
    async with drawn(tmp_path) as world:
        seen = await world.run(orders)
        assert seen.end.outcome is outcome
        assert [(one.text, len(one.attachments or ())) for one in seen.sends] == sent
        assert len(copied(world)) == sum(count for _, count in sent)


async def test_a_turn_that_was_cut_off_goes_on_with_the_files_that_waited(tmp_path: Path) -> None:
    async with drawn(tmp_path) as world:
        deliver, uplink = world.deliver(f"{ATTACH}\n@@say kept\n@@hang"), RecordedUplink()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.run(deliver, uplink=uplink))
            await uplink.until(
                lambda frame: "kept" in str(getattr(getattr(frame, "event", None), "text", ""))
            )
            tasks.cancel_scope.cancel()
        changed = deliver.message.model_copy(update={"text": f"{ATTACH}\n@@reply again"})
        seen = await world.run(deliver.model_copy(update={"message": changed}), attempt=2)
        assert [len(one.attachments or ()) for one in seen.sends] == [1], "and not twice"
        assert len(copied(world)) == 1


async def test_an_agent_can_attach_no_more_than_a_message_may_have(tmp_path: Path) -> None:
    async with drawn(tmp_path) as world:
        for number in range(21):
            (world.workspace / "workspace" / f"{number}.txt").write_text(f"{number}")
        orders = "\n".join(f'@@call attach_file {{"path": "{number}.txt"}}' for number in range(21))
        seen = await world.run(f"{orders}\n@@reply all")
        assert "A message may have 20 files, and this would be 21." in answers(seen)[20]
        assert len(seen.sends[0].attachments or ()) == 20


# --- to the backend ---


def a_copy(copies: Copies, tmp_path: Path, body: bytes = PNG) -> Attachment:
    (tmp_path / "source").write_bytes(body)
    with (tmp_path / "source").open("rb") as file:
        return copies.keep(file, "chart.png")


async def test_a_file_is_brought_once_however_often_it_is_tried(tmp_path: Path) -> None:
    copies = Copies(tmp_path / "outgoing")
    async with running_backend(tmp_path) as backend:
        ana = backend.ana
        files = Files(Way(backend.url), always(ana.host.raw_key))
        kept = a_copy(copies, tmp_path)
        for _ in range(2):
            await files.bring(kept, ana.agent.id, copies.path(kept.id))
        async with backend.client() as client:
            got = await client.get(f"/v1/attachments/{kept.id}")
        assert (got.content, got.headers["content-type"]) == (PNG, "image/png")
        with pytest.raises(FileRefusedError, match="404"):
            await files.bring(kept, AgentId("agent_none"), copies.path(kept.id))
        other = a_copy(copies, tmp_path, b"other").model_copy(update={"id": kept.id})
        with pytest.raises(FileRefusedError, match="409"):
            await files.bring(other, ana.agent.id, tmp_path / "source")
        wrong = Files(Way(backend.url), always("sk_machine_no"))
        with pytest.raises(UnreachableError, match="401"):
            await wrong.bring(kept, ana.agent.id, copies.path(kept.id))
    with pytest.raises(UnreachableError, match="could not be brought"):
        await files.bring(kept, ana.agent.id, copies.path(kept.id))


class Link:
    """What a courier sees of the link."""

    def __init__(self) -> None:
        self.connection: object | None = None
        self.changed = anyio.Event()

    def turn(self, *, up: bool) -> None:
        self.connection = object() if up else None
        self.changed.set()
        self.changed = anyio.Event()


class Shelf:
    """A far end that takes files, or not."""

    def __init__(self) -> None:
        self.tried: list[AttachmentId] = []
        self.answers: list[Exception | None] = []
        self.news = anyio.Event()

    async def bring(self, file: Attachment, agent_id: AgentId, copy: Path) -> None:
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == file.sha256
        self.tried.append(file.id)
        self.news.set()
        self.news = anyio.Event()
        if self.answers and (error := self.answers.pop(0)):
            raise error

    async def until(self, count: int) -> None:
        with anyio.fail_after(20):
            while len(self.tried) < count:
                await self.news.wait()


@asynccontextmanager
async def a_courier(
    spool: Spool, copies: Copies, pause_s: float = 0.01
) -> AsyncGenerator[tuple[Link, Shelf]]:
    link, shelf = Link(), Shelf()
    courier = Courier(spool, shelf, copies, link, Keeper(), pause_s=(pause_s, pause_s))  # pyright: ignore[reportArgumentType]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(courier.run)
        yield link, shelf
        tasks.cancel_scope.cancel()


def naming(*files: Attachment, number: int = 1) -> Send:
    return send(number, to=1).model_copy(update={"attachments": list(files)})


async def test_a_message_goes_out_when_its_file_is_there_and_the_copy_goes_with_its_ack(
    tmp_path: Path,
) -> None:
    copies = Copies(tmp_path / "outgoing")
    async with open_spool(None) as spool, a_courier(spool, copies) as (link, shelf):
        kept = a_copy(copies, tmp_path)
        await spool.append(naming(kept))
        await anyio.wait_all_tasks_blocked()
        assert (shelf.tried, spool.marks.last) == ([], 0), "without a link nothing is tried"
        shelf.answers = [UnreachableError("away"), UnreachableError("away"), None]
        link.turn(up=True)
        with anyio.fail_after(20):
            await spool.grown_beyond(0)
        assert len(shelf.tried) == 3
        [(seq, text)] = await spool.frames_after(0, 10)
        assert decode(text) == naming(kept).model_copy(update={"seq": seq})
        assert copies.path(kept.id).exists()
        await spool.acked(1)
        await spool.append(naming(a_copy(copies, tmp_path), number=2))
        await shelf.until(4)
        assert not copies.path(kept.id).exists()


async def test_what_is_refused_for_good_does_not_hold_its_message(tmp_path: Path) -> None:
    copies = Copies(tmp_path / "outgoing")
    async with open_spool(None) as spool, a_courier(spool, copies) as (link, shelf):
        shelf.answers = [FileRefusedError("too large")]
        await spool.append(naming(a_copy(copies, tmp_path), a_copy(copies, tmp_path)))
        link.turn(up=True)
        with anyio.fail_after(20):
            await spool.grown_beyond(0)
        assert len(shelf.tried) == 2


async def test_a_failed_attempt_is_repeated_as_soon_as_there_is_a_new_link(tmp_path: Path) -> None:
    copies = Copies(tmp_path / "outgoing")
    async with open_spool(None) as spool, a_courier(spool, copies, 600.0) as (link, shelf):
        shelf.answers = [UnreachableError("away")]
        await spool.append(naming(a_copy(copies, tmp_path)))
        link.turn(up=True)
        await shelf.until(1)
        await anyio.wait_all_tasks_blocked()
        link.turn(up=False)
        link.turn(up=True)
        await shelf.until(2)


async def test_a_next_life_brings_what_the_last_one_left(tmp_path: Path) -> None:
    copies, state = Copies(tmp_path / "outgoing"), tmp_path / "state.db"
    kept, gone = a_copy(copies, tmp_path), a_copy(copies, tmp_path)
    async with open_spool(state) as spool:
        await spool.append(naming(kept))
        await spool.append(naming(gone, number=2))
    copies.drop([gone.id])
    async with open_spool(state) as spool, a_courier(spool, copies) as (link, shelf):
        link.turn(up=True)
        with anyio.fail_after(20):
            await spool.grown_beyond(1)
        # Of the one whose copy is lost the message goes out, and the backend says what is missing.
        assert shelf.tried == [kept.id]
        # Another history of the backend's: it may have lost the file with the rest.
        await spool.reset_epoch("another")
        await shelf.until(2)


# --- and nowhere else ---


async def test_no_redirect_and_no_odd_id_leads_a_file_or_the_key_elsewhere(tmp_path: Path) -> None:
    asked: list[bytes] = []
    where = ""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await stream.send(
                b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nConnection: close\r\n"
                + f"Location: {where}\r\n\r\n".encode()
            )

    copies = Copies(tmp_path / "outgoing")
    kept = a_copy(copies, tmp_path)
    listeners = [await anyio.create_tcp_listener(local_host="127.0.0.1") for _ in range(2)]
    ours, other = (one.extra(anyio.abc.SocketAttribute.local_port) for one in listeners)
    async with anyio.create_task_group() as tasks:
        where = f"http://127.0.0.1:{other}/v1/daemon/attachments/{kept.id}"
        for one in listeners:
            tasks.start_soon(one.serve, answer)
        files = Files(Way(f"http://127.0.0.1:{ours}"), always("sk_machine_x"))
        with pytest.raises(UnreachableError, match="307"):
            await files.fetch(kept, tmp_path / "part")
        with pytest.raises(UnreachableError, match="307"):
            await files.bring(kept, AgentId("agent_1"), copies.path(kept.id))
        for odd in (
            "../../v1/me",
            "//evil.example/x",
            "att_x/../y",
            "att_x?y",
            "att_",
            "http://x/",
        ):
            wrong = kept.model_copy(update={"id": odd})
            with pytest.raises(FileRefusedError, match="no attachment's id"):
                await files.fetch(wrong, tmp_path / "part")
            with pytest.raises(FileRefusedError, match="no attachment's id"):
                await files.bring(wrong, AgentId("agent_1"), copies.path(kept.id))
        tasks.cancel_scope.cancel()
    for one in listeners:
        await one.aclose()
    assert len(asked) == 2, "an odd id is not asked for, nor is where a redirect leads"
    assert all(f"Host: 127.0.0.1:{ours}".encode() in one for one in asked)
