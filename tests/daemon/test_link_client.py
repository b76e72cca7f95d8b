"""The daemon's end of the link against a scripted backend: real sockets, a real spool."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon.link.backoff import Backoff
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.transport import NotConnectedError
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_daemon.rounds import Rounds
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import (
    AgentsChanged,
    Delta,
    Heartbeat,
    Hello,
    HostReport,
    ListMessages,
    LiveRun,
    RunReport,
    UnknownFrame,
    Welcome,
)
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, RunId
from cloudagent_protocol.resources import AgentRef, Hold, Runtime
from fakes.backend import KEY, ScriptedBackend, scripted_backend


@dataclass
class Daemon:
    client: LinkClient
    spool: Spool
    waits: list[float]

    async def until(self, state: str) -> None:
        with anyio.fail_after(10):
            while self.client.standing.state != state:
                await self.client.changed.wait()

    async def received(self, count: int) -> list[str]:
        with anyio.fail_after(10):
            await self.spool.changed_beyond(count - 1)
        return [change.delivery_id for change in await self.spool.changes_after(0)]


@asynccontextmanager
async def daemon(
    backend: ScriptedBackend,
    *,
    path: Path | None = None,
    running: tuple[LiveRun, ...] = (),
    holds: list[Hold] | None = None,
    wall: Callable[[], float] = time.time,
    wait_s: float = 0.0,
    key: str = KEY,
) -> AsyncGenerator[Daemon]:
    waits: list[float] = []

    def spread(_: float, high: float) -> float:
        waits.append(high)
        return wait_s

    rounds = Rounds(0.02)
    async with open_spool(path) as spool, anyio.create_task_group() as tasks:

        async def hello() -> Hello:
            marks = spool.marks
            return Hello(
                protocol=[1],
                daemon_version="0.3.0",
                instance_id="i1",
                profile="default",
                os="linux",
                hostname="mbp",
                epoch=marks.epoch,
                last_seq=marks.accepted,
                unfinished=await spool.held(),
                holds=list(holds or ()),
            )

        client = LinkClient(
            WebSocketTransport(Way(backend.url), always(key)),
            spool,
            hello,
            lambda: Heartbeat(running=list(running), holds=list(holds or ())),
            backoff=Backoff(spread),
            wall=wall,
            rounds=rounds,
        )
        tasks.start_soon(rounds.run)
        tasks.start_soon(client.run)
        yield Daemon(client, spool, waits)
        tasks.cancel_scope.cancel()


def ending(delivery_id: DeliveryId) -> RunReport:
    return RunReport(
        run_id=RunId("run_1"),
        agent_id=AgentId("agent_1"),
        conversation_id=ConversationId("conv_1"),
        delivery_ids=[delivery_id],
        event=Finished(seq=1, at=datetime.now(UTC), outcome=Outcome.REPLIED),
    )


def report(name: str) -> HostReport:
    return HostReport(runtimes=[Runtime(name=name)])


async def names(backend: ScriptedBackend, count: int) -> list[str]:
    await backend.reported(HostReport, count)
    return [frame.runtimes[0].name for frame in backend.all(HostReport)]


async def test_the_key_goes_in_the_header_and_the_hello_comes_first() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        connection = await backend.connected()
        assert connection.hello.hostname == "mbp"
        assert backend.headers[0]["Authorization"] == f"Bearer {KEY}"
        await d.until("connected")


async def test_a_delivery_is_on_the_disk_before_it_is_acknowledged() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        sent = backend.deliver()
        await backend.until(lambda: backend.acked == 1)
        assert d.spool.marks.accepted == 1
        assert await d.received(1) == [sent.delivery_id]


async def test_a_report_that_is_not_acknowledged_on_a_link_that_lives_is_sent_again() -> None:
    backend = ScriptedBackend()
    backend.heartbeat_s, backend.lease_s, backend.acks = 0.1, 0.3, False
    async with scripted_backend(backend), daemon(backend) as d:
        await backend.connected()
        await d.spool.append(report("one"))
        await d.spool.append(report("two"))
        await backend.until(lambda: backend.repeats == 2)
        assert await names(backend, 2) == ["one", "two"]
        # Said once more: an ack of both came only now.
        backend.acks = True
        await backend.until(lambda: backend.accepted > 0)
        with anyio.fail_after(10):
            await d.spool.acked_beyond(backend.accepted - 1)
        assert len(backend.connections) == 1


async def test_reports_are_kept_until_acknowledged_and_sent_again_after_a_cut() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        backend.acks = False
        connection = await backend.connected()
        await d.spool.append(report("a"))
        await d.spool.append(report("b"))
        await backend.reported(HostReport, 2)
        connection.cut()
        backend.acks, backend.frames = True, []
        await backend.connected(2)
        assert await names(backend, 2) == ["a", "b"]
        with anyio.fail_after(5):
            await d.client.flush()
        assert await d.spool.frames_after(0, 10) == []


async def test_deliveries_are_sent_again_after_a_cut_but_kept_once() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        first = backend.deliver()
        await d.received(1)
        (await backend.connected()).cut()
        second = backend.deliver()
        assert await d.received(2) == [first.delivery_id, second.delivery_id]
        assert (await backend.connected(2)).hello.last_seq == 1


async def test_what_a_full_disk_does_not_take_waits_unacknowledged_on_a_link_that_stays(
    tmp_path: Path,
) -> None:
    async with (
        scripted_backend() as backend,
        daemon(backend, path=tmp_path / "state.db") as d,
    ):
        await backend.connected()
        await d.until("connected")
        await d.spool._committer.do(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
        backend.deliver("x" * 100_000)
        # The Keeper's second attempt comes a second after the first: all was tried by then.
        with anyio.fail_after(10):
            while not d.client._keeper._refused:
                await anyio.lowlevel.checkpoint()
        assert (backend.acked, len(backend.connections)) == (0, 1)
        await d.spool._committer.do(
            lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone()
        )
        assert len(await d.received(1)) == 1
        await backend.until(lambda: backend.acked == 1)
        assert len(backend.connections) == 1


async def test_a_restart_resumes_where_the_disk_stands(tmp_path: Path) -> None:
    async with scripted_backend() as backend:
        async with daemon(backend, path=tmp_path / "state.db") as d:
            backend.deliver()
            await d.received(1)
        async with daemon(backend, path=tmp_path / "state.db") as d:
            hello = (await backend.connected(2)).hello
            assert (hello.epoch, hello.last_seq, len(hello.unfinished)) == (backend.epoch, 1, 1)


async def test_a_backend_with_another_history_is_told_everything_anew() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await d.until("connected")
        await d.spool.append(report("old"))
        with anyio.fail_after(5):
            await backend.reported(HostReport)
            await d.client.flush()
        backend.acks = False
        await d.spool.append(report("new"))
        await names(backend, 2)
        sent = backend.deliver()
        await d.received(1)
        backend.restore_from_backup()
        backend.acks, backend.frames = True, []
        (await backend.connected()).cut()
        assert await names(backend, 1) == ["new"]
        assert backend.frames[0].seq == 1  # type: ignore[union-attr]
        await backend.until(lambda: len(backend.connections) == 2)
        assert backend.connections[1].hello.unfinished == [sent.delivery_id]
        assert d.spool.marks.epoch == backend.epoch


async def test_a_backend_that_forgot_what_it_had_gets_a_new_epoch() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await d.until("connected")
        await d.spool.append(report("a"))
        await backend.reported(HostReport)
        with anyio.fail_after(5):
            await d.client.flush()
        before, backend.accepted = backend.epoch, 0
        (await backend.connected()).cut()
        await backend.until(lambda: backend.epoch != before)
        await d.until("connected")
        await d.spool.append(report("b"))
        assert await names(backend, 2) == ["a", "b"]


async def test_what_the_backend_drops_is_forgotten() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        sent = backend.deliver()
        await d.received(1)
        backend.edit_welcome = lambda welcome: welcome.model_copy(
            update={"drop": [sent.delivery_id]}
        )
        (await backend.connected()).cut()
        with anyio.fail_after(5):
            await d.spool.changed_beyond(1)
        assert [change.waiting for change in await d.spool.changes_after(1)] == [None]


async def test_no_more_than_the_flight_is_under_way() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        backend.acks = False
        await d.until("connected")
        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(d.spool.append, report(str(number)))
        await backend.reported(HostReport, 256)
        (await backend.connected()).cut()
        backend.acks, backend.frames = True, []
        assert len(set(await names(backend, 300))) == 300


async def test_a_dead_connection_is_noticed_and_made_anew() -> None:
    backend = ScriptedBackend()
    backend.heartbeat_s, backend.silence_s = 0.05, 0.3
    async with scripted_backend(backend), daemon(backend) as d:
        connection = await backend.connected()
        backend.silent = True
        await backend.connected(2)
        assert connection.close_code == CloseCode.HEARTBEAT_MISSED
        backend.silent = False
        await d.until("connected")


async def test_heartbeats_go_out_in_silence_and_name_the_live_runs() -> None:
    backend = ScriptedBackend()
    backend.heartbeat_s, backend.silence_s = 0.05, 5.0
    live = LiveRun(run_id=RunId("run_1"), delivery_ids=[DeliveryId("dlv_1")])
    async with scripted_backend(backend), daemon(backend, running=(live,)):
        assert (await backend.reported(Heartbeat, 2)).running == [live]


async def test_what_holds_a_machine_back_is_said_at_once_and_in_the_next_hello() -> None:
    holds: list[Hold] = []
    low = Hold(reason="disk_low", detail="3 MB are free")
    async with scripted_backend() as backend, daemon(backend, holds=holds) as d:
        connection = await backend.connected()
        holds.append(low)
        d.client.beat()
        assert (await backend.reported(Heartbeat)).holds == [low]
        connection.cut()
        assert (await backend.connected(2)).hello.holds == [low]


async def test_what_changes_during_the_handshake_is_said_after_it() -> None:
    holds: list[Hold] = []
    backend = ScriptedBackend()

    def change(welcome: Welcome) -> Welcome:
        holds.append(Hold(reason="memory_low", detail="3 MB are available"))
        return welcome

    backend.edit_welcome = change
    async with scripted_backend(backend), daemon(backend, holds=holds):
        assert (await backend.reported(Heartbeat)).holds == holds


@pytest.mark.parametrize("code", [CloseCode.REVOKED, CloseCode.UNAUTHORIZED])
async def test_a_revoked_key_leaves_the_daemon_up_and_unauthorized(code: CloseCode) -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await (await backend.connected()).close(code, "revoked")
        await d.until("unauthorized")
        assert d.client.standing.next_at
        assert d.client.standing.next_at - time.time() > 290


async def test_a_key_that_is_not_accepted_at_the_upgrade_is_unauthorized() -> None:
    async with scripted_backend() as backend, daemon(backend, key="sk_machine_wrong") as d:
        await d.until("unauthorized")
        assert "no such key" in d.client.standing.detail


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((200, "text/html", "<html>Please log in</html>"), "web page"),
        ((502, "text/plain", "bad gateway"), "502"),
        ((404, "application/json", "{}"), "404"),
    ],
)
async def test_answers_that_are_no_backends_are_named(
    refusal: tuple[int, str, str], said: str
) -> None:
    async with scripted_backend() as backend:
        backend.refusal = refusal
        async with daemon(backend, wait_s=0.01) as d:
            await backend.until(lambda: backend.attempts >= 2)
            assert said in d.client.standing.detail
            assert d.client.standing.state == "connecting"
            backend.refusal = None
            await d.until("connected")


async def test_a_backend_that_is_not_there_is_named_with_its_address() -> None:
    backend = ScriptedBackend()
    backend.url = "http://127.0.0.1:9"
    async with daemon(backend, wait_s=0.01) as d:
        with anyio.fail_after(10):
            while not d.client.standing.detail:
                await d.client.changed.wait()
        assert "127.0.0.1:9 cannot be reached" in d.client.standing.detail


async def test_superseded_daemons_do_not_fight() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        for number in range(1, 4):
            await (await backend.connected(number)).close(CloseCode.SUPERSEDED)
        await backend.connected(4)
        assert d.waits[:3] == [0.5, 1.0, 2.0]


async def test_it_knows_that_another_daemon_has_the_host_until_it_is_connected_again() -> None:
    async with scripted_backend() as backend, daemon(backend, wait_s=0.2) as d:
        await (await backend.connected()).close(CloseCode.SUPERSEDED)
        with anyio.fail_after(10):
            while not d.client.superseded:
                await d.client.changed.wait()
            while d.client.superseded:
                await d.client.changed.wait()
        assert d.client.standing.state == "connected"


async def test_after_sleep_it_connects_at_once() -> None:
    jump = 0.0

    def wall() -> float:
        return time.time() + jump

    async with scripted_backend() as backend, daemon(backend, wall=wall, wait_s=60) as d:
        await (await backend.connected()).close(CloseCode.GOING_AWAY)
        await d.until("connecting")
        jump = 3600.0
        await backend.connected(2)
        jump = 7200.0
        await backend.connected(3)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"type": "deliver"}',
        '{"type": "deliver", "seq": 99, "delivery_id": "d"}',
        '{"type": "welcome"}',
        '{"type": "ack", "seq": 7}',
        '{"type": "hello"}',
    ],
)
async def test_a_bad_frame_ends_the_connection_and_nothing_else(text: str) -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        connection = await backend.connected()
        await connection.say(text)
        await backend.connected(2)
        assert connection.close_code == CloseCode.BAD_FRAME
        backend.deliver()
        await d.received(1)


async def test_a_frame_of_a_newer_backend_is_acknowledged_and_ignored() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        connection = await backend.connected()
        await connection.say('{"type": "party", "at": "noon"}')
        await connection.say('{"type": "weather", "seq": 1}')
        connection.link.sent = 1
        with anyio.fail_after(5):
            while d.spool.marks.accepted < 1:
                await d.spool.committed.wait()
        assert backend.all(UnknownFrame) == []
        assert len(backend.connections) == 1


async def test_an_oversize_frame_ends_the_connection() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await (await backend.connected()).say("x" * 1_100_000)
        await backend.connected(2)
        await d.until("connected")


async def test_text_goes_out_joined_and_whole_again_after_a_cut() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await d.until("connected")
        for offset, text in enumerate("Hello"):
            d.client.deltas.add(
                Delta(
                    run_id=RunId("run_1"),
                    agent_id=AgentId("agent_1"),
                    conversation_id=ConversationId("conv_1"),
                    block=0,
                    offset=offset,
                    text=text,
                )
            )
        delta = await backend.reported(Delta)
        assert (delta.offset, delta.text) == (0, "Hello")
        (await backend.connected()).cut()
        assert (await backend.reported(Delta, 2)).text == "Hello"


async def test_a_question_is_answered_on_its_connection() -> None:
    query = ListMessages(agent_id=AgentId("agent_1"), conversation_id=ConversationId("conv_1"))
    async with scripted_backend() as backend, daemon(backend) as d:
        await d.until("connected")
        backend.messages = [{"id": "msg_1"}]
        assert await d.client.ask(query) == {"messages": [{"id": "msg_1"}]}
        backend.refusal = (502, "text/plain", "")
        (await backend.connected()).cut()
        await d.until("connecting")
        with pytest.raises(NotConnectedError, match="not connected"):
            await d.client.ask(query)


async def test_changed_agents_are_known_at_once() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        await d.until("connected")
        bob = AgentRef(id=AgentId("agent_2"), name="Bob", driver="scripted")
        backend.put(AgentsChanged(agents=[bob]))
        await backend.until(lambda: backend.acked == 1)
        with anyio.fail_after(5):
            while d.client.connection is None or d.client.connection.agents != [bob]:
                await d.client.changed.wait()


async def test_a_run_ended_while_the_link_was_down_is_told_later() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        sent = backend.deliver()
        await d.received(1)
        backend.refusal = (502, "text/plain", "")
        (await backend.connected()).cut()
        await d.spool.finish(ending(sent.delivery_id))
        backend.refusal = None
        assert (await backend.reported(RunReport)).delivery_ids == [sent.delivery_id]


async def test_a_numbered_frame_without_its_number_is_not_taken_for_a_duplicate() -> None:
    async with scripted_backend() as backend, daemon(backend) as d:
        connection = await backend.connected()
        frame = AgentsChanged(agents=[]).model_dump_json(exclude={"seq"})
        await connection.say(frame)
        with anyio.fail_after(5):
            while "without its number" not in d.client.standing.detail:
                await d.client.changed.wait()
