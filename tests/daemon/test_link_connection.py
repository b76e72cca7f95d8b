"""One connection of the daemon, with the far end in the test's hand: what is said, when, how often."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TypeVar

import anyio
import pytest

from cloudagent_daemon.link.backoff import Backoff
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.transport import NotConnectedError
from cloudagent_protocol.frames import (
    Ack,
    Deliver,
    DeliveredMessage,
    Expect,
    Frame,
    Heartbeat,
    Hello,
    HostReport,
    ListMessages,
    Query,
    Welcome,
    decode,
    encode,
)
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    HostId,
    new_conversation_id,
    new_delivery_id,
    new_message_id,
)
from cloudagent_protocol.link import IN_FLIGHT
from cloudagent_protocol.resources import AgentSpec, Author, Runtime
from fakes.memory_transport import MemoryStream, MemoryTransport

F = TypeVar("F", bound=Frame)


@dataclass
class Far:
    """The backend's end of the connection, after the welcome."""

    stream: MemoryStream
    spool: Spool
    client: LinkClient

    async def say(self, *frames: Any) -> None:
        for frame in frames:
            await self.stream.send(encode(frame))

    async def hear(self, kind: type[F]) -> F:
        """The next frame but heartbeats, which is of this kind; or the next heartbeat."""
        with anyio.fail_after(10):
            while isinstance(frame := decode(await self.stream.receive()), Heartbeat):
                if isinstance(frame, kind):
                    return frame
        assert isinstance(frame, kind), frame
        return frame

    def bytes_come(self) -> None:
        """A part of a frame, as from a slow line."""
        assert self.stream.other
        self.stream.other.heard_at = time.monotonic()

    async def given_up(self) -> str:
        """Why the daemon gave the connection up."""
        with anyio.fail_after(10):
            while not self.client.standing.detail:
                await self.client.changed.wait()
        return self.client.standing.detail


@asynccontextmanager
async def linked(reports: int = 0, **changes: float) -> AsyncGenerator[Far]:
    """A connection with these intervals (`heartbeat_s`, ...), and so many reports to be sent."""
    transport = MemoryTransport()

    async def hello() -> Hello:
        return Hello(
            protocol=[1],
            daemon_version="0",
            instance_id="i1",
            profile="default",
            os="linux",
            hostname="mbp",
        )

    intervals: dict[str, Any] = {"heartbeat_s": 30.0, "silence_s": 60.0, **changes}
    welcome = Welcome(
        protocol=1,
        session_id="s1",
        epoch="ep_1",
        host_id=HostId("host_1"),
        last_seq=0,
        window=32,
        **intervals,
    )
    async with open_spool(None) as spool, anyio.create_task_group() as tasks:
        for number in range(reports):
            await spool.append(HostReport(runtimes=[Runtime(name=f"{number}")]))
        never = Backoff(lambda _, high: 600.0)
        client = LinkClient(transport, spool, hello, Heartbeat, backoff=never)
        tasks.start_soon(client.run)
        with anyio.fail_after(10):
            stream = await transport.accept()
            await stream.receive()
            await stream.send(encode(welcome))
        yield Far(stream, spool, client)
        tasks.cancel_scope.cancel()
    transport.close()


def delivery(seq: int) -> Deliver:
    return Deliver(
        seq=seq,
        delivery_id=new_delivery_id(),
        delivery_seq=seq,
        agent=AgentSpec(id=AgentId("agent_1"), name="Ada", driver="scripted"),
        message=DeliveredMessage(
            id=new_message_id(),
            conversation_id=new_conversation_id(),
            author=Author(type="user", id="usr_1", name="Ana"),
            text="hello",
            created_at=datetime.now(UTC),
        ),
    )


async def test_a_delivery_that_comes_again_is_acknowledged_again_and_kept_once() -> None:
    async with linked() as far:
        first = delivery(1)
        for _ in range(2):
            await far.say(first)
            assert (await far.hear(Ack)).seq == 1
        await far.say(delivery(2))
        assert (await far.hear(Ack)).seq == 2
        assert len(await far.spool.changes_after(0)) == 2


async def test_a_delivery_is_kept_as_it_came_with_what_only_a_newer_daemon_knows() -> None:
    async with linked() as far:
        came = encode(delivery(1))[:-1] + ',"newer":NaN}'
        await far.stream.send(came)
        assert (await far.hear(Ack)).seq == 1
        kept = "SELECT frame FROM inbox"
        [(text,)] = await far.spool._committer.do(lambda c: c.execute(kept).fetchall())
        assert text == came


async def test_where_a_person_looks_is_of_interest_and_where_they_looked_before_is_not() -> None:
    async with linked() as far:
        agent = AgentSpec(id=AgentId("agent_1"), name="Ada", driver="scripted")
        looked_at = [Expect(agent=agent, conversation_id=new_conversation_id()) for _ in range(3)]
        await far.say(*looked_at[:2])
        await far.say(delivery(1))
        await far.hear(Ack)  # it was no numbered frame
        with anyio.fail_after(10):
            assert await far.client.commands.expected() == looked_at[1]
            await far.say(looked_at[2])
            assert await far.client.commands.expected() == looked_at[2]


async def test_a_report_without_an_ack_is_sent_again_each_time_after_twice_as_long() -> None:
    # Looked at with each heartbeat, at the latest.
    async with linked(reports=2, heartbeat_s=0.02, lease_s=0.1) as far:
        came = [(await far.hear(HostReport)).seq, (await far.hear(HostReport)).seq]
        times: list[float] = []
        for _ in range(4):
            came.append((await far.hear(HostReport)).seq)
            times.append(time.monotonic())
        assert came == [1, 2, 1, 1, 1, 1]
        waits = [later - earlier for earlier, later in pairwise(times)]
        assert all(wait >= least * 0.9 for wait, least in zip(waits, (0.2, 0.4, 0.8), strict=True))


async def test_what_was_acknowledged_at_once_is_forgotten_at_once() -> None:
    async with linked(reports=5) as far:
        for _ in range(5):
            await far.hear(HostReport)
        await far.say(*(Ack(seq=seq) for seq in range(1, 6)))
        with anyio.fail_after(10):
            await far.client.flush()
        assert await far.spool.frames_after(0, 10) == []


async def test_a_full_flight_rests_and_an_ack_of_one_makes_room_for_one() -> None:
    async with linked(reports=IN_FLIGHT + 10) as far:
        for seq in range(1, IN_FLIGHT + 1):
            assert (await far.hear(HostReport)).seq == seq
        for seq in range(1, 4):
            await far.say(Ack(seq=seq))
            assert (await far.hear(HostReport)).seq == IN_FLIGHT + seq
            # Nothing but that: what is heard next is the answer to this.
            await far.say(delivery(seq))
            assert (await far.hear(Ack)).seq == seq


async def test_bytes_of_a_frame_that_is_not_whole_yet_are_a_sign_of_life() -> None:
    async with linked(heartbeat_s=0.1, silence_s=0.5) as far:
        for _ in range(10):
            await far.hear(Heartbeat)
            far.bytes_come()
        assert far.client.standing.state == "connected"
        assert "nothing heard for 0.5 s" in await far.given_up()


@pytest.mark.parametrize("lease_s", [0.05, 60.0])
async def test_silence_is_noticed_though_the_network_takes_nothing_either(lease_s: float) -> None:
    # More reports than the transport takes without being read; what is said then, or said again, waits.
    async with linked(reports=150, heartbeat_s=0.2, silence_s=1.5, lease_s=lease_s) as far:
        assert "nothing heard" in await far.given_up()


async def test_a_question_on_a_link_that_breaks_is_over_at_once() -> None:
    query = ListMessages(agent_id=AgentId("agent_1"), conversation_id=ConversationId("conv_1"))
    async with linked() as far, anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            while far.client.connection is None:
                await far.client.changed.wait()

        async def ask() -> None:
            # The answer's own deadline is later.
            with anyio.fail_after(5), pytest.raises(NotConnectedError):
                await far.client.ask(query)

        tasks.start_soon(ask)
        await far.hear(Query)
        await far.stream.close(1012, "restart")
