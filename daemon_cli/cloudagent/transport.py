"""Moves bytes for the synchronous client; what to send and what it means is decided elsewhere.

`async_transport.py` is the same with `await`. A change here belongs there too.
"""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import httpx2

from cloudagent.calls import Call, Flow, PageCall
from cloudagent.config import Settings
from cloudagent.cursor import SILENCE_S, Cursor
from cloudagent.errors import WaitTimeoutError
from cloudagent.exchange import Attempts, client_options, read_answer, shut_connection, url_of
from cloudagent_protocol.resources import Event

T = TypeVar("T")


class Transport:
    """One connection pool to one server; may be shared by threads."""

    def __init__(self, settings: Settings, http: httpx2.Client | None = None) -> None:
        self._settings = settings
        self._owned = http is None
        self._http = http or httpx2.Client(**client_options(settings))
        self._authorization = {"Authorization": f"Bearer {settings.token}"}

    def close(self) -> None:
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, call: Call[T]) -> T:
        """The answer to a request, tried again where that is safe.

        Raises:
            CloudAgentError: see errors.py.
        """
        attempts = Attempts(self._settings)
        while True:
            try:
                # Opened for each attempt: what was sent of it before is sent again.
                with _opened(call.content) as content:
                    response = self._http.request(
                        call.method,
                        url_of(self._settings, call.path),
                        params=call.params,
                        content=content,
                        headers=call.headers() | self._authorization,
                    )
            except httpx2.TransportError as error:
                delay_s = attempts.broken(error)
            else:
                if response.is_success:
                    return read_answer(call, response)
                delay_s = attempts.refused(response)
            time.sleep(delay_s)

    def flow(self, flow: Flow[T]) -> T:
        """The result of a flow; what its calls raise is raised inside it."""
        answer: Any = None
        while True:
            try:
                call = flow.send(answer)
            except StopIteration as end:
                return end.value
            answer = self.run(call)

    def items(self, pages: PageCall[T]) -> Iterator[T]:
        """Everything a list holds; each page is fetched when it is needed."""
        cursor: str | None = None
        while True:
            page = self.run(pages(cursor))
            yield from page.data
            if page.next_cursor is None or not page.data:
                return
            cursor = page.next_cursor

    def follow(self, cursor: Cursor, deadline: float | None = None) -> Generator[Event]:
        """The event log from a cursor on, for ever, over as many streams as it takes.

        Raises:
            WaitTimeoutError: the deadline (of `time.monotonic`) has passed.
            CloudAgentError: see errors.py.
        """
        while True:
            try:
                with self._stream(cursor, deadline) as response:
                    if response.is_success:
                        for frame in httpx2.EventSource(response):
                            _check(deadline)  # before the cursor moves past the event
                            event = cursor.receive(frame)
                            if event is not None:
                                yield event
                        delay_s = cursor.broken(self._settings.url, EOFError("the stream ended"))
                    else:
                        response.read()
                        delay_s = cursor.refused(self._settings.url, response)
            except httpx2.TransportError as error:
                _check(deadline)
                delay_s = cursor.broken(self._settings.url, error)
            time.sleep(min(delay_s, _remaining(deadline)))
            _check(deadline)

    @contextmanager
    def _stream(self, cursor: Cursor, deadline: float | None) -> Generator[httpx2.Response]:
        remaining_s = _remaining(deadline)
        with self._http.stream(
            "GET",
            url_of(self._settings, "/v1/events"),
            headers=cursor.headers() | self._authorization,
            timeout=httpx2.Timeout(
                min(self._settings.timeout_s, remaining_s), read=min(SILENCE_S, remaining_s)
            ),
        ) as response:
            if deadline is None:
                yield response
                return
            # A read waits for the next bytes; only ending its connection ends it on time.
            alarm = threading.Timer(remaining_s, shut_connection, [response])
            alarm.daemon = True
            alarm.start()
            try:
                yield response
            finally:
                alarm.cancel()
                alarm.join()


def _opened(content: bytes | Path | None) -> AbstractContextManager[IO[bytes] | bytes | None]:
    return content.open("rb") if isinstance(content, Path) else nullcontext(content)


def _remaining(deadline: float | None) -> float:
    return float("inf") if deadline is None else max(0.001, deadline - time.monotonic())


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise WaitTimeoutError("the turn is not over yet", why="the time given for it has passed")
