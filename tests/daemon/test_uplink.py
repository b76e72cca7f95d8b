from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.spool import open_spool
from cloudagent_daemon.runs.ports import Launch
from cloudagent_daemon.runs.uplink import LiveRuns, SpoolUplink
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import Heartbeat, Hello, RunReport
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, RunId
from fakes.memory_transport import MemoryTransport


async def no_hello() -> Hello:
    raise AssertionError


def ending(detail: str = "") -> RunReport:
    event = Finished(seq=1, at=datetime.now(UTC), outcome=Outcome.REPLIED, detail=detail)
    return RunReport(
        run_id=RunId("run_1"),
        agent_id=AgentId("agent_1"),
        conversation_id=ConversationId("conv_1"),
        delivery_ids=[DeliveryId("dlv_1")],
        event=event,
    )


async def test_a_run_is_alive_from_its_launch_to_its_end() -> None:
    async with open_spool(None) as spool:
        transport, live = MemoryTransport(), LiveRuns()
        uplink = SpoolUplink(spool, LinkClient(transport, spool, no_hello, Heartbeat), live)
        await uplink.launched(Launch(RunId("run_1"), DeliveryId("dlv_1"), "l1", 42, 1.0, 1))
        assert [run.delivery_ids for run in live.all()] == [["dlv_1"]]
        await uplink.finish(ending())
        assert live.all() == []
        transport.close()


async def test_a_full_disk_delays_an_ending_but_does_not_lose_it(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        transport, live = MemoryTransport(), LiveRuns()
        uplink = SpoolUplink(spool, LinkClient(transport, spool, no_hello, Heartbeat), live)
        await spool._committer.do(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(uplink.finish, ending("x" * 100_000))
                assert await spool.changes_after(0) == [], "what reads is not disturbed"
                assert spool.marks.last == 0
                await spool._committer.do(
                    lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone()
                )
        assert spool.marks.last == 1
        transport.close()


async def test_it_is_full_when_too_much_waits_for_the_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloudagent_daemon.runs.uplink.UNSENT", 2)
    async with open_spool(None) as spool:
        transport = MemoryTransport()
        uplink = SpoolUplink(spool, LinkClient(transport, spool, no_hello, Heartbeat), LiveRuns())
        await uplink.report(ending())
        assert not uplink.full
        await uplink.report(ending())
        assert uplink.full
        await spool.acked(1)
        assert not uplink.full
        transport.close()
