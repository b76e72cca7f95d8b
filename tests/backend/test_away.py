"""What is sent to a machine that is offline, or shutting down: it waits, and says for what."""

import json
from pathlib import Path
from typing import Any

import anyio

from cloudagent_backend.store import clock, hosts
from cloudagent_protocol.frames import Answer, Deliver, Heartbeat
from cloudagent_protocol.resources import DeliveryTrace, HostMachine, Message, Trace
from fakes.daemon import ScriptedDaemon, connection
from fakes.server import Backend, running_backend


def link_of(backend: Backend) -> Any:
    return connection(backend.socket_url, backend.ana.host.raw_key)


async def trace(backend: Backend, message: Message) -> DeliveryTrace:
    async with backend.client() as client:
        answer = await client.get(f"/v1/messages/{message.id}/trace")
        return Trace.model_validate_json(answer.content).deliveries[0]


async def host(backend: Backend) -> HostMachine:
    async with backend.client() as client:
        answer = await client.get(f"/v1/host-machines/{backend.ana.host.id}")
        return HostMachine.model_validate_json(answer.content)


async def say_draining(daemon: ScriptedDaemon, *, draining: bool) -> None:
    """Said, and known to have been heard: a question's answer comes after it, and nothing before."""
    await daemon.send(Heartbeat(draining=draining))
    query = {"op": "unheard_of"}
    await daemon.send_raw({"type": "query", "id": 1, "query": query})
    await daemon.expect(Answer)


async def test_a_message_for_a_machine_that_shuts_down_waits_and_is_delivered_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            epoch = (await daemon.greet()).epoch
            await say_draining(daemon, draining=True)
            shown = await host(backend)
            assert shown.state == "draining"
            message = await backend.post()
            waits = await trace(backend, message)
            assert (waits.state, waits.reason) == ("queued", "host_draining")
            assert (waits.waits_on, waits.waits_since) == ("ana-mbp", shown.last_seen_at)
            assert waits.rungs[-1].detail == (
                "ana-mbp is shutting down; it is delivered when the machine is back"
            )
            await say_draining(daemon, draining=True)
        async with link_of(backend) as daemon:
            await daemon.greet(epoch=epoch)
            assert (await daemon.deliver()).message.text == "fix it"
            assert (await host(backend)).state == "online"


async def test_a_daemon_that_shuts_down_already_when_it_connects_is_given_nothing(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        message = await backend.post()
        async with link_of(backend) as daemon:
            await daemon.greet(draining=True)
            await say_draining(daemon, draining=True)
            assert (await host(backend)).state == "draining"
            assert (await trace(backend, message)).reason == "host_draining"
            # It does not go after all.
            await daemon.send(Heartbeat())
            assert (await daemon.deliver()).message.text == "fix it"
            assert (await host(backend)).state == "online"


async def test_a_trace_says_since_when_the_machine_is_offline(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        never = await trace(backend, await backend.post())
        assert (never.reason, never.waits_on, never.waits_since) == (
            "host_offline",
            "ana-mbp",
            None,
        )
        assert never.rungs[-1].detail == (
            "ana-mbp has not connected yet; it is delivered when the machine is back"
        )
        left = clock.at(clock.now_us() - 3_600_000_000)

        def leave(c: Any) -> None:
            c.execute("UPDATE host_machines SET last_seen_us = ?", (clock.to_us(left),))

        await backend.world.database.write(leave)
        away = await trace(backend, await backend.post())
        assert (away.waits_on, away.waits_since) == ("ana-mbp", left)
        assert "ana-mbp is offline" in str(away.rungs[-1].detail)


async def test_what_was_sent_to_a_machine_that_went_before_it_took_it_waits_for_its_return(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        async with link_of(backend) as daemon:
            await daemon.greet()
            message = await backend.post()
            await daemon.expect(Deliver)
        with anyio.fail_after(5):
            async for row in backend.world.fanout.follow(backend.ana.user_id, 0):
                if row.type == "host.updated" and json.loads(row.data)["state"] == "offline":
                    break
        waits = await trace(backend, message)
        assert (waits.state, waits.reason, waits.waits_on) == ("leased", "host_offline", "ana-mbp")


def test_a_host_that_is_here_is_online_or_draining() -> None:
    assert hosts.here(draining=False) == "online"
    assert hosts.here(draining=True) == "draining"
