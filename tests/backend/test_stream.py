"""Following a person's events: the log, live text, pings and resyncs, over SSE and WebSocket."""

import json
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.store import clock, events
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import Delta
from cloudagent_protocol.ids import AgentId, ConversationId, RunId
from cloudagent_protocol.resources import EventType
from fakes.daemon import ScriptedDaemon, connection
from fakes.desk import Desk, Run, open_desk
from fakes.server import Backend, running_backend

RUN, AGENT, CONVERSATION = RunId("run_1"), AgentId("agent_1"), ConversationId("conv_1")


class Reader:
    """One follower, line by line, each within its deadline."""

    def __init__(self, rows: AsyncGenerator[Any]) -> None:
        self.rows = rows

    async def next(self) -> Any:
        with anyio.fail_after(5):
            return await anext(self.rows)

    async def until(self, kind: str) -> Any:
        while (row := await self.next()).type != kind:
            pass
        return row


@asynccontextmanager
async def following(desk: Desk, after: int | None = None) -> AsyncGenerator[Reader]:
    rows = desk.fanout.follow(desk.user_id, after)
    try:
        yield Reader(rows)
    finally:
        await rows.aclose()


def delta(text: str, offset: int, block: int = 0) -> Delta:
    return Delta(
        run_id=RUN,
        agent_id=AGENT,
        conversation_id=CONVERSATION,
        block=block,
        offset=offset,
        text=text,
    )


def write(desk: Desk, text: str, offset: int, block: int = 0) -> None:
    desk.fanout.delta(desk.user_id, delta(text, offset, block))


def begin(desk: Desk) -> None:
    desk.fanout.run_started(desk.user_id, RUN, AGENT, CONVERSATION)


# --- the log --------------------------------------------------------------------------


async def test_following_starts_with_a_ping_that_says_where(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say()
        async with following(desk) as new, following(desk, 1) as old:
            assert [(row.type, row.id) for row in [await new.next()]] == [("ping", 2)]
            assert [(row.type, row.id) for row in [await old.next()]] == [("ping", 1)]
            assert (await old.next()).type == "delivery.updated"
            await desk.say()
            assert ((row := await new.next()).type, row.id) == ("message.created", 3)


@pytest.mark.parametrize("after", [3, 10_000])
async def test_a_cursor_from_the_future_is_told_to_resync(tmp_path: Path, after: int) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say()
        async with following(desk, after) as reader:
            row = await reader.next()
            assert (row.type, row.id) == ("resync", 2)
            await desk.say()
            assert (await reader.next()).id == 3


async def test_a_trimmed_cursor_is_told_to_resync(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        for _ in range(5):
            await desk.say()
        await desk.database.write(lambda c: events.trim(c, desk.user_id, keep=4, before_us=0))
        assert [row.id for row in await desk.log()] == [7, 8, 9, 10]
        async with following(desk, 5) as trimmed, following(desk, 6) as kept:
            assert (await trimmed.next()).type == "resync"
            assert (await kept.next()).type == "ping"
            assert (await kept.next()).id == 7


async def test_old_lines_are_trimmed_and_ids_go_on(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.say()
        later = clock.now_us() + 1
        assert not await desk.database.write(
            lambda c: events.trim(c, desk.user_id, keep=100, before_us=later)
        )
        assert await desk.log() == []
        await desk.say()
        assert [row.id for row in await desk.log()] == [3, 4]


async def test_a_long_backlog_comes_whole_and_in_order(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:

        def many(c: Any) -> None:
            for n in range(1_000):
                events.append(c, desk.user_id, EventType.AGENT_UPDATED, {"n": n})

        await desk.database.write(many)
        async with following(desk, 0) as reader:
            await reader.next()
            assert [(await reader.next()).id for _ in range(1_000)] == list(range(1, 1_001))


async def test_each_person_sees_only_their_own(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        bob = await backend.person("bob")
        rows = backend.world.fanout.follow(bob.user_id, 0)
        await backend.post()
        await backend.post(person=bob)
        reader = Reader(rows)
        found = [json.loads((await reader.next()).data) for _ in range(3)]
        assert found[1]["author"]["name"] == "bob"
        await rows.aclose()


# --- live text ------------------------------------------------------------------------


async def test_deltas_come_as_they_are_written_and_carry_the_cursor(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, following(desk) as reader:
        await reader.next()
        begin(desk)
        write(desk, "Hel", 0)
        row = await reader.next()
        assert (row.type, row.id) == ("run.delta", 0)
        assert json.loads(row.data) == {
            "run_id": RUN,
            "conversation_id": CONVERSATION,
            "agent_id": AGENT,
            "block": 0,
            "offset": 0,
            "text": "Hel",
        }
        write(desk, "lo", 3)
        data = json.loads((await reader.next()).data)
        assert (data["offset"], data["text"]) == (3, "lo")


async def test_a_new_follower_gets_the_whole_partial_text_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        begin(desk)
        for n, letter in enumerate("Hello"):
            write(desk, letter, n)
        async with following(desk) as reader:
            await reader.next()
            data = json.loads((await reader.next()).data)
            assert (data["offset"], data["text"]) == (0, "Hello")


async def test_many_deltas_are_put_together(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, following(desk) as reader:
        await reader.next()
        begin(desk)
        write(desk, "0", 0)
        await reader.next()
        for n in range(1, 500):
            write(desk, "x", n)
        assert json.loads((await reader.next()).data)["text"] == "x" * 499


async def test_overlaps_are_cut_and_gaps_ignored(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        begin(desk)
        write(desk, "Hello", 0)
        write(desk, "Hello, you", 0)  # sent whole again after a reconnect
        write(desk, "lost", 99)
        write(desk, "old", 0)
        write(desk, "gap in the next block", 4, block=1)
        async with following(desk) as reader:
            await reader.next()
            assert json.loads((await reader.next()).data)["text"] == "Hello, you"


async def test_a_finished_block_is_no_longer_live(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        begin(desk)
        write(desk, "Hello", 0)
        desk.fanout.block_finished(desk.user_id, RUN, 0)
        write(desk, "Hello", 0)
        write(desk, "Next", 0, block=1)
        async with following(desk) as reader:
            await reader.next()
            data = json.loads((await reader.next()).data)
            assert (data["block"], data["text"]) == (1, "Next")
            desk.fanout.run_finished(desk.user_id, RUN)
            write(desk, "after the end", 0, block=2)
            await desk.say()
            assert (await reader.next()).type == "message.created"


async def test_text_of_a_run_that_was_cut_off_is_no_longer_shown(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        piece = delta("half a sen", 0).model_copy(
            update={"run_id": run.id, "agent_id": desk.agent_id}
        )
        await desk.report(run.started(), piece)
        await desk.greet()  # of a daemon that has lost everything
        async with following(desk) as reader:
            await reader.next()
            await desk.say()
            assert (await reader.next()).type == "message.created"


async def test_a_piece_of_text_waits_for_nothing_that_is_being_kept(tmp_path: Path) -> None:
    free = threading.Event()
    async with open_desk(tmp_path) as desk, following(desk) as reader:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        about = {"run_id": run.id, "agent_id": desk.agent_id}
        await desk.report(run.started())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.database.write, lambda _: free.wait(5))
            tasks.start_soon(desk.report, delta("Hel", 0).model_copy(update=about))
            try:
                row = await reader.until("run.delta")
                assert (json.loads(row.data)["text"], free.is_set()) == ("Hel", False)
            finally:
                free.set()
        # But for what comes before it: that decides whether it is a run's.
        await desk.report(run.text("Hel"), delta("next", 0, block=1).model_copy(update=about))
        assert (await reader.until("run.event")).type == "run.event"
        assert json.loads((await reader.until("run.delta")).data)["text"] == "next"


async def test_text_of_somebody_elses_run_is_ignored(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, following(desk) as reader:
        await reader.next()
        begin(desk)
        foreign = delta("I am not your agent", 0).model_copy(update={"agent_id": "agent_2"})
        desk.fanout.delta(desk.user_id, foreign)
        write(desk, "Hello", 0)
        assert json.loads((await reader.next()).data)["text"] == "Hello"


async def test_a_slow_follower_holds_up_nobody_and_misses_nothing(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, following(desk, 0) as slow:
        await slow.next()
        begin(desk)
        for n in range(3_000):
            write(desk, "x", n)
        for _ in range(20):
            await desk.say()
        texts, kept = "", 0
        while kept < 40:
            row = await slow.next()
            if row.type == "run.delta":
                texts += json.loads(row.data)["text"]
            else:
                kept += 1
        while len(texts) < 3_000:
            texts += json.loads((await slow.until("run.delta")).data)["text"]
        assert len(texts) == 3_000


async def test_pings_come_while_nothing_happens(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        fanout = Fanout(desk.database, coalesce_s=0.04, ping_s=0.05)
        rows = fanout.follow(desk.user_id, None)
        reader = Reader(rows)
        assert [(await reader.next()).type for _ in range(3)] == ["ping"] * 3
        await rows.aclose()


async def test_following_ends_when_the_server_stops(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, following(desk) as reader:
        await reader.next()
        desk.fanout.shutdown()
        with pytest.raises(StopAsyncIteration):
            await reader.next()


# --- over HTTP ------------------------------------------------------------------------


@asynccontextmanager
async def sse(
    backend: Backend, headers: dict[str, str] | None = None, **params: Any
) -> AsyncGenerator[AsyncGenerator[dict[str, str]]]:
    async def read(lines: Any) -> AsyncGenerator[dict[str, str]]:
        event: dict[str, str] = {}
        async for line in lines:
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            else:
                yield event
                event = {}

    async with (
        backend.client() as client,
        client.stream("GET", "/v1/events", params=params, headers=headers or {}) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read(answer.aiter_lines())
        yield events
        await events.aclose()


async def test_server_sent_events_name_their_type_and_cursor(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, sse(backend) as stream:
        assert "retry" in await anext(stream)
        first = await anext(stream)
        assert (first["event"], first["id"]) == ("ping", "0")
        await backend.post()
        event = await anext(stream)
        shown = json.loads(event["data"])
        assert (event["event"], event["id"], shown["id"]) == ("message.created", "1", 1)
        assert shown["data"]["text"] == "fix it"


async def test_a_browser_resumes_by_its_last_event_id(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        await backend.post()
        async with sse(backend, {"Last-Event-ID": "1"}, after=0) as stream:
            await anext(stream)
            assert [(await anext(stream))["id"] for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("after", ["-1", "x", str(2**60)])
async def test_a_cursor_that_is_none_is_refused(tmp_path: Path, after: str) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        answer = await client.get("/v1/events", params={"after": after})
        assert answer.status_code == 422


@asynccontextmanager
async def websocket(
    backend: Backend, query: str = "", headers: dict[str, str] | None = None
) -> AsyncGenerator[ClientConnection]:
    url = f"{backend.socket_url}/v1/events/ws{query}"
    given = backend.ana.bearer if headers is None else headers
    async with connect(url, additional_headers=given, close_timeout=1) as socket:
        yield socket


async def test_the_page_follows_by_websocket(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        await backend.post()
        async with websocket(backend, "?after=1") as socket:
            assert json.loads(await socket.recv())["type"] == "ping"
            event = json.loads(await socket.recv())
            assert (event["id"], event["type"]) == (2, "delivery.updated")
            await socket.send("whatever the page may say")
            await backend.post()
            assert json.loads(await socket.recv())["id"] == 3


async def test_a_cursor_of_thousands_of_digits_is_one_of_the_future(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        websocket(backend, f"?after={'9' * 5_000}") as socket,
    ):
        assert json.loads(await socket.recv())["type"] == "resync"


async def test_a_person_may_have_so_many_streams_open_and_no_more(tmp_path: Path) -> None:
    async with running_backend(tmp_path, followers_per_user=2) as backend:
        async with websocket(backend) as one, sse(backend) as two, backend.client() as client:
            await one.recv()
            assert "retry" in await anext(two)
            await anext(two)
            answer = await client.get("/v1/events")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            with pytest.raises(InvalidStatus) as refused:
                async with websocket(backend):
                    pass
            assert refused.value.response.status_code == 429
            other = await backend.person("bob")
            async with websocket(backend, headers=other.bearer) as somebody:
                await somebody.recv()
        with anyio.fail_after(5):
            while backend.world.fanout.following(backend.ana.user_id):
                await anyio.lowlevel.checkpoint()
        async with websocket(backend) as again:
            await again.recv()


async def test_text_streams_from_the_machine_to_the_page(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        connection(backend.socket_url, backend.ana.host.raw_key) as daemon,
    ):
        await daemon.greet()
        message = await backend.post()
        await daemon.deliver()
        run = Run(message)
        text = "Grüße 👋 from the machine"
        async with websocket(backend) as socket:
            await daemon.send(run.started())
            for n, letter in enumerate(text):
                piece = delta(letter, n).model_copy(
                    update={"run_id": run.id, "agent_id": backend.ana.agent.id}
                )
                await daemon.send(piece)
            await daemon.send(run.text(text))
            shown, kept = "", ""
            with anyio.fail_after(5):
                while not kept:
                    event = json.loads(await socket.recv())
                    if event["type"] == "run.delta":
                        assert event["data"]["offset"] == len(shown)
                        shown += event["data"]["text"]
                    if event["type"] == "run.event" and event["data"]["event"]["type"] == "text":
                        kept = event["data"]["event"]["text"]
            assert kept == text
            assert text.startswith(shown)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "file://",
        "http://evil.127.0.0.1",
        "http://127.0.0.1.evil.example",
    ],
)
async def test_a_page_of_another_site_follows_nothing(tmp_path: Path, origin: str) -> None:
    async with running_backend(tmp_path) as backend:
        headers = backend.ana.bearer | {"Origin": origin}
        with pytest.raises(InvalidStatus) as refused:
            async with websocket(backend, headers=headers):
                pass
        assert refused.value.response.status_code == 403


async def test_who_is_nobody_follows_nothing(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        with pytest.raises(InvalidStatus) as refused:
            async with websocket(backend, headers={}):
                pass
        assert refused.value.response.status_code == 401


async def test_a_stream_ends_when_its_token_is_revoked(tmp_path: Path) -> None:
    async with running_backend(tmp_path, ping_s=0.1) as backend, websocket(backend) as socket:
        await socket.recv()
        await backend.world.database.write(lambda c: c.execute("DELETE FROM tokens").rowcount)
        backend.world.authenticator.forget()
        assert await ScriptedDaemon(socket).closed() == CloseCode.UNAUTHORIZED
