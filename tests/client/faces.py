"""Both clients behind one face, so that one suite holds for both."""

import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from cloudagent import AsyncCloudAgent, AsyncTurn, CloudAgent

_WRAPPED = ("cloudagent.async_client",)


class Blocking:
    """An object of the asynchronous client, used as if it were its synchronous twin."""

    def __init__(self, inner: Any, portal: BlockingPortal) -> None:
        self._inner = inner
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if callable(value):
            return lambda *args, **kwargs: self._call(value, *args, **kwargs)
        return self._face(value)

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(aiter(self._inner))

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            value = function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value

        return self._face(self._portal.call(call))

    def _face(self, value: Any) -> Any:
        if isinstance(value, AsyncIterator) and not isinstance(value, AsyncTurn):
            return self._iterate(value)
        of_client = type(value).__module__ in _WRAPPED
        return Blocking(value, self._portal) if of_client else value

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self._portal.call(following)
            if not more:
                return
            yield self._face(item)


@contextmanager
def client(kind: str, url: str, **options: Any) -> Generator[Any]:
    """A `sync` or `async` client, both used without `await`."""
    if kind == "sync":
        with CloudAgent(url, "cat_test", **options) as made:
            yield made
        return
    with start_blocking_portal() as portal:
        inner = AsyncCloudAgent(url, "cat_test", **options)
        try:
            yield Blocking(inner, portal)
        finally:
            portal.call(inner.aclose)
