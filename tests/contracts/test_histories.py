"""Both ends' real stores over each other's lost histories: no message waits for ever, none runs twice."""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store.database import open_database
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.frames import Ack, RunReport, Send, decode
from cloudagent_protocol.resources import Message
from fakes.desk import Desk, Run, open_desk

STAGES = ("queued", "leased", "received", "running")


def back_up(desk: Desk, name: str = "backup") -> Path:
    copy = desk.database.path.with_name(f"{name}.db")
    with closing(sqlite3.connect(desk.database.path, isolation_level=None)) as c:
        c.execute("VACUUM INTO ?", (str(copy),))
    return copy


@asynccontextmanager
async def restored(desk: Desk, backup: Path) -> AsyncGenerator[Desk]:
    async with open_database(backup) as database:
        hub, fanout = Hub(), Fanout(database, coalesce_s=0.04, ping_s=15.0)
        service = Service(database, hub, fanout, window=32, backlog_cap=1_000)
        yield replace(desk, database=database, service=service, hub=hub, fanout=fanout)


async def connect(desk: Desk, spool: Spool) -> None:
    """The handshake as both ends do it, again if the histories differ."""
    marks = spool.marks
    greeting = await desk.greet(
        epoch=marks.epoch, last_seq=marks.accepted, unfinished=await spool.held()
    )
    if greeting.link.epoch != marks.epoch:
        await spool.reset_epoch(greeting.link.epoch)
    try:
        await spool.resume(greeting.link.accepted)
    except ProtocolError:
        await spool.reset_epoch(None)
        await connect(desk, spool)
        return
    await spool.drop(greeting.drop)


async def down(desk: Desk, spool: Spool) -> None:
    """What the backend has to say, durable there and acknowledged."""
    if frames := await desk.lease():
        await spool.receive(frames, frames[-1].seq)
        await desk.service.apply(desk.machine, [Ack(seq=frames[-1].seq)])


async def up(desk: Desk, spool: Spool) -> None:
    if rows := await spool.frames_after(spool.marks.acked, 100):
        frames = [decode(text) for _, text in rows]
        applied = await desk.service.apply(desk.machine, frames)  # type: ignore[arg-type]
        assert applied.error is None
        await spool.acked(rows[-1][0])


async def work(spool: Spool, *reports: RunReport | Send) -> None:
    for report in reports[:-1]:
        await spool.append(report)
    assert isinstance(reports[-1], RunReport)
    await spool.finish(reports[-1])


async def runs_to_do(spool: Spool) -> int:
    return len([change for change in await spool.changes_after(0) if change.waiting])


async def reach(desk: Desk, spool: Spool, stage: str, run: Run) -> None:
    if stage == "leased":
        await desk.lease()
    if stage in ("received", "running"):
        await down(desk, spool)
    if stage == "running":
        await spool.append(run.started())
        await up(desk, spool)


@pytest.mark.parametrize("stage", STAGES)
async def test_what_ended_after_the_backup_is_told_again_not_run_again(
    tmp_path: Path, stage: str
) -> None:
    async with open_desk(tmp_path) as desk, open_spool(tmp_path / "state.db") as spool:
        await connect(desk, spool)
        message = await desk.say()
        run = Run(message)
        await reach(desk, spool, stage, run)
        assert await desk.state(message) == stage
        backup = back_up(desk)
        await _finish(desk, spool, run, message)
        async with restored(desk, backup) as yesterday:
            await connect(yesterday, spool)
            await down(yesterday, spool)
            assert await runs_to_do(spool) == 0
            await up(yesterday, spool)
            assert await yesterday.state(message) == "done"


async def _finish(desk: Desk, spool: Spool, run: Run, message: Message) -> None:
    await down(desk, spool)
    await work(spool, run.text("On it."), run.send("Fixed."), run.finished())
    await up(desk, spool)
    assert await desk.state(message) == "done"


async def test_what_was_dropped_after_the_backup_is_run(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk, open_spool(tmp_path / "state.db") as spool:
        before = back_up(desk, "before")
        await connect(desk, spool)
        message = await desk.say()
        await down(desk, spool)
        after = back_up(desk)
        async with restored(desk, before) as wrong:  # the wrong backup: it never knew the message
            await connect(wrong, spool)
            assert await runs_to_do(spool) == 0
        async with restored(desk, after) as right:
            await connect(right, spool)
            await down(right, spool)
            assert await runs_to_do(spool) == 1
            await work(spool, Run(message).finished())
            await up(right, spool)
            assert await right.state(message) == "done"


@pytest.mark.parametrize("stage", STAGES)
async def test_a_machine_that_lost_its_disk_gets_its_messages_again(
    tmp_path: Path, stage: str
) -> None:
    async with open_desk(tmp_path) as desk:
        async with open_spool(tmp_path / "state.db") as spool:
            await connect(desk, spool)
            message = await desk.say()
            await reach(desk, spool, stage, Run(message))
        async with open_spool(tmp_path / "new.db") as spool:
            await connect(desk, spool)
            await down(desk, spool)
            assert await runs_to_do(spool) == 1
            await work(spool, Run(message).finished())
            await up(desk, spool)
            assert await desk.state(message) == "done"
