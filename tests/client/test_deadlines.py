"""The deadline of a wait, where the log's next event comes just after it."""

import json
import time
from collections.abc import Iterator

import httpx2
import pytest

from client.server import NOW
from cloudagent.config import Settings
from cloudagent.cursor import Cursor
from cloudagent.errors import WaitTimeoutError
from cloudagent.transport import Transport


def frame(number: int) -> bytes:
    event = {"id": number, "type": "agent.updated", "at": NOW, "data": {}}
    return f"id: {number}\nevent: agent.updated\ndata: {json.dumps(event)}\n\n".encode()


class Stream(httpx2.SyncByteStream):
    """Two events: one in time, and one that comes too late."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        yield frame(1)
        while time.monotonic() < self._deadline:
            time.sleep(0.01)
        yield frame(2)


def test_an_event_after_the_deadline_is_left_to_the_next_wait() -> None:
    deadline = time.monotonic() + 0.3

    def answer(_: httpx2.Request) -> httpx2.Response:
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=Stream(deadline))

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        cursor = Cursor(0)
        events = Transport(Settings("http://server", "token"), http).follow(cursor, deadline)
        assert next(events).id == 1
        with pytest.raises(WaitTimeoutError):
            next(events)
    # Not passed on, so not passed over either: who waits again begins with it.
    assert cursor.position == 1
