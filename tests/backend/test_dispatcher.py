"""The loop between the queue and the hosts: hints make it quick, none makes it blind."""

from pathlib import Path
from typing import Any

import anyio

from cloudagent_backend.delivery import queueing
from cloudagent_backend.delivery.dispatcher import Dispatcher
from cloudagent_backend.delivery.hub import Session
from fakes.desk import Desk, add_helper, add_host, open_desk


def connect(desk: Desk, host_id: Any) -> Session:
    session = Session(host_id, f"in_{host_id}")
    desk.hub.attach(session)
    session.ready = True
    return session


async def test_a_lost_hint_costs_a_poll_even_while_another_host_is_busy(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        quiet, agent_id = await add_host(desk.database, desk.user_id, "nuc", "backend")
        connect(desk, desk.machine.host_id)
        connect(desk, quiet.host_id)
        submission = desk.submission("nobody hints at this", agent_id=agent_id)
        done = await desk.database.write(lambda c: queueing.submit(c, submission, 1_000))
        dispatcher = Dispatcher(
            desk.database, desk.service, desk.hub, poll_s=0.05, events_kept=1_000
        )

        async def keep_busy() -> None:
            while True:
                desk.service.hints.hint(desk.machine.host_id)
                await anyio.lowlevel.checkpoint()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dispatcher.run)
                tasks.start_soon(keep_busy)
                while await desk.state(done.message) == "queued":
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()


async def test_a_poll_looks_for_work_and_not_at_every_host(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        quiet, agent_id = await add_host(desk.database, desk.user_id, "nuc", "backend")
        connect(desk, desk.machine.host_id)
        connect(desk, quiet.host_id)
        submission = desk.submission("nobody hints at this", agent_id=agent_id)
        done = await desk.database.write(lambda c: queueing.submit(c, submission, 1_000))
        statements = list[str]()
        await desk.database.write(lambda c: c.set_trace_callback(statements.append))
        dispatcher = Dispatcher(desk.database, desk.service, desk.hub, poll_s=0.05, events_kept=9)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dispatcher.run)
                while await desk.state(done.message) == "queued":
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert any(quiet.host_id in one for one in statements)
        assert not any(desk.machine.host_id in one for one in statements)


async def test_a_poll_serves_an_ephemeral_host_from_the_queue_of_another(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say()
        helper = await add_helper(desk)
        session = Session(helper.host.id, "in_job", helper.host.parent_id)
        desk.hub.attach(session)
        session.ready = True
        dispatcher = Dispatcher(desk.database, desk.service, desk.hub, poll_s=0.05, events_kept=9)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dispatcher.run)
                while await desk.state(message) == "queued":
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert await helper.delivered() == ["fix the login test"]


async def test_the_backlog_of_one_host_delays_another_by_no_more_than_its_window(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path, backlog_cap=2_000) as desk:
        other, agent_id = await add_host(desk.database, desk.user_id, "nuc", "backend")

        def flood(c: Any) -> None:
            for n in range(1_000):
                queueing.submit(c, desk.submission(f"{n}"), 2_000)

        await desk.database.write(flood)
        message = await desk.say("mine", agent_id=agent_id)
        connect(desk, desk.machine.host_id)
        connect(desk, other.host_id)
        await desk.service.lease(desk.hub.all_ready())
        assert await desk.state(message) == "leased"
        assert len(await desk.outbox()) == 32
