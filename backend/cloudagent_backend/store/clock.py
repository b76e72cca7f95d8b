"""Times as the store keeps them: whole microseconds since 1970, in columns that end in `_us`."""

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    return time.time_ns() // 1_000


def at(us: int) -> datetime:
    """The moment as an aware UTC time, exactly."""
    return _EPOCH + timedelta(microseconds=us)


def at_or_none(us: int | None) -> datetime | None:
    return None if us is None else at(us)


def rfc3339(us: int) -> str:
    """The moment as text, as the API shows it."""
    return f"{at(us).isoformat(timespec='microseconds')[:-6]}Z"


def to_us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
