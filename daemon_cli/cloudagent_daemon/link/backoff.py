"""How long to wait before the next connection; a rule without clock or network."""

import random
from collections.abc import Callable
from typing import Final

from cloudagent_daemon.link.transport import (
    KeyRejectedError,
    LinkClosedError,
    LinkError,
    UnreachableError,
)
from cloudagent_protocol.errors import FATAL_CLOSE_CODES, CloseCode

FIRST_S: Final = 0.5
LAST_S: Final = 60.0
#: At most between attempts that do not leave this machine: no name, no network. They cost nobody
#: anything, and a person who opens the laptop waits for the end of it.
OFFLINE_S: Final = 8.0
#: Between attempts after an end that only a person can mend, and at most between fencing ones.
FATAL_S: Final = 300.0
#: A connection that lasted as long makes the next failure a first one.
STABLE_S: Final = 60.0


class Backoff:
    """Full jitter: a thousand daemons of a restarted backend come back spread out, not at once.

    Args:
        spread: draws a number from a range; chance, outside of tests.
    """

    def __init__(self, spread: Callable[[float, float], float] | None = None) -> None:
        self._spread = spread or random.SystemRandom().uniform
        #: Attempts since the last stable connection.
        self.attempt = 0

    def delay(self, end: LinkError, lived_s: float) -> float:
        """Seconds to wait after a connection that lasted `lived_s` and ended so."""
        if lived_s >= STABLE_S:
            self.attempt = 0
        self.attempt += 1
        if is_fatal(end):
            return FATAL_S
        superseded = isinstance(end, LinkClosedError) and end.code == CloseCode.SUPERSEDED
        last = FATAL_S if superseded else LAST_S
        if isinstance(end, UnreachableError) and end.offline:
            last = OFFLINE_S
        jittered = self._spread(0, min(last, FIRST_S * 2 ** min(self.attempt - 1, 20)))
        if isinstance(end, LinkClosedError) and end.code == CloseCode.SLOW_DOWN:
            return LAST_S + jittered
        if isinstance(end, UnreachableError) and end.retry_after_s is not None:
            return min(end.retry_after_s, FATAL_S) + jittered
        return jittered

    def forget(self) -> None:
        """The machine slept: what failed before says nothing about now."""
        self.attempt = 0


def is_fatal(end: LinkError) -> bool:
    """Whether only a person can mend it: a key, or an update."""
    return isinstance(end, KeyRejectedError) or (
        isinstance(end, LinkClosedError) and end.code in FATAL_CLOSE_CODES
    )


def is_revoked(end: LinkError) -> bool:
    """Whether the machine's key was taken back, so that nothing may be done in its name."""
    return (isinstance(end, KeyRejectedError) and end.revoked) or (
        isinstance(end, LinkClosedError) and end.code == CloseCode.REVOKED
    )


def is_rejection(end: LinkError) -> bool:
    """Whether the backend does not accept the machine's key (any more)."""
    return isinstance(end, KeyRejectedError) or (
        isinstance(end, LinkClosedError) and end.code in (CloseCode.UNAUTHORIZED, CloseCode.REVOKED)
    )
