"""What people ask of the daemon itself, until it is done; it outlives a connection."""

from collections import deque
from typing import Final

import anyio

from cloudagent_protocol.frames import Command

#: Commands that may wait for the one that is being done; further ones are refused.
MOST: Final = 4


class Commands:
    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._news = anyio.Event()

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
