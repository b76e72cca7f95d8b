"""What people ask of the daemon itself, until it is done, and where they look; it outlives a connection."""

from collections import deque
from typing import Final

import anyio

from cloudagent_protocol.frames import Command, Expect

#: Commands that may wait for the one that is being done; further ones are refused.
MOST: Final = 4


class Commands:
    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._news = anyio.Event()
        self._expected: Expect | None = None
        self._looks = anyio.Event()

    def put(self, command: Command) -> bool:
        """Returns whether there was room for it."""
        if len(self._waiting) >= MOST:
            return False
        self._waiting.append(command)
        self._news.set()
        return True

    async def take(self) -> Command:
        """The oldest, once there is one; for one taker."""
        while not self._waiting:
            self._news = anyio.Event()
            await self._news.wait()
        return self._waiting.popleft()

    def expect(self, expected: Expect) -> None:
        """A person looks at this conversation now; where they looked before is of no interest."""
        self._expected = expected
        self._looks.set()

    async def expected(self) -> Expect:
        """Where a person looks, once one does anew; for one taker."""
        while self._expected is None:
            self._looks = anyio.Event()
            await self._looks.wait()
        expected, self._expected = self._expected, None
        return expected
