"""Takes connections, and goes on when one cannot be taken: a process may be out of descriptors."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
import anyio.abc

logger = logging.getLogger(__name__)

#: Who knocks meanwhile waits in the kernel's queue.
PAUSE_S: Final = 0.2


async def serve(
    listener: anyio.abc.SocketListener,
    connected: Callable[[anyio.abc.SocketStream], Coroutine[Any, Any, None]],
) -> None:
    """As `listener.serve`, for ever."""
    refused = False
    async with anyio.create_task_group() as tasks:
        while True:
            try:
                stream = await listener.accept()
            except anyio.BrokenResourceError as error:
                if not refused:
                    why = error.__cause__
                    logger.error("a connection waits: %s", why, extra={"action": "accept"})  # noqa: TRY400 - the trace tells nothing more
                refused = True
                await anyio.sleep(PAUSE_S)
            else:
                refused = False
                tasks.start_soon(connected, stream)
