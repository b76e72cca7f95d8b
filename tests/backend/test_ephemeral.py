"""Ephemeral hosts: what they take, that they take no place of another's, and what they leave."""

import json
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.store import agents, clock, conversations, hosts
from cloudagent_protocol.errors import CloseCode, ErrorCode
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.frames import Interrupt, ListMessages
from cloudagent_protocol.ids import AgentId, ConversationId
from cloudagent_protocol.resources import AgentCreate, DeliveryMode, Driver, EphemeralHost
from fakes.daemon import connection
from fakes.desk import Desk, Run, add_helper, open_desk
from fakes.server import Backend, running_backend


async def new_agent(desk: Desk, name: str) -> AgentId:
    host_id = desk.machine.host_id
    body = AgentCreate(name=name, driver=Driver.SCRIPTED, host_machine_id=host_id)
    return (await desk.database.write(lambda c: agents.create(c, desk.user_id, body))).id


async def thread(desk: Desk, agent_id: AgentId | None = None) -> ConversationId:
    agent = agent_id or desk.agent_id
    made = await desk.database.write(lambda c: conversations.create(c, desk.user_id, [agent]))
    return made.id


# --- what is taken ------------------------------------------------------------------------


async def test_it_takes_one_message_of_its_parents_queue_and_answers_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first, second = await desk.say("one"), await desk.say("two")
        helper = await add_helper(desk)
        await helper.connect()
        assert await helper.delivered() == ["one"]
        run = Run(first)
        await helper.receive_all()
        applied = await helper.report(run.started(), run.send("Done."), run.finished())
        assert applied.error is None
        assert await desk.state(first) == "done"
        await desk.service.lease([ReadyHost(helper.host.id)])
        assert await helper.delivered() == []
        assert await desk.state(second) == "queued"


async def test_a_message_that_interrupts_stops_what_a_job_does_in_its_conversation(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        first = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await helper.receive_all()
        run = Run(first)
        await helper.report(run.started())
        urgent = await desk.say("stop, this first", mode=DeliveryMode.INTERRUPT)
        [interrupt] = await helper.frames()
        assert isinstance(interrupt, Interrupt)
        assert (interrupt.delivery_id, interrupt.actor) == (first.deliveries[0].id, "ana")
        assert await desk.lease() == []
        await helper.report(run.finished(Outcome.CANCELLED, stopped_by="ana"))
        assert [frame.message.id for frame in await desk.lease()] == [urgent.id]


async def test_a_message_goes_to_the_waiting_job_before_the_agents_own_machine(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        own = await add_session(desk)
        helper = await add_helper(desk)
        await helper.connect()
        await desk.say("for the job")
        await desk.say("for the machine", conversation_id=await thread(desk))
        assert await helper.delivered() == ["for the job"]
        assert [f.message.text for f in await desk.outbox()] == ["for the machine"]
        assert desk.hub.helpers(own) == [helper.host.id]


async def add_session(desk: Desk) -> Any:
    from cloudagent_backend.delivery.hub import Session

    session = Session(desk.machine.host_id, "in_1")
    desk.hub.attach(session)
    await desk.greet()
    session.ready = True
    return desk.machine.host_id


async def test_it_serves_the_one_agent_that_it_was_made_for(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        other = await new_agent(desk, "docs")
        await desk.say("for frontend")
        helper = await add_helper(desk, serves=other)
        await helper.connect()
        assert await helper.delivered() == []
        mine = await desk.say("for docs", agent_id=other)
        assert await helper.delivered() == ["for docs"]
        # Nor may it speak for another.
        foreign = Run(await desk.say("again"))
        applied = await helper.report(foreign.started())
        assert applied.error is not None
        assert await desk.state(mine) == "leased"


async def test_a_conversation_is_with_one_machine_at_a_time(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await add_session(desk)
        first = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await desk.say("two")  # the same conversation, which the own machine has
        assert await helper.delivered() == []
        assert [f.message.text for f in await desk.outbox()] == ["one", "two"]
        assert await desk.state(first) == "leased"


async def test_the_own_machine_waits_for_a_conversation_that_a_job_has(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        helper = await add_helper(desk)
        await helper.connect()
        first = await desk.say("one")
        second = await desk.say("two")
        later = await desk.say("three", conversation_id=await thread(desk))
        assert await helper.delivered() == ["one"]
        # In order for the agent: what waits holds up what came after it.
        assert await desk.lease() == []
        run = Run(first)
        await helper.receive_all()
        await helper.report(run.started(), run.finished())
        assert desk.machine.host_id in (await desk.service.hints.take(0) or set())
        assert [f.message.text for f in await desk.lease()] == ["two", "three"]
        assert [await desk.state(one) for one in (second, later)] == ["leased", "leased"]


async def test_two_jobs_with_one_key_take_a_message_each(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        one, two = await add_helper(desk, "job-1"), await add_helper(desk, "job-2")
        await one.connect()
        await two.connect()
        await desk.say("a")
        await desk.say("b", conversation_id=await thread(desk))
        assert await one.delivered() == ["a"]
        assert await two.delivered() == ["b"]


async def test_a_message_for_one_job_goes_to_no_other(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        earlier = await desk.say("for anybody")
        one, two = await add_helper(desk, "job-1"), await add_helper(desk, "job-2")
        for_two = await desk.say("review 2", agent_id=desk.agent_id, host_id=two.host.id)
        for_one = await desk.say("review 1", agent_id=desk.agent_id, host_id=one.host.id)
        for helper in (one, two):
            await helper.connect()
        assert await one.delivered() == ["review 1"]
        assert await two.delivered() == ["review 2"]
        assert await desk.state(earlier) == "queued"
        # Conversations of their own, or one job would wait for the other.
        assert len({m.conversation_id for m in (earlier, for_one, for_two)}) == 3
        with pytest.raises(Refused, match="has taken all") as refused:
            await desk.say("more", agent_id=desk.agent_id, host_id=one.host.id)
        assert refused.value.code is ErrorCode.CONFLICT
        with pytest.raises(Refused, match="No machine") as refused:
            await desk.say("more", agent_id=desk.agent_id, host_id="host_none")
        assert refused.value.code is ErrorCode.NOT_FOUND


async def test_its_agent_may_read_the_conversation_that_it_is_in(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        helper = await add_helper(desk, serves=desk.agent_id)
        await helper.connect()
        message = await desk.say("hello")
        query = ListMessages(agent_id=desk.agent_id, conversation_id=message.conversation_id)
        found = await desk.service.list_messages(helper.machine, query)
        assert [m.text for m in found or []] == ["hello"]
        other = query.model_copy(update={"agent_id": await new_agent(desk, "docs")})
        assert await desk.service.list_messages(helper.machine, other) is None


async def test_an_agent_whose_only_machine_is_a_jobs_is_shown_as_here(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        assert await shown_status(desk) == "offline"
        helper = await add_helper(desk)
        session = await helper.connect()
        assert await shown_status(desk) == "idle"
        assert await desk.rungs(await desk.say()) == ["stored"]
        await helper.leave(session)
        assert await shown_status(desk) == "offline"


async def shown_status(desk: Desk) -> str:
    """As the last event about the agent tells it, and as the API shows it: the same."""

    def work(c: Any) -> str:
        row = agents.load(c, desk.user_id, desk.agent_id)
        assert row is not None
        return agents.resource(c, row).status.value

    shown = await desk.database.read(work)
    told = [json.loads(e.data) for e in await desk.log() if e.type == "agent.updated"]
    assert not told or told[-1]["status"] == shown
    return shown


# --- what becomes of it -------------------------------------------------------------------


async def test_what_it_had_not_begun_goes_back_in_its_old_place(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        first, second = await desk.say("one"), await desk.say("two")
        helper = await add_helper(desk)
        await helper.connect()
        await helper.receive_all()
        assert await desk.state(first) == "received"
        await desk.service.remove_ephemeral(helper.host)
        assert await desk.state(first) == "queued"
        assert (await desk.rungs(first))[-1] == "interrupted"
        assert [f.message.text for f in await desk.lease()] == ["one", "two"]
        # The backlog is counted where the messages are: both end on the own machine.
        await desk.service.cancel(desk.user_id, "ana", second.id)
        run = Run(first)
        await desk.receive_all()
        await desk.report(run.started(), run.finished())
        assert await desk.state(first) == "done"
        assert await backlog(desk) == 1  # `second` was interrupted, and its machine has not said so


async def backlog(desk: Desk) -> int:
    rows = await desk.database.read(
        lambda c: c.execute("SELECT sum(backlog) FROM links").fetchall()
    )
    return rows[0][0]


async def test_one_that_never_saw_it_leaves_no_mark_on_the_ladder(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await desk.service.remove_ephemeral(helper.host)
        assert await desk.rungs(message) == ["stored", "waiting"]
        assert await desk.state(message) == "queued"


async def test_what_the_agent_was_at_work_on_ends_and_says_why(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await helper.receive_all()
        run = Run(message)
        await helper.report(run.started())
        assert await desk.agent_status() == "working"
        await desk.service.remove_ephemeral(helper.host)
        [row] = await desk.rows(message)
        assert (row.state.value, row.reason) == ("dead", "host_removed")
        assert "job-1 was removed while the agent was at work" in row.rungs
        assert await desk.agent_status() == "idle"
        assert await backlog(desk) == 0
        assert await desk.lease() == []


async def test_a_message_meant_for_it_alone_ends_with_it(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        helper = await add_helper(desk)
        message = await desk.say("one", agent_id=desk.agent_id, host_id=helper.host.id)
        await desk.service.remove_ephemeral(helper.host)
        [row] = await desk.rows(message)
        assert (row.state.value, row.reason) == ("dead", "host_removed")
        assert "which it was meant for" in row.rungs


async def test_one_that_was_to_be_stopped_is_cancelled_and_does_not_come_back(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await desk.service.cancel(desk.user_id, "ana", message.id)
        assert [type(frame) for frame in await helper.frames()][-1] is Interrupt
        await desk.service.remove_ephemeral(helper.host)
        assert await desk.state(message) == "cancelled"


async def test_one_that_stays_away_is_removed_and_one_that_came_back_is_not(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("one")
        gone, back = await add_helper(desk, "gone"), await add_helper(desk, "back")
        never = await add_helper(desk, "never connected")
        await gone.leave(await gone.connect())
        await back.leave(await back.connect())
        await back.connect()
        assert await desk.state(message) == "leased"
        assert await desk.service.reap(clock.now_us() - 60_000_000) == 0
        assert await desk.service.reap(clock.now_us() + 1) == 2
        left = await desk.database.read(lambda c: hosts.children(c, desk.machine.host_id))
        assert [row.id for row in left] == [back.host.id]
        assert never.host.id not in {row.id for row in left}
        # The message has gone back, and on to the job that is still there.
        await desk.service.lease([ReadyHost(back.host.id)])
        assert await back.delivered() == ["one"]


# --- over HTTP ------------------------------------------------------------------------------


def machine(backend: Backend, key: str | None = None) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {key or backend.ana.host.raw_key}"}
    return httpx2.AsyncClient(base_url=backend.url, headers=headers, timeout=10)


async def register(backend: Backend, **body: Any) -> EphemeralHost:
    async with machine(backend) as client:
        answer = await client.post("/v1/daemon/ephemeral-hosts", json={"name": "job-1", **body})
    assert answer.status_code == 201, answer.text
    return EphemeralHost.model_validate_json(answer.content)


async def test_a_machine_key_makes_hosts_that_stand_side_by_side(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        made = [await register(backend, agent=name) for name in ("frontend", backend.ana.agent.id)]
        assert made[0].parent_id == backend.ana.host.id
        assert [agent.name for agent in made[0].agents] == ["frontend"]
        assert made[0].raw_key != made[1].raw_key
        async with (
            connection(backend.socket_url, backend.ana.host.raw_key) as own,
            connection(backend.socket_url, made[0].raw_key) as one,
            connection(backend.socket_url, made[1].raw_key) as two,
        ):
            assert (await own.greet(instance_id="a")).host_id == backend.ana.host.id
            assert (await one.greet(instance_id="b")).host_id == made[0].id
            welcome = await two.greet(instance_id="c")
            assert [agent.name for agent in welcome.agents] == ["frontend"]
            message = await backend.post("review")
            frame = await one.deliver()
            assert frame.message.id == message.id
            run = Run(message)
            await one.send(run.started(), run.send("Fine."), run.finished())
            await one.settle()
            async with machine(backend, made[0].raw_key) as client:
                assert (await client.delete("/v1/daemon/host")).status_code == 204
                assert (await client.get("/v1/daemon/host")).status_code == 401
            assert await one.closed() == CloseCode.REVOKED
            await backend.post("again")
            assert (await two.deliver()).message.text == "again"
        async with backend.client() as client:
            listed = (await client.get("/v1/host-machines")).json()["data"]
            assert [host["id"] for host in listed] == [backend.ana.host.id, made[1].id]
            trace = (await client.get(f"/v1/messages/{message.id}/trace")).json()
            assert trace["deliveries"][0]["outcome"] == "replied"


async def test_an_agent_that_the_machine_does_not_have_is_named_with_those_it_has(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend, machine(backend) as client:
        ben = await backend.person("ben")
        for wanted in ("nobody", ben.agent.id):
            answer = await client.post(
                "/v1/daemon/ephemeral-hosts", json={"name": "job", "agent": wanted}
            )
            assert answer.status_code == 404
            assert "ana-mbp has no agent" in answer.json()["detail"]
            assert "(it has: frontend)" in answer.json()["detail"]


async def test_only_so_many_at_once_and_none_by_an_ephemeral_one(tmp_path: Path) -> None:
    async with running_backend(tmp_path, ephemeral_hosts=2) as backend:
        first, _ = await register(backend), await register(backend)
        async with machine(backend) as client:
            answer = await client.post("/v1/daemon/ephemeral-hosts", json={"name": "job-3"})
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert (await client.delete("/v1/daemon/host")).status_code == 403
        async with machine(backend, first.raw_key) as client:
            answer = await client.post("/v1/daemon/ephemeral-hosts", json={"name": "x"})
            assert answer.status_code == 403
        async with backend.client() as client:
            body = {"name": "new", "host_machine_id": first.id}
            assert (await client.post("/v1/agents", json=body)).status_code == 409


@pytest.mark.parametrize("act", ["rotate", "remove"])
async def test_what_was_made_with_a_key_goes_when_the_key_goes(tmp_path: Path, act: str) -> None:
    async with running_backend(tmp_path) as backend:
        made = await register(backend)
        async with connection(backend.socket_url, made.raw_key) as job, backend.client() as client:
            await job.greet()
            path = f"/v1/host-machines/{backend.ana.host.id}"
            done = await (
                client.post(f"{path}/rotate-key") if act == "rotate" else client.delete(path)
            )
            assert done.is_success
            assert await job.closed() == CloseCode.REVOKED
        with pytest.raises(InvalidStatus, match="401"):
            async with connection(backend.socket_url, made.raw_key):
                pass


async def test_its_owner_may_remove_it_and_the_agents_stay(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        made = await register(backend)
        async with connection(backend.socket_url, made.raw_key) as job:
            await job.greet()
            message = await backend.post("review")
            await job.deliver()
            await until_state(backend, message, "received")
            assert (await client.delete(f"/v1/host-machines/{made.id}")).status_code == 204
            assert await job.closed() == CloseCode.REVOKED
        await until_state(backend, message, "queued")
        agent = (await client.get(f"/v1/agents/{backend.ana.agent.id}")).json()
        assert (agent["host_machine_id"], agent["status"]) == (backend.ana.host.id, "offline")


async def until_state(backend: Backend, message: Any, state: str) -> None:
    async with backend.client() as client:
        with anyio.fail_after(10):
            while True:
                trace = (await client.get(f"/v1/messages/{message.id}/trace")).json()
                if trace["deliveries"][0]["state"] == state:
                    return


async def test_a_killed_job_is_reaped_and_its_message_goes_back(tmp_path: Path) -> None:
    async with running_backend(tmp_path, ephemeral_ttl_s=0.2) as backend:
        made = await register(backend)
        assert made.ttl_s == 0.2
        async with connection(backend.socket_url, made.raw_key) as job:
            await job.greet()
            message = await backend.post("review")
            await job.deliver()
            await until_state(backend, message, "received")
        await until_state(backend, message, "queued")
        async with machine(backend, made.raw_key) as client:
            assert (await client.get("/v1/daemon/host")).status_code == 401


async def test_a_failed_turn_on_a_job_is_told_as_any_other(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        message = await desk.say("one")
        helper = await add_helper(desk)
        await helper.connect()
        await helper.receive_all()
        run = Run(message)
        await helper.report(run.started(), run.failed(Reason.CRASHED, "exit 1"))
        [row] = await desk.rows(message)
        assert (row.state.value, row.reason) == ("failed", "crashed")
