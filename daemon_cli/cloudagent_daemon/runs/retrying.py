"""Whether a process that has ended should be followed by another one. Rules only; nothing is done here."""

from typing import Final

from cloudagent_daemon.drivers.base import Turn
from cloudagent_daemon.runs.attempt import Seen
from cloudagent_daemon.runs.outcome import Failure, unlaunched
from cloudagent_protocol.events import Reason

#: After these, a resumed session is given up and the message put to a fresh one.
SESSION_FAULTS: Final = frozenset(
    {Reason.SESSION_LOST, Reason.CONTEXT_OVERFLOW, Reason.INVALID_REQUEST}
)


def was_not_taken_up(seen: Seen, turn: Turn) -> bool:
    """Whether a warm process has ended without having begun with this message."""
    return turn.id not in seen.taken and not seen.worked and seen.end is None


def worth_another(seen: Seen, *, resumed: bool, pictures: bool, untouched: bool) -> Reason | None:
    """Why this process should be followed by another; None if it should not.

    Args:
        seen: what it did.
        resumed: whether it was to go on with a session.
        pictures: whether its model was shown any.
        untouched: whether nothing was sent or done that another one would do again.
    """
    reason = seen.end.reason if seen.end else None
    if reason is Reason.TOOLS_UNAVAILABLE:
        return reason
    shown = reason is Reason.INVALID_REQUEST and pictures
    return reason if reason in SESSION_FAULTS and (resumed or shown) and untouched else None


def failed_launch(seen: Seen) -> Failure | None:
    """Why the process has not begun at all; None if it has."""
    if seen.failure is not None or seen.worked:
        return None
    return unlaunched(seen.end, seen.exit_code, seen.stderr_tail, ready=seen.ready)
