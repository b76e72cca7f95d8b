"""A machine whose agents ask people: a queue over a spool on the disk, and what a person says."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import anyio

from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.runs.breaker import Breaker
from cloudagent_daemon.runs.ports import Launch, Said
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.runner import Runner
from cloudagent_protocol.frames import Decide, Deliver, DeliveryReport, Numbered, RunReport
from cloudagent_protocol.ids import DeliveryId
from fakes.runs import RecordedUplink, World


class SpooledUplink(RecordedUplink):
    """Keeps what it is given on the disk as well."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool

    async def report(self, frame: Said) -> None:
        if not (isinstance(frame, RunReport) and frame.event.type == "finished"):
            await self.spool.append(frame)
        await super().report(frame)

    async def finish(self, frame: RunReport) -> None:
        await self.spool.finish(frame)
        await super().finish(frame)

    async def launched(self, launch: Launch) -> None:
        from cloudagent_daemon.link.tables import Leftover

        process = Leftover(launch.launch_id, launch.pid, launch.started_at)
        await self.spool.record_launch(launch.delivery_id, process, launch.attempt)
        await super().launched(launch)

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        await self.spool.ride(delivery_id, into)
        await super().stays_aboard(delivery_id, into)


@dataclass
class Machine:
    """A queue and its runner over a spool, and one agent that asks before it acts."""

    world: World
    spool: Spool
    uplink: SpooledUplink
    queue: RunQueue
    seq: int = 0
    delivered: int = 0
    seen: set[str] = field(default_factory=set[str])

    async def receive(self, frame: Numbered) -> None:
        self.seq += 1
        await self.spool.receive([frame.model_copy(update={"seq": self.seq})], self.seq)

    async def say(self, text: str, **more: Any) -> Deliver:
        self.delivered += 1
        deliver = self.world.deliver(text, **more).model_copy(
            update={"delivery_seq": self.delivered}
        )
        await self.receive(deliver)
        return deliver

    async def event(self, kind: str) -> Any:
        """The next event of this kind that was not looked at yet."""

        def wanted(frame: Said) -> bool:
            return (
                isinstance(frame, RunReport)
                and frame.event.type == kind
                and f"{frame.run_id} {frame.event.seq}" not in self.seen
            )

        frame = await self.uplink.until(wanted)
        assert isinstance(frame, RunReport)
        self.seen.add(f"{frame.run_id} {frame.event.seq}")
        return frame.event

    async def leaves(self, times: int = 1) -> None:
        """A run says that it waits for people, and ends its process."""

        def wanted(_: Said) -> bool:
            reports = [one for one in self.uplink.frames if isinstance(one, DeliveryReport)]
            return len(reports) >= times

        await self.uplink.until(wanted)

    async def parked(self, times: int = 1) -> None:
        await self.leaves(times)
        with anyio.fail_after(self.uplink.deadline_s):
            while not self.queue.order.parked:
                await self.queue.changed.wait()

    async def decide(self, asked: Any, delivery: Deliver, decision: str, **more: Any) -> None:
        await self.receive(
            Decide(
                approval_id=asked.approval_id,
                delivery_id=delivery.delivery_id,
                decision=decision,
                actor="Ana",
                decided_at=datetime.now(UTC),
                **more,
            )
        )


@asynccontextmanager
async def a_machine_in(world: World, spool: Spool | None = None) -> AsyncGenerator[Machine]:
    """The machine of a world, with a spool of its own or one that has seen an earlier life."""
    async with open_spool(None) as fresh, anyio.create_task_group() as tasks:
        spool = spool or fresh
        uplink = SpooledUplink(spool)
        uplink.deadline_s = world.deadline_s
        settings = replace(world.settings, state_dir=world.home)  # a daemon that has another life
        runner = Runner(
            settings, world.bridge, uplink, Masks(settings), relaunch_s=(0.0, 0.0), answers=spool
        )
        queue = RunQueue(
            spool, runner, uplink, max_runs=2, breaker=Breaker(anyio.current_time, 60.0)
        )
        tasks.start_soon(queue.run)
        yield Machine(world, spool, uplink, queue)
        tasks.cancel_scope.cancel()
