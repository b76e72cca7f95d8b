"""The daemons' endpoint over real sockets, with a scripted daemon at the other end."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from typing_extensions import override
from websockets.exceptions import InvalidStatus

from cloudagent_backend.api.connection import Bells, Connection
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import outbox
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.frames import (
    MAX_FRAME_BYTES,
    Ack,
    AgentsChanged,
    Answer,
    Deliver,
    Heartbeat,
    HostReport,
    Interrupt,
    ListMessages,
    Query,
    UnknownFrame,
)
from cloudagent_protocol.link import Link
from cloudagent_protocol.resources import Message, Trace
from fakes.daemon import ScriptedDaemon, connection
from fakes.desk import Run, hello
from fakes.server import Backend, running_backend


async def trace(backend: Backend, message: Message) -> Any:
    async with backend.client() as client:
        answer = await client.get(f"/v1/messages/{message.id}/trace")
        return Trace.model_validate_json(answer.content).deliveries[0]


async def rungs(backend: Backend, message: Message) -> list[str]:
    return [str(rung.rung) for rung in (await trace(backend, message)).rungs]


def link_of(backend: Backend, **more: Any) -> Any:
    return connection(backend.socket_url, backend.ana.host.raw_key, **more)


@asynccontextmanager
async def greeted(
    directory: Path, **settings: Any
) -> AsyncGenerator[tuple[Backend, ScriptedDaemon]]:
    """A backend, and the machine's daemon after its welcome."""
    async with running_backend(directory, **settings) as backend, link_of(backend) as daemon:
        await daemon.greet()
        yield backend, daemon


async def host_state(backend: Backend) -> str:
    row = await backend.world.database.read(
        lambda c: c.execute("SELECT state FROM host_machines").fetchone()
    )
    return row[0]


async def test_a_message_goes_to_the_machine_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, link_of(backend) as daemon:
        welcome = await daemon.greet()
        assert [agent.name for agent in welcome.agents] == ["frontend"]
        assert await host_state(backend) == "online"
        message = await backend.post()
        frame = await daemon.deliver()
        assert frame.message.text == "fix it"
        run = Run(message)
        await daemon.send(run.started(), run.ready(), run.text("On it."), run.send("Fixed."))
        await daemon.send(run.finished())
        await daemon.settle()
        delivery = await trace(backend, message)
        assert (delivery.state, delivery.outcome, delivery.run_id) == ("done", "replied", run.id)
        expected = ["stored", "sent", "received", "started", "ready", "seen", "replied"]
        assert [rung.rung for rung in delivery.rungs] == expected
        async with backend.client() as client:
            answer = await client.get(f"/v1/conversations/{message.conversation_id}/messages")
            assert [m["text"] for m in answer.json()["data"]] == ["fix it", "Fixed."]


async def test_what_was_queued_while_the_machine_was_away_is_delivered_in_order(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        sent = [await backend.post(f"{n}") for n in range(5)]
        assert (await trace(backend, sent[0])).reason == "host_offline"
        async with link_of(backend) as daemon:
            await daemon.greet()
            got = [(await daemon.deliver()).message.text for _ in sent]
            assert got == ["0", "1", "2", "3", "4"]


async def test_more_frames_than_one_look_into_the_store_gives_are_all_sent(tmp_path: Path) -> None:
    async with running_backend(tmp_path, window=100) as backend:
        async with backend.client() as client:
            for number in range(70):
                path = f"/v1/agents/{backend.ana.agent.id}/messages"
                await client.post(path, json={"text": f"{number}"})
        async with link_of(backend) as daemon:
            await daemon.greet()
            got = [(await daemon.expect(Deliver)).message.text for _ in range(70)]
            assert got == [f"{number}" for number in range(70)]


async def test_an_unacknowledged_frame_is_sent_again_and_an_acknowledged_one_is_not(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            await backend.post("one")
            await daemon.deliver()
            await backend.post("two")
            second = await daemon.expect(Deliver)
        async with link_of(backend) as daemon:
            assert (await daemon.greet(epoch=epoch, last_seq=1)).epoch == epoch
            assert await daemon.expect(Deliver) == second


async def test_what_the_daemon_sends_twice_across_a_reconnect_is_kept_once(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            message = await backend.post()
            await daemon.deliver()
            run = Run(message)
            started, reply = run.started(), run.send("Fixed.")
            await daemon.send(started, reply)
            await daemon.settle()
        async with link_of(backend) as daemon:
            held = [message.deliveries[0].id]
            assert (await daemon.greet(epoch=epoch, last_seq=1, unfinished=held)).last_seq == 2
            daemon.seq = 0
            await daemon.send(started, reply, run.finished())
            await daemon.settle()
        async with backend.client() as client:
            answer = await client.get(f"/v1/runs/{run.id}/events")
            assert [event["seq"] for event in answer.json()["data"]] == [1, 2]
            answer = await client.get(f"/v1/conversations/{message.conversation_id}/messages")
            assert len(answer.json()["data"]) == 2


async def test_a_daemon_without_a_history_gets_a_new_epoch_and_its_messages_again(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            held, lost = await backend.post("held"), await backend.post("lost")
            idle = await backend.post("not begun")
            for _ in range(3):
                await daemon.deliver()
            await daemon.send(Run(lost).started())
            await daemon.settle()
            rungs_before = await rungs(backend, idle)
        async with link_of(backend) as daemon:
            unfinished = [held.deliveries[0].id, "dlv_unknown"]
            welcome = await daemon.greet(unfinished=unfinished)
            assert welcome.epoch != epoch
            assert (welcome.last_seq, welcome.drop) == (0, ["dlv_unknown"])
            frame = await daemon.deliver()
            assert (frame.seq, frame.message.id, frame.delivery_seq) == (1, lost.id, 2)
            assert "interrupted" in await rungs(backend, lost)
            # Nothing was cut off where nothing had begun; that it is sent again is told.
            assert (await daemon.deliver()).message.id == idle.id
            told = await rungs(backend, idle)
            assert told.count("waiting") == 1 + rungs_before.count("waiting")
            assert "interrupted" not in told
            # What is told by the backend is not told again by the machine that goes on.
            await daemon.send(Run(lost).started(attempt=2))
            await daemon.settle()
            assert (await rungs(backend, lost)).count("interrupted") == 1
            assert (await trace(backend, held)).state == "received"


async def test_what_a_machine_took_in_and_does_not_list_when_it_is_back_is_offered_again(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            held, lost = await backend.post("held"), await backend.post("lost")
            for _ in range(2):
                await daemon.deliver()
            await daemon.send(HostReport(runtimes=[]))
            await daemon.settle()
        for _ in range(2):  # once, however often it comes back before it has it
            async with link_of(backend) as daemon:
                known = {"epoch": epoch, "last_seq": 2, "unfinished": [held.deliveries[0].id]}
                assert (await daemon.greet(**known)).epoch == epoch
                again = await daemon.expect(Deliver)
                assert (again.seq, again.message.id) == (3, lost.id)
        assert (await trace(backend, lost)).rungs[-1].reason == "unlisted"
        assert (await rungs(backend, held))[-1] == "received"


async def test_numbers_that_were_never_sent_begin_a_new_epoch(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
        async with link_of(backend) as daemon:
            assert (await daemon.greet(epoch=epoch, last_seq=7)).epoch != epoch


async def test_an_interrupt_survives_a_new_epoch(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        async with link_of(backend) as daemon:
            await daemon.greet()
            message = await backend.post()
            await daemon.deliver()
            await daemon.send(Run(message).started())
            await daemon.settle()
        assert (await client.delete(f"/v1/messages/{message.id}")).status_code == 200
        async with link_of(backend) as daemon:
            await daemon.greet(unfinished=[message.deliveries[0].id])
            assert (await daemon.expect(Interrupt)).delivery_id == message.deliveries[0].id


async def test_a_finished_delivery_is_dropped_by_the_welcome(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            message = await backend.post()
            await daemon.deliver()
            await daemon.send(Run(message).finished(Outcome.FAILED, reason=Reason.CRASHED))
            await daemon.settle()
        async with link_of(backend) as daemon:
            held = message.deliveries[0].id
            assert (await daemon.greet(epoch=epoch, last_seq=1, unfinished=[held])).drop == [held]


async def test_a_frame_that_is_not_acknowledged_on_a_link_that_lives_is_sent_again(
    tmp_path: Path,
) -> None:
    fast = {"heartbeat_s": 0.1, "lease_s": 0.3}
    async with greeted(tmp_path, **fast) as (backend, daemon):
        message = await backend.post()
        first = await daemon.expect(Deliver)
        assert await daemon.deliver() == first
        await daemon.send(HostReport(runtimes=[]))
        await daemon.settle()
        assert (await trace(backend, message)).state == "received"


async def test_only_the_oldest_frame_is_sent_again_and_none_that_is_acknowledged(
    tmp_path: Path,
) -> None:
    fast = {"heartbeat_s": 0.1, "lease_s": 0.3}
    async with greeted(tmp_path, **fast) as (backend, daemon):
        await backend.post("one")
        await daemon.deliver()
        await backend.post("two")
        await backend.post("three")
        # Until the second is acknowledged it is the only one that comes again.
        came = [(await daemon.expect(Deliver)).seq for _ in range(5)]
        assert (came.count(2), came.count(3)) == (4, 1)
        assert (await daemon.deliver()).seq == 2
        while (again := (await daemon.deliver()).seq) == 2:
            pass  # it was under way already when its ack came
        assert again == 3


async def test_the_newest_connection_wins(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, link_of(backend) as older:
        await older.greet()
        async with link_of(backend) as newer:
            await newer.greet()
            assert await older.closed() == CloseCode.SUPERSEDED
            await backend.post()
            await newer.deliver()
            assert await host_state(backend) == "online"


async def test_of_two_daemons_with_one_key_the_older_cannot_take_the_host_back(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, link_of(backend) as older:
        await older.greet(instance_id="older")
        async with link_of(backend) as newer:
            await newer.greet(instance_id="newer")
            assert await older.closed() == CloseCode.SUPERSEDED
            async with link_of(backend) as again:
                await again.socket.send(hello(instance_id="older").model_dump_json())
                assert await again.closed() == CloseCode.SUPERSEDED
            await backend.post()
            await newer.deliver()
        await wait_for_state(backend, "offline")
        async with link_of(backend) as again:
            await again.greet(instance_id="older")
            assert await host_state(backend) == "online"


async def test_a_daemon_that_connects_anew_takes_the_place_of_its_own_dead_connection(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, link_of(backend) as dead:
        await dead.greet(instance_id="one")
        for _ in range(2):
            async with link_of(backend) as again:
                await again.greet(instance_id="one")
                await backend.post()
                await again.deliver()


async def test_a_revoked_key_closes_its_connection(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        backend.world.hub.disconnect(backend.ana.host.id, CloseCode.REVOKED)
        assert await daemon.closed() == CloseCode.REVOKED
        await wait_for_state(backend, "offline")


async def wait_for_state(backend: Backend, state: str) -> None:
    """Follow the person's events until the host is said to be in this state."""
    with anyio.fail_after(5):
        async for row in backend.world.fanout.follow(backend.ana.user_id, 0):
            if row.type == "host.updated" and json.loads(row.data)["state"] == state:
                return


async def test_a_restart_closes_connections_as_one(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        backend.world.hub.shutdown()
        assert await daemon.closed() == CloseCode.RESTART


BAD = {
    "not JSON": ("{", CloseCode.BAD_FRAME),
    "an array": ("[1]", CloseCode.BAD_FRAME),
    "no type": ({"seq": 1}, CloseCode.BAD_FRAME),
    "binary": (b"{}", CloseCode.BAD_FRAME),
    "nested too deeply": ('{"type":"x","y":' + "[" * 100_000, CloseCode.BAD_FRAME),
    "a field missing": ({"type": "send", "seq": 1}, CloseCode.BAD_FRAME),
    "a backend's frame": (
        {"type": "deliver", "seq": 1},
        CloseCode.BAD_FRAME,
    ),
    "a second hello": (hello().model_dump_json(), CloseCode.BAD_FRAME),
    "a gap": ({"type": "host_report", "seq": 2, "runtimes": []}, CloseCode.BAD_FRAME),
    "no number": ({"type": "host_report", "runtimes": []}, CloseCode.BAD_FRAME),
    "an ack of nothing": ({"type": "ack", "seq": 9}, CloseCode.BAD_FRAME),
    "too large": ("x" * (MAX_FRAME_BYTES + 1), 1009),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_frame_closes_and_nothing_else_happens(tmp_path: Path, case: str) -> None:
    data, code = BAD[case]
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            await daemon.send_raw(data)
            assert await daemon.closed() == code
        async with link_of(backend) as daemon:
            assert (await daemon.greet(epoch=epoch)).last_seq == 0


async def test_an_event_nested_too_deeply_to_keep_is_refused(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        message = await backend.post()
        await daemon.deliver()
        frame = json.loads(Run(message).text("x").model_dump_json())
        deep: Any = []
        for _ in range(600):
            deep = [deep]
        frame |= {"seq": 1}
        frame["event"] |= {"type": "tool_call", "tool_call_id": "t", "name": "n"}
        frame["event"]["input"] = {"x": deep}
        await daemon.send_raw(frame)
        assert await daemon.closed() == CloseCode.BAD_FRAME


async def test_a_frame_about_another_hosts_agent_closes_and_stores_nothing(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        bob = await backend.person("bob")
        foreign = await backend.post(person=bob)
        await daemon.send(Run(foreign).send("I am your agent."))
        assert await daemon.closed() == CloseCode.BAD_FRAME
        async with backend.client(bob) as client:
            answer = await client.get(f"/v1/conversations/{foreign.conversation_id}/messages")
            assert len(answer.json()["data"]) == 1


async def test_what_came_before_a_bad_frame_is_kept_and_only_that_is_acknowledged(
    tmp_path: Path,
) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        foreign = await backend.post(person=await backend.person("bob"))
        bad = Run(foreign).send("I am your agent.")
        await daemon.send(HostReport(runtimes=[]), bad, HostReport(runtimes=[]))
        assert await daemon.closed() == CloseCode.BAD_FRAME
        assert daemon.acked == 1


async def test_a_number_of_an_unknown_frame_is_acknowledged(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (_, daemon):
        await daemon.send_raw({"type": "novelty", "seq": 1, "more": "of it"})
        assert (await daemon.expect(Ack)).seq == 1
        await daemon.send_raw({"type": "passing_novelty"})
        await daemon.send(UnknownFrame(type="novelty", seq=1))


async def test_the_first_frame_must_be_a_hello_in_time(tmp_path: Path) -> None:
    async with running_backend(tmp_path, hello_deadline_s=0.2) as backend:
        async with link_of(backend) as daemon:
            await daemon.send(Heartbeat())
            assert await daemon.closed() == CloseCode.BAD_FRAME
        async with link_of(backend) as daemon:
            assert await daemon.closed() == CloseCode.HEARTBEAT_MISSED


async def test_no_common_protocol_asks_for_an_upgrade(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, link_of(backend) as daemon:
        await daemon.send_raw(hello(protocol=[99]).model_dump_json())
        assert await daemon.closed() == CloseCode.UPGRADE_NEEDED


async def test_silence_is_noticed_and_heartbeats_break_it(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, heartbeat_s=0.1, silence_s=0.5) as backend,
        link_of(backend) as daemon,
    ):
        await daemon.greet()
        with anyio.fail_after(5):
            while '"heartbeat"' not in str(await daemon.socket.recv()):
                pass
        assert await daemon.closed() == CloseCode.HEARTBEAT_MISSED


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer sk_machine_wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_who_is_no_daemon_gets_no_socket(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with running_backend(tmp_path) as backend:
        with pytest.raises(InvalidStatus) as refused:
            async with link_of(backend, headers=headers):
                pass
        assert refused.value.response.status_code == status


async def test_a_persons_token_opens_no_machine_socket(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        with pytest.raises(InvalidStatus) as refused:
            async with connection(backend.socket_url, backend.ana.token):
                pass
        assert refused.value.response.status_code == 401


async def test_a_host_that_connects_too_often_waits(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        while backend.world.hub.admit(backend.ana.host.id, time.monotonic()):
            pass
        with pytest.raises(InvalidStatus) as refused:
            async with link_of(backend):
                pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "30"
        assert backend.world.hub.admit(backend.ana.host.id, time.monotonic() + 2)


async def test_an_agent_can_ask_what_was_said(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        message = await backend.post("one")
        await daemon.deliver()

        async def ask(**changes: Any) -> Answer:
            query = ListMessages(
                agent_id=backend.ana.agent.id, conversation_id=message.conversation_id
            )
            await daemon.send(Query(id=7, query=query.model_copy(update=changes)))
            return await daemon.expect(Answer)

        answer = await ask()
        assert answer.data is not None
        assert [one["text"] for one in answer.data["messages"]] == ["one"]
        assert (await ask(conversation_id="conv_other")).error


async def test_changed_agents_are_told_at_once(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        await backend.world.service.agents_changed(backend.ana.host.id)
        assert (await daemon.expect(AgentsChanged)).agents[0].name == "frontend"


async def test_a_restarted_backend_knows_what_it_had_sent(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        message = await backend.post()
        await daemon.expect(Deliver)
        # What a new process would find: the frame, still in the outbox, and a host that is away.
        await backend.world.service.start()
        rows = await backend.world.database.read(
            lambda c: outbox.after(c, backend.ana.host.id, 0, 10)
        )
        assert [row.delivery_id for row in rows] == [message.deliveries[0].id]
        assert await host_state(backend) == "offline"


async def test_many_frames_at_once_are_kept_in_order(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (backend, daemon):
        message = await backend.post()
        await daemon.deliver()
        run = Run(message)
        await daemon.send(run.started(), *(run.text(f"{n}", n) for n in range(200)))
        await daemon.send(run.finished())
        await daemon.settle()
        async with backend.client() as client:
            answer = await client.get(f"/v1/runs/{run.id}/events", params={"limit": 500})
            assert [e["seq"] for e in answer.json()["data"]] == list(range(1, 203))


async def test_a_peer_that_reads_nothing_is_let_go_all_the_same(tmp_path: Path) -> None:
    async with running_backend(tmp_path, heartbeat_s=0.2, silence_s=1.0) as backend:
        for _ in range(32):  # more than all buffers between the two can hold
            await backend.post("\x01" * 100_000)
        async with link_of(backend, max_queue=1) as daemon:
            await daemon.greet()
            await wait_for_state(backend, "online")
            with anyio.fail_after(8):
                await wait_for_state(backend, "offline")


async def test_what_came_before_a_newer_connection_is_not_applied_after_it(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        world, host = backend.world, backend.ana.host
        session = Session(host.id, "life-1")
        world.hub.attach(session)
        no_socket: Any = None  # it is not used
        link = Link(accepted=6, acked=0, now=0.0)
        machine = Machine(host.id, backend.ana.user_id, host.name)
        older = Connection(no_socket, session, machine, link, Bells(world.hub.hints))
        older.on_message(HostReport(seq=7, runtimes=[]).model_dump_json())
        async with link_of(backend) as newer:
            await newer.greet()
            assert older.take() == []


@asynccontextmanager
async def without(backend: Backend, table: str) -> AsyncGenerator[None]:
    """The store fails at whatever needs this table."""
    database = backend.world.database
    await database.write(lambda c: c.execute(f"ALTER TABLE {table} RENAME TO away"))
    yield
    await database.write(lambda c: c.execute(f"ALTER TABLE away RENAME TO {table}"))


@contextmanager
def logged(text: str) -> Generator[anyio.Event]:
    """An event that is set when the backend logs this."""
    said = anyio.Event()

    class Ear(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                said.set()

    ear, log = Ear(), logging.getLogger("cloudagent_backend")
    log.addHandler(ear)
    try:
        yield said
    finally:
        log.removeHandler(ear)


async def test_a_store_that_fails_costs_the_connections_it_fails_and_nothing_more(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path, heartbeat_s=0.1, lease_s=0.3) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            message = await backend.post("one")
            await daemon.deliver()
            async with without(backend, "runs"):
                await daemon.send(Run(message).started())
                assert await daemon.closed() == CloseCode.RESTART
        async with link_of(backend) as daemon:
            held = [message.deliveries[0].id]
            await daemon.greet(epoch=epoch, last_seq=1, unfinished=held)
            ask = ListMessages(
                agent_id=backend.ana.agent.id, conversation_id=message.conversation_id
            )
            async with without(backend, "messages"):
                await daemon.send(Query(id=7, query=ask))
                assert await daemon.closed() == CloseCode.RESTART
        two = await backend.post("two")
        async with link_of(backend) as daemon:
            await daemon.greet(epoch=epoch, last_seq=1, unfinished=held)
            first = await daemon.expect(Deliver)
            with logged("the outbox was not read") as said, anyio.fail_after(5):
                async with without(backend, "outbox"):
                    await said.wait()
            assert await daemon.deliver() == first
            await daemon.send(Run(two).started())
            await daemon.settle()
