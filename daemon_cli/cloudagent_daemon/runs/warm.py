"""Processes that stay when their turn is over, each for the next message of its conversation.

`Shelf` is the rule, without I/O: one per agent and conversation, the one used longest ago goes first.
`Warm` keeps their lives: each ends after its time, or when it is not wanted any more (decisions/0024).
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

import anyio
import anyio.abc

from cloudagent_daemon.runs.launching import Held, Print
from cloudagent_daemon.waits import any_of
from cloudagent_protocol.ids import AgentId, ConversationId

logger = logging.getLogger(__name__)

Key: TypeAlias = tuple[AgentId, ConversationId]
T = TypeVar("T")
#: How long a message waits for a process of its conversation that is just being ended.
LEAVE_S: Final = 30.0


class Shelf(Generic[T]):
    """What is kept, at most so many.

    Args:
        most: 0 keeps nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[Key, T] = {}

    def put(self, key: Key, item: T) -> list[T]:
        """Keeps it, in place of another of the same key; returns what is kept no more for it."""
        gone = [old] if (old := self._kept.pop(key, None)) is not None else []
        self._kept[key] = item
        while len(self._kept) > self._most:
            gone.append(self._kept.pop(next(iter(self._kept))))
        return gone

    def lay(self, key: Key, item: T) -> bool:
        """Keeps it if there is room and none of its key; it is the first that makes way for another."""
        if key in self._kept or len(self._kept) >= self._most:
            return False
        self._kept = {key: item, **self._kept}
        return True

    def take(self, key: Key) -> T | None:
        return self._kept.pop(key, None)

    def drop(self, key: Key, item: T) -> None:
        """Keeps this one no more, if it is still there."""
        if self._kept.get(key) is item:
            del self._kept[key]

    def clear(self) -> list[T]:
        """Keeps nothing; returns what it had."""
        gone = list(self._kept.values())
        self._kept.clear()
        return gone

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def has_room_for(self, key: Key, instead_of: T | None = None) -> bool:
        """Whether `lay` would keep it, once that other one has gone."""
        others = {one: item for one, item in self._kept.items() if item is not instead_of}
        return key not in others and len(others) < self._most

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def items(self) -> list[T]:
        return list(self._kept.values())


@dataclass(frozen=True)
class Waits:
    """A process that waits for its conversation's next message."""

    agent_id: AgentId
    conversation_id: ConversationId
    pid: int
    #: What was started: its first word.
    program: str
    #: Unix seconds.
    since: float
    until: float
    #: It was started for a message that has not come: a person looks at the conversation.
    ahead: bool


class _Kept:
    def __init__(self, key: Key, held: Held, print_: Print, stays_s: float) -> None:
        self.key = key
        self.held = held
        self.print = print_
        self.stays_s = stays_s
        self.since = time.time()
        #: Set when it is not kept any more, and whether somebody has it then.
        self.out = anyio.Event()
        self.taken = False


class Warm:
    """The processes of one daemon, and those of them that wait for a message.

    Args:
        warm_s: how long one waits; 0: none is kept.
        most: how many may wait at once.
    """

    def __init__(self, warm_s: float, most: int) -> None:
        self._warm_s = warm_s
        self._shelf: Shelf[_Kept] = Shelf(most if warm_s else 0)
        self._keeps = bool(warm_s and most)
        self._barred = False
        self._leaving: dict[Key, _Kept] = {}
        #: What was started for a message that has not come, and what is just being started so.
        self._ahead: _Kept | None = None
        self._starting: dict[Key, anyio.Event] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        #: Set, and replaced, when another one waits, or one does no more.
        self.changed = anyio.Event()

    async def serve(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Holds the processes until cancelled, which ends them."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            await anyio.sleep_forever()

    @property
    def tasks(self) -> anyio.abc.TaskGroup:
        """Where processes live."""
        assert self._tasks is not None, "it is not serving"
        return self._tasks

    @property
    def keeps(self) -> bool:
        """Whether one would be kept now."""
        return self._keeps and not self._barred

    @property
    def waiting(self) -> int:
        """How many wait for a message."""
        return len(self._shelf)

    @property
    def all(self) -> list[Waits]:
        """Those that wait, the one that makes way first in front."""
        return [
            Waits(
                *kept.key,
                pid=kept.held.worker.child.pid,
                program=kept.held.worker.plan.command.argv[0],
                since=kept.since,
                until=kept.since + kept.stays_s,
                ahead=not kept.held.worker.worked,
            )
            for kept in self._shelf.items
        ]

    def put(self, key: Key, held: Held, print_: Print) -> bool:
        """Keeps a process whose turn is over; returns whether it does. It is then not the caller's."""
        if not self.keeps or not held.worker.usable:
            return False
        kept = _Kept(key, held, print_, self._warm_s)
        for other in self._shelf.put(key, kept):
            self._send_off(other, "too many")
        self.tasks.start_soon(self._mind, kept)
        self._notify()
        return True

    async def start_ahead(
        self, key: Key, stays_s: float, start: Callable[[], Awaitable[tuple[Held, Print]]]
    ) -> bool:
        """Keeps a process that no message has come for, if there is room; returns whether it does.

        It takes nobody's place but that of another such one, of which there is one at a time. A
        message that comes while it is being started waits for it.

        Raises:
            Exception: whatever `start` raises; nothing is kept then.
        """
        if self._starting or key in self._shelf or not self.keeps:
            return False
        if not self._shelf.has_room_for(key, self._ahead):
            return False
        self._starting[key] = started = anyio.Event()
        try:
            if self._ahead:
                self._shelf.drop(self._ahead.key, self._ahead)
                self._send_off(self._ahead, "somebody looks at another conversation")
            if not await self._has_left(key):
                return False
            held, print_ = await start()
            kept = self._ahead = _Kept(key, held, print_, stays_s)
            wanted = self.keeps and self._starting.get(key) is started
            laid = wanted and self._shelf.lay(key, kept)
            self.tasks.start_soon(self._mind, kept)
            if not laid:
                self._send_off(kept, "its place is taken")
            self._notify()
            return laid
        finally:
            self._starting.pop(key, None)
            started.set()

    async def take(self, key: Key, print_: Print) -> Held | None:
        """The process of this conversation, if there is one and it is what would be started now.

        Any other one of the conversation is gone when this returns: two would overwrite each other's
        session.
        """
        if starting := self._starting.get(key):
            with anyio.move_on_after(LEAVE_S):
                await starting.wait()
            self._starting.pop(key, None)  # if it comes later than that, it comes too late
        kept = self._shelf.take(key)
        if kept:
            self._notify()
        if kept and kept.print == print_ and kept.held.worker.usable:
            kept.taken = True
            kept.out.set()
            if self._ahead is kept:
                self._ahead = None
            return kept.held
        if kept:
            self._send_off(kept, "its agent's settings are others now, or it has ended")
        await self._has_left(key)
        return None

    async def _has_left(self, key: Key) -> bool:
        """Whether what is being ended of this conversation is gone; waits for it."""
        if leaving := self._leaving.get(key):
            with anyio.move_on_after(LEAVE_S):
                await leaving.held.worker.gone.wait()
            return leaving.held.worker.gone.is_set()
        return True

    def clear(self, why: str) -> None:
        """Ends all that wait; returns before they are gone."""
        for kept in self._shelf.clear():
            self._send_off(kept, why)

    def bar(self, why: str | None) -> None:
        """While there is a reason, ends all that wait, and keeps none of those whose turns end."""
        self._barred = why is not None
        if why is not None:
            self.clear(why)

    def close(self) -> None:
        """Keeps nothing any more."""
        self._keeps = False
        self.clear("the daemon ends")

    def _send_off(self, kept: _Kept, why: str) -> None:
        about = {"action": "warm_end", "agent_id": kept.key[0], "pid": kept.held.worker.child.pid}
        logger.info("a warm process is ended: %s", why, extra=about)
        self._leaving[kept.key] = kept
        kept.out.set()
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def _mind(self, kept: _Kept) -> None:
        """Until somebody takes it, or its time is over, or it goes by itself."""
        with anyio.move_on_after(kept.stays_s):
            await any_of([kept.out, kept.held.worker.gone])
        if self._ahead is kept:
            self._ahead = None
        if kept.taken:
            return
        self._shelf.drop(kept.key, kept)
        self._notify()
        self._leaving[kept.key] = kept
        try:
            with anyio.CancelScope(shield=True):
                await kept.held.worker.close()
        finally:
            if self._leaving.get(kept.key) is kept:
                del self._leaving[kept.key]
