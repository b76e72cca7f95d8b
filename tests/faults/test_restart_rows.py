"""Rows of the fault matrix with machines that are no more than the daemon's own link.

20: the backend is restarted under many. 44: one comes back to as large a backlog as there may be.
"""

import time
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio.to_thread import run_sync

from cloudagent_backend.delivery.queueing import Submission, submit
from cloudagent_backend.store import users
from cloudagent_backend.store.database import connect
from cloudagent_protocol.ids import AgentId, DeliveryId
from cloudagent_protocol.resources import Author
from e2e.harness import Backend, database_of, running_backend
from faults.machines import Machine, make_machines
from faults.record import pages
from faults.site import sign_up
from faults.sizes import FULL, MARKS, seeded

pytestmark = MARKS
MACHINES = 1_000 if FULL else 30
#: After each the attempts of the next one come more rarely: none is stable for a minute in between.
RESTARTS = 3 if FULL else 1
#: The row's promise: from the new backend's start until the last machine is connected.
BACK_S = 120.0
#: By default it is 100,000 that a backend keeps for a machine.
BACKLOG = 100_000 if FULL else 300


async def all_of(machines: list[Machine], *, connected: bool, within_s: float) -> None:
    with anyio.fail_after(within_s):
        for machine in machines:
            await machine.until(connected=connected)


def state_of(backend: Backend, message_id: str) -> str:
    [delivery] = backend.call("GET", f"/v1/messages/{message_id}/trace")["deliveries"]
    return delivery["state"]


@seeded
@pytest.mark.timeout(900)
async def test_row20_after_restarts_of_the_backend_all_machines_are_back_and_nothing_is_lost(
    tmp_path: Path, seed: int
) -> None:
    home = tmp_path / "server"
    token = sign_up(home)
    machines = make_machines(database_of(home), MACHINES)
    sent: list[str] = []
    rounds = RESTARTS + 1

    with running_backend(home, token=token) as backend:

        def post_to_all() -> None:
            sent.extend(backend.send(machine.agent, "hello")["id"] for machine in machines)

        async with anyio.create_task_group() as tasks:
            for machine in machines:
                await tasks.start(machine.run, backend.url)
            await all_of(machines, connected=True, within_s=BACK_S)
            for _ in range(RESTARTS):
                # Some of these are delivered, some begun, some neither when it is told to end.
                await run_sync(post_to_all)
                await run_sync(backend.process.stop)
                await all_of(machines, connected=False, within_s=BACK_S)
                began = time.monotonic()
                await run_sync(backend.start_again)
                await all_of(machines, connected=True, within_s=BACK_S - (time.monotonic() - began))
            await run_sync(post_to_all)
            with anyio.fail_after(BACK_S):
                for machine in machines:
                    await machine.until_all_is_told(rounds)
            tasks.cancel_scope.cancel()
        states = await run_sync(lambda: {state_of(backend, message) for message in sent})
    assert states == {"done"}
    # None twice, and none to another machine.
    handled = [delivery for machine in machines for delivery in machine.handled]
    assert len(set(handled)) == len(handled) == len(sent) == MACHINES * rounds
    assert all(len(machine.handled) == rounds for machine in machines)


async def post(backend: Backend, agent: str, count: int) -> dict[int, DeliveryId]:
    """So many messages to the agent, several at once: the deliveries that were taken, by their order."""
    taken: dict[int, DeliveryId] = {}
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            answer = await client.post(f"/v1/agents/{agent}/messages", json={"text": f"{number}"})
            assert answer.status_code == 201, answer.text
            [delivery] = answer.json()["deliveries"]
            taken[delivery["seq"]] = delivery["id"]

    headers = {"Authorization": f"Bearer {backend.token}"}
    async with (
        httpx2.AsyncClient(base_url=backend.url, headers=headers, timeout=60) as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(8):
            tasks.start_soon(some)
    return taken


def fill(database: Path, agent: str, count: int) -> dict[int, DeliveryId]:
    """As `post`, in the database, which no backend has open."""
    connection = connect(database)
    user = users.by_email(connection, "ana@example.com")
    assert user
    author = Author(type="user", id=user.id, name=user.name)
    taken: dict[int, DeliveryId] = {}
    while left := min(500, count - len(taken)):
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(left):
            one = Submission(user.id, author, f"{len(taken)}", AgentId(agent))
            [delivery] = submit(connection, one, BACKLOG).message.deliveries
            taken[delivery.seq] = delivery.id
        connection.execute("COMMIT")
    connection.close()
    return taken


@pytest.mark.timeout(1_500)
async def test_row44_a_backlog_up_to_its_cap_is_handled_whole_in_order_and_each_once(
    tmp_path: Path,
) -> None:
    home = tmp_path / "server"
    token = sign_up(home)
    [machine] = make_machines(database_of(home), 1)
    # Most of them not by requests, which take longer than the rest of the row.
    taken = fill(database_of(home), machine.agent, BACKLOG - 200)
    cap = str(BACKLOG)
    with running_backend(home, token=token, CLOUDAGENT_BACKEND_BACKLOG_CAP=cap) as backend:
        taken |= await post(backend, machine.agent, BACKLOG - len(taken))
        path = f"/v1/agents/{machine.agent}/messages"
        refused = await run_sync(lambda: backend.http.post(path, json={"text": "one more"}))
        assert refused.status_code == 429
        assert f"{BACKLOG:,} messages already wait for host0" in refused.json()["detail"]
        async with anyio.create_task_group() as tasks:
            await tasks.start(machine.run, backend.url)
            with anyio.fail_after(120 + BACKLOG / 100):
                await machine.until_all_is_told(BACKLOG)
            # There is room again.
            taken |= await post(backend, machine.agent, 1)
            with anyio.fail_after(60):
                await machine.until_all_is_told(BACKLOG + 1)
            tasks.cancel_scope.cancel()
        assert machine.handled == [id_ for _, id_ in sorted(taken.items())]
        [conversation] = await run_sync(lambda: list(pages(backend, "/v1/conversations")))
        traces = await run_sync(
            lambda: list(pages(backend, f"/v1/conversations/{conversation['id']}/traces"))
        )
    assert len(traces) == BACKLOG + 1
    assert {trace["state"] for trace in traces} == {"done"}
