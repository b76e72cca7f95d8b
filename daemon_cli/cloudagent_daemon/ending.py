"""That the daemon shall end: by whose wish, how soon, and with which exit code."""

import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Final

import anyio

from cloudagent_daemon.leash import LEAVE_S
from cloudagent_daemon.process import KILL_S

logger = logging.getLogger(__name__)

RESTART_ME: Final = 75
INTERRUPTED: Final = 130

#: How long the last reports may take to reach the backend, after the last run's end.
FLUSH_S: Final = 5.0
#: Beyond what each step may take: the rest of the process's end.
_REST_S: Final = 5.0


class Ending:
    """An ending that may be asked for; an urgent wish overtakes a patient one.

    A **request** comes from outside, mostly by a signal: the first one counts, a second one means at
    once. A **restart** is the daemon's own wish, or a person's at the page, and nobody waits for it:
    what runs may go on for longer, and a request that comes meanwhile takes its place.
    """

    def __init__(self) -> None:
        #: Set when it shall end, for either reason.
        self.wanted = anyio.Event()
        #: Set by the first request.
        self.requested = anyio.Event()
        #: Set when there is no more time to drain.
        self.at_once = anyio.Event()
        self.code = 0
        #: Of a restart: for a person, and how long what runs may go on.
        self.why = ""
        self.patience_s = 0.0
        self._last_resort: threading.Timer | None = None

    def request(self, code: int) -> None:
        if self.requested.is_set():
            self.at_once.set()
        else:
            self.code, self.why = code, ""
            self.requested.set()
            self.wanted.set()

    def restart(self, why: str, patience_s: float) -> bool:
        """Returns whether that is now how it ends: not if it ends already."""
        if self.wanted.is_set():
            return False
        self.code, self.why, self.patience_s = RESTART_ME, why, patience_s
        self.wanted.set()
        return True

    def at_the_latest(self, after_s: float) -> None:
        """Ends the process hard after this time, whatever it hangs on: a disk, a thread, a fault.

        What is on the disk stays there, and the guardians end the agents.
        """
        self._last_resort = threading.Timer(after_s, self._end_hard, (after_s,))
        self._last_resort.daemon = True
        self._last_resort.start()

    def over(self) -> None:
        """All has ended as it should."""
        if self._last_resort:
            self._last_resort.cancel()

    def _end_hard(self, after_s: float) -> None:
        logger.error("the end took more than %.0f s", after_s, extra={"action": "last_resort"})
        os._exit(self.code)

    async def obey(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Takes signals as requests."""
        async for number in signals:
            self.request(INTERRUPTED if number == signal.SIGINT else 0)


def longest_s(stop_timeout_s: float, term_timeout_s: float, flush_s: float = FLUSH_S) -> float:
    """How long an end may take from the first signal on, all of its steps counted.

    With the limits as they come these are 88 s, below the 90 s of the service managers.
    """
    return stop_timeout_s + flush_s + term_timeout_s + KILL_S + 2 * LEAVE_S + _REST_S


def why_no_restart(ending: Ending, *, one_shot: bool, unusable: str) -> str | None:
    """Why a restart that somebody asks for cannot be; None if it can, or has begun already.

    Args:
        ending: of the daemon.
        one_shot: whether the next life would have neither its key nor its memory.
        unusable: what is wrong with the installation that it would be started from.
    """
    if ending.requested.is_set():
        return "it is being stopped"
    if one_shot:
        return (
            "it was started for once, with its key on the command line or for one job, and nobody"
            " would start it again. On the machine: end it, and start it as before"
        )
    if unusable:
        return f"it could not be started again: {unusable}"
    return None
