"""Who follows which person's events: the kept log, and the text that runs are writing right now.

A follower holds a cursor and pulls; nothing is queued for it. Kept events are read from the log,
live text is cut from the one copy that is held per run. So a slow follower costs no memory and
makes nobody wait: it gets more at once, later.
"""

import json
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from cloudagent_backend.store import clock, events
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.events import EventRow
from cloudagent_protocol.frames import Delta
from cloudagent_protocol.ids import AgentId, ConversationId, RunId, UserId
from cloudagent_protocol.resources import EventType

#: Log lines read at once.
_BATCH: Final = 200
#: Characters of an unfinished block that are held; the rest is seen when the block is finished.
_MAX_PARTIAL: Final = 1_000_000


@dataclass
class _LiveRun:
    """A run that is alive, and what is known of the block that it is writing."""

    run_id: RunId
    agent_id: AgentId
    conversation_id: ConversationId
    block: int = 0
    text: str = ""

    def grow(self, delta: Delta) -> bool:
        """Append what follows what is there; overlaps are cut, gaps ignored. Whether it grew."""
        if delta.block > self.block and delta.offset == 0:
            self.block, self.text = delta.block, ""
        have = len(self.text)
        if delta.block != self.block or delta.offset > have or have >= _MAX_PARTIAL:
            return False
        news = delta.text[have - delta.offset :]
        self.text += news
        return bool(news)

    def finish_block(self, block: int) -> None:
        if block >= self.block:
            self.block, self.text = block + 1, ""


@dataclass(eq=False)
class _Follower:
    log_grew: bool = True
    text_grew: bool = True
    #: What it was given of each live run: block and length.
    given: dict[RunId, tuple[int, int]] = field(default_factory=dict[RunId, tuple[int, int]])
    _woken: anyio.Event = field(default_factory=anyio.Event)

    def wake(self, *, log: bool = False, text: bool = False) -> None:
        if (log and not self.log_grew) or (text and not self.text_grew):
            self.log_grew |= log
            self.text_grew |= text
            self._woken.set()

    def end(self) -> None:
        self._woken.set()

    async def wait(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            await self._woken.wait()
        self._woken = anyio.Event()


class Fanout:
    """All followers of this process.

    Args:
        coalesce_s: deltas of a run are put together over this time.
        ping_s: time between two pings.
    """

    def __init__(self, database: Database, *, coalesce_s: float, ping_s: float) -> None:
        self._database = database
        self._coalesce_s = coalesce_s
        self._ping_s = ping_s
        self._followers: dict[UserId, set[_Follower]] = {}
        self._live: dict[UserId, dict[RunId, _LiveRun]] = {}
        #: Whether the server stops; nobody is served any more.
        self.closed = False

    # --- what happens ---

    def notify(self, user_id: UserId) -> None:
        """The user's log has grown."""
        for follower in self._followers.get(user_id, ()):
            follower.wake(log=True)

    def run_started(
        self, user_id: UserId, run_id: RunId, agent_id: AgentId, conversation_id: ConversationId
    ) -> None:
        """From now on the run's deltas count; asking twice is fine."""
        runs = self._live.setdefault(user_id, {})
        runs.setdefault(run_id, _LiveRun(run_id, agent_id, conversation_id))

    def block_finished(self, user_id: UserId, run_id: RunId, block: int) -> None:
        if run := self._live.get(user_id, {}).get(run_id):
            run.finish_block(block)

    def run_finished(self, user_id: UserId, run_id: RunId) -> None:
        runs = self._live.get(user_id, {})
        runs.pop(run_id, None)
        if not runs:
            self._live.pop(user_id, None)

    def delta(self, user_id: UserId, delta: Delta) -> None:
        """A run writes; of an agent that does not own the run, it is ignored."""
        run = self._live.get(user_id, {}).get(delta.run_id)
        if run is None or run.agent_id != delta.agent_id or not run.grow(delta):
            return
        for follower in self._followers.get(user_id, ()):
            follower.wake(text=True)

    def following(self, user_id: UserId) -> int:
        """How many follow the user's log."""
        return len(self._followers.get(user_id, ()))

    def shutdown(self) -> None:
        """Every following ends."""
        self.closed = True
        for followers in self._followers.values():
            for follower in followers:
                follower.end()

    # --- who looks on ---

    async def follow(self, user_id: UserId, after: int | None) -> AsyncGenerator[EventRow]:
        """The user's events after the cursor (null: from now on), for ever; close it when done.

        The first is a ping whose id is where following starts, or `resync` if `after` is no longer
        kept or was never given out. Events that are not kept carry the id of the last kept one.
        """
        follower = _Follower()
        self._followers.setdefault(user_id, set()).add(follower)
        try:
            extent = await self._database.read(lambda c: events.extent(c, user_id))
            cursor = extent.last if after is None else after
            fits = extent.trimmed <= cursor <= extent.last
            cursor = cursor if fits else extent.last
            yield _passing(cursor, EventType.PING if fits else EventType.RESYNC)
            async for row in self._follow(user_id, follower, cursor):
                yield row
        finally:
            self._followers[user_id].discard(follower)
            if not self._followers[user_id]:
                del self._followers[user_id]

    async def _follow(
        self, user_id: UserId, follower: _Follower, cursor: int
    ) -> AsyncGenerator[EventRow]:
        ping_at = time.monotonic() + self._ping_s
        text_at = 0.0
        while not self.closed:
            if follower.log_grew:
                follower.log_grew = False
                start = cursor
                rows = await self._database.read(
                    lambda c, start=start: events.after(c, user_id, start, _BATCH)
                )
                for row in rows:
                    cursor = row.id
                    yield row
                if len(rows) == _BATCH:
                    follower.log_grew = True
                    continue
            if follower.text_grew and time.monotonic() >= text_at:
                follower.text_grew = False
                for row in self._news(user_id, follower, cursor):
                    yield row
                text_at = time.monotonic() + self._coalesce_s
            if time.monotonic() >= ping_at:
                yield _passing(cursor, EventType.PING)
                ping_at = time.monotonic() + self._ping_s
            until = min(text_at, ping_at) if follower.text_grew else ping_at
            await follower.wait(max(0.0, until - time.monotonic()))

    def _news(self, user_id: UserId, follower: _Follower, cursor: int) -> Iterator[EventRow]:
        """What live runs have written since this follower looked last."""
        runs = list(self._live.get(user_id, {}).values())
        given, follower.given = follower.given, {}
        for run in runs:
            block, offset = given.get(run.run_id, (run.block, 0))
            offset = offset if block == run.block else 0
            follower.given[run.run_id] = (run.block, len(run.text))
            if text := run.text[offset:]:
                data = {
                    "run_id": run.run_id,
                    "conversation_id": run.conversation_id,
                    "agent_id": run.agent_id,
                    "block": run.block,
                    "offset": offset,
                    "text": text,
                }
                yield _passing(cursor, EventType.RUN_DELTA, data)


def _passing(cursor: int, event: EventType, data: dict[str, Any] | None = None) -> EventRow:
    """An event that is not kept."""
    text = json.dumps(data or {}, ensure_ascii=False, separators=(",", ":"))
    return EventRow(cursor, event.value, clock.now_us(), text)
