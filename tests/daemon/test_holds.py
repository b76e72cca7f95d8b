"""What holds a daemon's work back: here who else has its host, over a real link and a real spool."""

from pathlib import Path

import anyio

from cloudagent_daemon.holds import fence
from cloudagent_daemon.runs.warm import Warm
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.ids import DeliveryId
from daemon.test_link_client import daemon
from daemon.test_queue import World
from fakes.backend import scripted_backend

#: Longer than the test: the link is not made again in it.
NEVER_S = 600.0


async def test_what_waits_when_another_daemon_takes_the_host_is_not_begun_here(
    tmp_path: Path,
) -> None:
    async with (
        scripted_backend() as backend,
        daemon(backend, path=tmp_path / "state.db", wait_s=NEVER_S) as d,
        anyio.create_task_group() as tasks,
    ):
        world, warm = World(d.spool), Warm(600.0, 3)
        tasks.start_soon(world.queue.run)
        tasks.start_soon(fence, d.client, world.queue, warm)
        link = await backend.connected()
        first = backend.deliver("one", delivery_id=DeliveryId("dlv_1"))
        backend.deliver("the next", conversation=first.message.conversation_id)
        await backend.until(lambda: backend.acked == len(backend.outbox))
        await world.until(1)
        await link.close(CloseCode.SUPERSEDED)
        with anyio.fail_after(5):
            while not d.client.superseded:
                await d.client.changed.wait()
        await world.at_rest()
        world.end(1)
        await world.until_ended(1)
        await world.at_rest()
        assert [delivery_id for delivery_id, _ in world.started] == ["dlv_1"]
        assert not warm.keeps
        tasks.cancel_scope.cancel()
