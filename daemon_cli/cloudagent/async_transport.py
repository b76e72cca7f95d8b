"""Moves bytes for the asynchronous client; what to send and what it means is decided elsewhere.

`transport.py` is the same without `await`. A change here belongs there too.
"""

from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import httpx2

from cloudagent.calls import Call, Flow, PageCall
from cloudagent.config import Settings
from cloudagent.cursor import SILENCE_S, Cursor
from cloudagent.exchange import Attempts, client_options, read_answer, url_of
from cloudagent_protocol.resources import Event

T = TypeVar("T")
_PIECE_BYTES: Final = 262_144


class AsyncTransport:
    """One connection pool to one server, for the tasks of one event loop."""

    def __init__(self, settings: Settings, http: httpx2.AsyncClient | None = None) -> None:
        self._settings = settings
        self._owned = http is None
        self._http = http or httpx2.AsyncClient(**client_options(settings))
        self._authorization = {"Authorization": f"Bearer {settings.token}"}

    async def aclose(self) -> None:
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def run(self, call: Call[T]) -> T:
        """The answer to a request, tried again where that is safe.

        Raises:
            CloudAgentError: see errors.py.
        """
        attempts = Attempts(self._settings)
        while True:
            try:
                response = await self._http.request(
                    call.method,
                    url_of(self._settings, call.path),
                    params=call.params,
                    content=_pieces(call.content)
                    if isinstance(call.content, Path)
                    else call.content,
                    headers=call.headers() | await _length(call.content) | self._authorization,
                )
            except httpx2.TransportError as error:
                delay_s = attempts.broken(error)
            else:
                if response.is_success:
                    return read_answer(call, response)
                delay_s = attempts.refused(response)
            await anyio.sleep(delay_s)

    async def flow(self, flow: Flow[T]) -> T:
        """The result of a flow; what its calls raise is raised from here."""
        answer: Any = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = await self.run(call)

    async def items(self, pages: PageCall[T]) -> AsyncGenerator[T, None]:
        """Everything a list holds; each page is fetched when it is needed."""
        cursor: str | None = None
        while True:
            page = await self.run(pages(cursor))
            for item in page.data:
                yield item
            if page.next_cursor is None or not page.data:
                return
            cursor = page.next_cursor

    async def follow(self, cursor: Cursor) -> AsyncGenerator[Event, None]:
        """The event log from a cursor on, for ever, over as many streams as it takes.

        Raises:
            CloudAgentError: see errors.py.
        """
        while True:
            try:
                async with self._http.stream(
                    "GET",
                    url_of(self._settings, "/v1/events"),
                    headers=cursor.headers() | self._authorization,
                    timeout=httpx2.Timeout(self._settings.timeout_s, read=SILENCE_S),
                ) as response:
                    if response.is_success:
                        async for frame in httpx2.EventSource(response):
                            event = cursor.receive(frame)
                            if event is not None:
                                yield event
                        delay_s = cursor.broken(self._settings.url, EOFError("the stream ended"))
                    else:
                        await response.aread()
                        delay_s = cursor.refused(self._settings.url, response)
            except httpx2.TransportError as error:
                delay_s = cursor.broken(self._settings.url, error)
            await anyio.sleep(delay_s)


async def _length(content: bytes | Path | None) -> dict[str, str]:
    if not isinstance(content, Path):
        return {}
    return {"Content-Length": str((await anyio.Path(content).stat()).st_size)}


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(_PIECE_BYTES):
            yield piece
