"""Who has work: a hint that may be lost, because whoever listens also looks by itself."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T", bound=Hashable)


class Hints(Generic[T]):
    """A set with a bell; many hints at the same one are one."""

    def __init__(self) -> None:
        self._hinted: dict[T, None] = {}
        self._rung = anyio.Event()

    def hint(self, at: T) -> None:
        self._hinted[at] = None
        self._rung.set()

    async def take(self, timeout_s: float | None = None) -> list[T]:
        """What was hinted at, in its order, waiting for the first; nothing if none came in time."""
        with anyio.move_on_after(timeout_s):
            await self._rung.wait()
        self._rung = anyio.Event()
        hinted, self._hinted = self._hinted, {}
        return list(hinted)
