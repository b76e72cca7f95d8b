"""A machine that has no room says so, and so does what waits on it."""

from pathlib import Path

import pytest

from cloudagent_backend.delivery import ladder
from cloudagent_backend.store import hosts
from cloudagent_protocol.frames import Heartbeat, HostReport
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import DeliveryTrace, Hold, HostMachine, Message
from fakes.daemon import connection
from fakes.desk import Desk, Run, open_desk
from fakes.server import running_backend

LOW = Hold(reason="memory_low", detail="300 MB of memory are available, 512 MB are needed")
FULL = Hold(reason="disk_low", detail="3 MB are free")


async def trace(desk: Desk, message: Message) -> DeliveryTrace:
    [row] = await desk.rows(message)
    return await desk.database.read(lambda c: ladder.trace(c, row))


async def shown(desk: Desk) -> HostMachine:
    row = await desk.database.read(lambda c: hosts.load(c, desk.user_id, desk.machine.host_id))
    assert row
    return hosts.resource(row)


async def test_what_waits_on_a_machine_without_room_says_why_and_later_that_it_no_longer_does(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        await desk.report(Heartbeat(holds=[LOW]))
        waiting = await trace(desk, message)
        assert (waiting.state, waiting.reason) == ("received", "memory_low")
        assert waiting.rungs[-1].rung == "waiting"
        assert waiting.rungs[-1].actor == "mbp"
        assert waiting.rungs[-1].detail == LOW.detail
        assert (await shown(desk)).holds == [LOW]
        await desk.report(Heartbeat())
        assert (await trace(desk, message)).reason is None
        assert (await shown(desk)).holds == []
        await desk.report(Run(message).started())
        assert (await trace(desk, message)).state == "running"


async def test_a_message_that_comes_to_a_machine_without_room_says_so_at_once(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet(holds=[FULL])
        message = await desk.say()
        await desk.receive_all()
        assert (await trace(desk, message)).reason == "disk_low"
        assert await desk.rungs(message) == ["stored", "sent", "received", "waiting"]


async def test_the_news_is_told_once_and_only_when_it_is_news(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        await desk.say()
        await desk.receive_all()
        before = len(await desk.log())
        await desk.report(Heartbeat(holds=[LOW]))
        worse = LOW.model_copy(update={"detail": "200 MB of memory are available"})
        await desk.report(Heartbeat(holds=[worse]))
        await desk.report(Heartbeat(holds=[worse]))
        told = [row.type for row in (await desk.log())[before:]]
        assert told == ["host.updated", "delivery.updated", "host.updated"]


async def test_a_hold_of_one_agent_is_not_that_of_another(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        paused = Hold(reason="crash_loop", detail="crashed 3 times", agent_id=AgentId("agent_x"))
        await desk.report(Heartbeat(holds=[paused]))
        assert (await trace(desk, message)).reason is None
        mine = paused.model_copy(update={"agent_id": desk.agent_id})
        await desk.report(Heartbeat(holds=[paused, mine]))
        assert (await trace(desk, message)).reason == "crash_loop"


async def test_what_runs_is_not_said_to_wait(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        await desk.report(Run(message).started())
        await desk.report(Heartbeat(holds=[LOW]))
        assert (await trace(desk, message)).reason is None
        assert "waiting" not in (await desk.rungs(message))[2:]


async def test_what_a_machine_said_before_it_went_away_is_not_shown(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet(holds=[LOW])
        await desk.service.leave(desk.machine)
        assert (await shown(desk)).holds == []
        await desk.greet()
        assert (await shown(desk)).holds == []


@pytest.mark.parametrize(
    "hold",
    [
        {"reason": "x" * 41, "detail": ""},
        {"reason": "<b>", "detail": ""},
        {"reason": "disk_low", "detail": "x" * 501},
    ],
)
async def test_a_hold_that_is_no_word_closes_the_connection(
    tmp_path: Path, hold: dict[str, str]
) -> None:
    async with (
        running_backend(tmp_path) as backend,
        connection(backend.socket_url, backend.ana.host.raw_key) as daemon,
    ):
        await daemon.greet()
        await daemon.send_raw({"type": "heartbeat", "holds": [hold]})
        assert await daemon.closed() == 4400


async def test_a_heartbeat_over_the_socket_reaches_the_api(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        connection(backend.socket_url, backend.ana.host.raw_key) as daemon,
        backend.client() as client,
    ):
        await daemon.greet()
        await daemon.send(Heartbeat(holds=[LOW]), HostReport(runtimes=[]))
        await daemon.settle()
        path = f"/v1/host-machines/{backend.ana.host.id}"
        assert (await client.get(path)).json()["holds"][0]["reason"] == "memory_low"
