"""Writing to a disk that may be full: what must be kept is tried until it is."""

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio
from anyio.to_thread import run_sync

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Between two attempts.
RETRY_S: Final = 1.0
#: Full, over quota, over the size that a file may have, or mounted read-only: all may pass.
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class NotKeptError(Exception):
    """The disk did not take a change, and nothing of it was kept; `str()` says why."""


class Keeper:
    """Tries writes again, and knows whether any is being refused.

    Args:
        on_change: told why the disk takes nothing, and None when it does again.
    """

    def __init__(self, on_change: Callable[[str | None], None] = lambda _: None) -> None:
        self._on_change = on_change
        self._refused: dict[object, str] = {}

    async def kept(self, write: Callable[[], Awaitable[T]], retry_s: float = RETRY_S) -> T:
        """What `write` returns, as soon as the disk takes it; other errors are raised.

        It has no deadline: what was promised is not given up for want of room.
        """
        token = object()
        try:
            while True:
                try:
                    return await write()
                except (OSError, NotKeptError) as error:
                    if isinstance(error, OSError) and error.errno not in _PASSING:
                        raise
                    self._refuse(token, str(error))
                await anyio.sleep(retry_s)
        finally:
            self._accept(token)

    async def in_thread(self, write: Callable[..., T], *arguments: Any) -> T:
        """As `kept`, of what blocks."""
        return await self.kept(lambda: run_sync(write, *arguments))

    def _refuse(self, token: object, why: str) -> None:
        if not self._refused:
            logger.error("%s; trying again until it is kept", why, extra={"action": "disk_full"})
            self._on_change(why)
        self._refused[token] = why

    def _accept(self, token: object) -> None:
        if self._refused.pop(token, None) and not self._refused:
            logger.info("the disk takes writes again", extra={"action": "disk"})
            self._on_change(None)
