"""How often is too often: guesses counted in a sliding window, and the pace of those who poll.

Both are kept in memory and bounded: a restart forgives, and that costs a guesser more than it gives.
"""

from collections import deque
from typing import Final

from cloudagent_protocol.device import SLOW_DOWN_S

#: Whose guesses are counted; beyond it the oldest are forgotten.
_MAX_COUNTED: Final = 10_000


class Attempts:
    """Wrong guesses of anybody within the last `window_s`."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._made: dict[str, deque[float]] = {}

    def wait_s(self, who: str, now: float) -> float:
        """How long until they may try again; 0 if at once. Monotonic seconds."""
        made = self._made.get(who, deque())
        while made and made[0] <= now - self._window_s:
            made.popleft()
        return made[0] + self._window_s - now if len(made) >= self._limit else 0.0

    def count(self, who: str, now: float) -> None:
        """One wrong guess."""
        if who not in self._made and len(self._made) >= _MAX_COUNTED:
            del self._made[next(iter(self._made))]
        self._made.setdefault(who, deque(maxlen=self._limit)).append(now)


class Pacing:
    """Who polls faster than told is told to go slower (RFC 8628 §3.5)."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        #: When each polled last, and the interval that holds for it.
        self._polled: dict[bytes, tuple[float, float]] = {}

    def too_fast(self, who: bytes, now: float) -> bool:
        """Whether this poll comes too early; the interval grows if so. It counts as a poll."""
        last, interval_s = self._polled.pop(who, (None, self._interval_s))
        early = last is not None and now < last + interval_s
        if len(self._polled) >= _MAX_COUNTED:
            del self._polled[next(iter(self._polled))]
        self._polled[who] = (now, interval_s + SLOW_DOWN_S if early else interval_s)
        return early

    def forget(self, who: bytes) -> None:
        self._polled.pop(who, None)
