"""Times as the store keeps them: whole microseconds since 1970, in columns that end in `_us`."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

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
    second, rest = divmod(us, 1_000_000)
    return f"{_second(second)}.{rest:06}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """Kept, because what is written under load is of the same few seconds."""
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:-6]


def to_us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
