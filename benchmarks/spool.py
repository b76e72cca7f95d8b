"""The daemon's inbox: deliveries a second that get onto its disk, against bare SQLite.

A backend that has a backlog sends as many at once as the window has, so the batch is 32: the spool
takes them as frames and keeps them in one transaction, the reference appends the same texts.
"""

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.delivery import commits
from benchmarks.measure import Figure, rate
from benchmarks.servers import WINDOW
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_protocol.frames import Deliver, DeliveredMessage, encode
from cloudagent_protocol.ids import (
    AgentId,
    new_conversation_id,
    new_delivery_id,
    new_message_id,
)
from cloudagent_protocol.resources import AgentSpec, Author

ROUNDS = 5
SECONDS = 1.0


def run() -> list[Figure]:
    text = encode(_deliver(1))
    with tempfile.TemporaryDirectory(prefix="ca-") as name:
        folder = Path(name)
        pairs = [
            (
                asyncio.run(_received(folder / f"state{number}.db")),
                commits(folder / f"bare{number}.db", WINDOW, text),
            )
            for number in range(ROUNDS)
        ]
    return [
        rate(
            "the daemon's inbox",
            f"SQLite, {WINDOW} rows a commit",
            pairs,
            goal=">= 0.5x",
            min_ratio=0.5,
        )
    ]


async def _received(path: Path) -> float:
    async with open_spool(path) as spool:
        return await _received_by(spool)


async def _received_by(spool: Spool) -> float:
    frames = [_deliver(number) for number in range(1, WINDOW + 1)]
    spent, last = 0.0, 0
    while spent < SECONDS:
        for frame in frames:  # made before the clock starts: decoding is the link's part
            last += 1
            frame.seq, frame.delivery_id = last, new_delivery_id()
        came = [encode(frame) for frame in frames]  # the backend's part
        began = time.perf_counter()
        await spool.receive(frames, last, came)
        spent += time.perf_counter() - began
    return last / spent


def _deliver(number: int) -> Deliver:
    message = DeliveredMessage(
        id=new_message_id(),
        conversation_id=new_conversation_id(),
        author=Author(type="user", id="usr_1", name="ana"),
        text=f"message {number}",
        created_at=datetime.now(UTC),
    )
    agent = AgentSpec(id=AgentId("agent_1"), name="ada", driver="claude_code")
    return Deliver(delivery_id=new_delivery_id(), delivery_seq=number, agent=agent, message=message)
