"""Where a follower of the event log is, so that a broken stream goes on where it ended. No I/O.

The server sends kept events in order of their id. Events that are not kept (`run.delta`, `ping`)
carry the id of the newest kept one, so the newest id seen is always the place to go on from.
"""

import time
from collections.abc import Callable
from typing import Final

import httpx2
from pydantic import ValidationError

from cloudagent.errors import UnexpectedAnswerError, refusal
from cloudagent.exchange import jitter, problem_of, retry_after_s, unreachable
from cloudagent_protocol.resources import Event, EventType

#: The server pings every 15 s; after this much silence the connection is dead.
SILENCE_S: Final = 26.0
#: How long a follower tries to get back to its server.
PATIENCE_S: Final = 300.0

_NOT_KEPT: Final = frozenset({EventType.RUN_DELTA, EventType.PING, EventType.RESYNC})
_PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Cursor:
    """Decides what to ask for, what to pass on and how long to wait after a break."""

    def __init__(
        self,
        after: int | None = None,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.position = after
        self._patience_s = patience_s
        self._clock = clock
        self._breaks = 0
        self._lost_at: float | None = None

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.position is not None:
            headers["Last-Event-ID"] = str(self.position)
        return headers

    def receive(self, frame: httpx2.ServerSentEvent) -> Event | None:
        """The event of a frame; None if it holds none, or one that was passed on before.

        Raises:
            UnexpectedAnswerError: the frame is no event.
        """
        if not frame.data:  # such as `retry:`
            return None
        try:
            event = Event.model_validate_json(frame.data)
        except ValidationError as error:
            raise UnexpectedAnswerError(
                "the event stream holds something else than events",
                why=frame.data[:200],
                next_step="check CLOUDAGENT_URL",
            ) from error
        self._breaks, self._lost_at = 0, None
        if event.type == EventType.RESYNC:
            self.position = event.id  # may lie before: the log was trimmed or restored
            return event
        if event.type not in _NOT_KEPT and self.position is not None and event.id <= self.position:
            return None
        self.position = max(event.id, self.position or 0)
        return event

    def broken(self, url: str, error: Exception) -> float:
        """The stream ended. Seconds to wait before opening it again.

        Raises:
            ConnectionFailedError: the server has been away for longer than our patience.
        """
        now = self._clock()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > self._patience_s:
            raise unreachable(url, error) from error
        self._breaks += 1
        return jitter(self._breaks - 1, base_s=0.25)

    def refused(self, url: str, response: httpx2.Response) -> float:
        """The stream was not opened. Seconds to wait before the next try.

        Raises:
            APIError: it will not be.
        """
        wanted = retry_after_s(response)
        error = refusal(problem_of(response), wanted)
        if response.status_code not in _PASSING:
            raise error
        return max(self.broken(url, error), wanted or 0.0)
