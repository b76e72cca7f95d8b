"""Waits for whichever comes first."""

from collections.abc import Awaitable, Callable, Iterable

import anyio


async def any_of(events: Iterable[anyio.Event]) -> None:
    await first_of(*(event.wait for event in events))


async def first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Returns when the first of them does."""
    async with anyio.create_task_group() as tasks:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            tasks.cancel_scope.cancel()

        for one in waits:
            tasks.start_soon(wait, one)
