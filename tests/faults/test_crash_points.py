"""Every point at which the two sides can be killed is visited: the points name themselves.

A new point that no ordinary message passes, or after which something is lost or done twice, fails
here without anyone having written a test for it.
"""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import anyio
import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

from cloudagent_backend import crash as backend_crash
from cloudagent_daemon import crash as daemon_crash
from cloudagent_protocol.frames import Answer, FindAgent, Query, Send
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    MessageId,
    new_epoch,
    new_message_id,
    new_run_id,
)
from fakes.daemon import connection
from faults.history import Reply, Spawned, maybe_repeated
from faults.proxy import Latency
from faults.site import Site, count, site
from faults.sizes import AGENTS, DEADLINE_S, MARKS, MESSAGES, ROUNDS, SEEDS, seeded

pytestmark = MARKS
#: Rows 1 to 3 and 5 of the matrix.
ROWS = {
    "after_receive": "row1-before-persist",
    "after_persist": "row2-after-persist-before-ack",
    "after_ack": "row3-after-ack",
    "before_spawn": "row3-before-spawn",
    "after_spawn": "row5-after-spawn",
    "after_send": "row5-after-send",
    "before_finish": "row5-before-finish",
}
#: From here on a process of an agent has begun: what it did may be done again, if that is told.
BEGUN = {"after_spawn", "after_send", "before_finish"}
#: Passed by messages with files only: tests/e2e/test_files.py.
OF_FILES = {"after_copy", "after_bring"}
#: Passed by agents that message each other, and by the person who lets them go on.
CHAINS = [p for p in backend_crash.points() if p.startswith(("find_", "decide_"))]
#: Longer than the backend waits for an ack before it notes that a delivery was sent.
LATE_S = 1.5
#: The quick selection visits each of the backend's points, there are many, with few messages.
SHARE = max(2, MESSAGES // 6)


def crash_in_rounds(place: Site, point: str) -> None:
    """In each round a life that crashes at its first chance, and one that cleans up."""
    for number in range(ROUNDS):
        share = MESSAGES // ROUNDS + (number < MESSAGES % ROUNDS)
        place.crash(point, share)
        with place.daemon():
            place.settle(deadline_s=DEADLINE_S)


@seeded
@pytest.mark.parametrize(
    "point",
    [pytest.param(p, id=ROWS.get(p, p)) for p in get_args(daemon_crash.Point) if p not in OF_FILES],
)
def test_a_daemon_killed_at_any_point_repeats_only_what_had_begun_and_says_so(
    tmp_path: Path, point: str, seed: int
) -> None:
    with site(tmp_path, AGENTS) as place:
        crash_in_rounds(place, point)
        history = place.judge(repeats=point in BEGUN)
        assert count(history, Reply) == MESSAGES
        if point not in BEGUN:
            assert count(history, Spawned) == MESSAGES
        # At most the runs that were alive at each crash.
        assert len(maybe_repeated(history)) <= AGENTS * ROUNDS


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("point", [p for p in backend_crash.points() if p not in CHAINS])
def test_row19_a_backend_killed_at_any_point_loses_and_repeats_nothing(
    tmp_path: Path, point: str, seed: int
) -> None:
    with site(tmp_path, AGENTS, proxied=True) as place:
        assert place.proxy
        for number in range(min(ROUNDS, 3)):
            place.backend.process.kill()
            place.backend.start_again(CLOUDAGENT_CRASH_AT=point)
            # Nobody is there to take them: they are leased when the machine comes.
            place.post(SHARE, acked=False)
            # That it was sent is only noted by itself where the machine's ack takes its time.
            late = Latency(LATE_S if point.startswith("sent") else 0.0)
            with (
                place.proxy.toxic(late, "up"),
                place.daemon(wait_for=""),
                contextlib.suppress(ConnectionClosed, OSError),
            ):
                place.settle(deadline_s=DEADLINE_S)
            assert place.backend.process.wait() == 137
            place.backend.start_again()
            place.post_again()
            with place.daemon():
                place.settle(deadline_s=DEADLINE_S)
            history = place.judge()
            assert count(history, Spawned) == count(history, Reply) == SHARE * (number + 1)


def test_a_backend_killed_at_any_point_of_a_chain_makes_one_conversation_and_one_decision(
    tmp_path: Path,
) -> None:
    with site(tmp_path, 2, CLOUDAGENT_BACKEND_CHAIN_TURNS="1") as place:
        for point in CHAINS:
            place.backend.process.kill()
            place.backend.start_again(CLOUDAGENT_CRASH_AT=point, CLOUDAGENT_BACKEND_CHAIN_TURNS="1")
            visit = killed_in_a_search if point.startswith("find_") else killed_in_a_decision
            visit(place, point)


def survive(place: Site) -> None:
    assert place.backend.process.wait() == 137
    place.backend.start_again(CLOUDAGENT_BACKEND_CHAIN_TURNS="1")


def killed_in_a_search(place: Site, point: str) -> None:
    asker = place.places[0].agent
    begun = place.backend.send(asker, f"ask the other one, {point}")["id"]
    with contextlib.suppress(ConnectionClosed, OSError, AssertionError):
        anyio.run(find, place, asker, begun)
    survive(place)
    assert between(place) in ([], [found := anyio.run(find, place, asker, begun)])
    assert between(place) == [found]


def killed_in_a_decision(place: Site, point: str) -> None:
    chain = anyio.run(pause, place)
    with contextlib.suppress(httpx2.TransportError):
        decide(place, chain, point)
    survive(place)
    # The same request once more: whether it was kept or not, it counts once.
    assert decide(place, chain, point).json()["turns_allowed"] == 2
    assert place.backend.call("GET", f"/v1/chains/{chain}")["turns_allowed"] == 2


def between(place: Site) -> list[str]:
    """The conversations of both agents with each other."""
    both = {one.agent for one in place.places}
    listed = place.backend.call("GET", "/v1/conversations")["data"]
    return [one["id"] for one in listed if set(one["agent_ids"]) == both]


def decide(place: Site, chain: str, key: str) -> httpx2.Response:
    return place.backend.http.post(
        f"/v1/chains/{chain}",
        json={"decision": "continue"},
        headers={"Idempotency-Key": f"{place.home}/{key}"},
    )


async def find(place: Site, agent: str, caused_by: str) -> str:
    """Asks where a message to the other agent goes, as the machine does for its agent."""
    other = next(one.agent for one in place.places if one.agent != agent)
    async with connection(place.backend.url.replace("http", "ws", 1), place.key) as daemon:
        await daemon.greet(instance_id=new_epoch())
        query = FindAgent(agent_id=AgentId(agent), wanted=other, caused_by=MessageId(caused_by))
        await daemon.send(Query(id=1, query=query))
        while not isinstance(answer := await daemon.receive(), Answer):
            pass
        assert answer.data, answer.error
        return answer.data["conversation_id"]


async def pause(place: Site) -> str:
    """A chain of two messages to the other agent, of which only one may be delivered; its id."""
    asker = place.places[0]
    begun = place.backend.send(asker.agent, "ask twice")["id"]
    conversation = await find(place, asker.agent, begun)
    async with connection(place.backend.url.replace("http", "ws", 1), place.key) as daemon:
        await daemon.greet(instance_id=new_epoch())
        for text in ("one", "two"):
            frame = Send(
                message_id=new_message_id(),
                agent_id=AgentId(asker.agent),
                conversation_id=ConversationId(conversation),
                run_id=new_run_id(),
                text=text,
                caused_by=MessageId(begun),
                sent_at=datetime.now(UTC),
            )
            await daemon.send(frame)
        while daemon.acked < daemon.seq:
            await daemon.receive()
    assert place.backend.call("GET", f"/v1/chains/{begun}")["state"] == "paused"
    return begun
