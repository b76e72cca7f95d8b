"""When a rate limit is over, as programs tell it: a number, or words with a time in them. Pure.

That a turn was refused for a limit is decided by fields; only the time may have to be read from words.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from cloudagent_daemon.drivers.values import Json, as_object, number

#: The longest limit that is known is a week's. What lies further ahead, or behind, is no reset.
FURTHEST: Final = timedelta(days=8)
#: Larger numbers count milliseconds (as seconds they would be in the year 5138).
_MILLISECONDS_FROM: Final = 10**11

_EPOCH: Final = re.compile(r"\|\s*(\d{10,13})\b")
_WORDS: Final = re.compile(
    r"\bresets?\s+(?:at\s+)?(?:(?P<month>[A-Z][a-z]{2})\s+(?P<day>\d{1,2}),?\s+(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>[ap]m)?\b(?:\s*\((?P<zone>[A-Za-z0-9_+/-]+)\))?"
)
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


def plausible(at: datetime | None, now: datetime) -> datetime | None:
    """The time, if it can be that of a reset: ahead, and not further than any limit lasts."""
    return at if at is not None and now < at <= now + FURTHEST else None


def from_number(value: Any) -> datetime | None:
    """Seconds, or milliseconds, since 1970."""
    seconds = number(value)
    if seconds is None or seconds <= 0:
        return None
    if seconds >= _MILLISECONDS_FROM:
        seconds //= 1000
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def of_windows(limits: Json) -> datetime | None:
    """Codex's `rateLimits`: the last of the windows that are used up to end."""
    windows = (as_object(limits.get(name)) for name in ("primary", "secondary"))
    used_up = [window for window in windows if (number(window.get("usedPercent")) or 0) >= 100]
    return _latest(from_number(window.get("resetsAt")) for window in used_up)


def in_words(
    text: str, now: datetime, local: Callable[[datetime], datetime] = datetime.astimezone
) -> datetime | None:
    """The time that a text names: `…|1749924000`, `resets 3pm (Europe/Berlin)`, `resets Oct 9, 5:30pm`.

    `local` puts a time into the machine's own zone, for a text that names none.
    """
    if found := _EPOCH.search(text):
        return from_number(int(found[1]))
    if (found := _WORDS.search(text)) is None or not (found["half"] or found["minute"]):
        return None
    try:
        there = now.astimezone(ZoneInfo(found["zone"])) if found["zone"] else local(now)
        return _next(found, there)
    except (KeyError, ValueError, OSError):  # no such zone, or no such time
        return None


def _next(found: re.Match[str], there: datetime) -> datetime:
    """The first such time that is not over."""
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + 12 * (found["half"] == "pm")
    at = there.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
    if found["month"]:
        at = at.replace(month=_MONTHS.index(found["month"]) + 1, day=int(found["day"]))
        if at < there - timedelta(days=180):
            at = at.replace(year=at.year + 1)
    elif at <= there:
        at += timedelta(days=1)
    return at.astimezone(UTC)


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    return max((time for time in times if time), default=None)
