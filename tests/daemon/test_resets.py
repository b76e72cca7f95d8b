"""When a limit is over is read from what programs tell; what cannot be a time is none."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.drivers.resets import (
    FURTHEST,
    from_number,
    in_words,
    of_windows,
    plausible,
)

NOW = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)


def utc(day: int, hour: int, minute: int = 0, month: int = 11, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def two_hours_east(at: datetime) -> datetime:
    return at.astimezone(timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Claude AI usage limit reached|1795788300", utc(27, 14, 5)),
        ("You've hit your limit · resets 3pm (Europe/Berlin)", utc(27, 14)),
        ("5-hour limit reached ∙ resets 1:05am (UTC)", utc(28, 1, 5)),
        ("resets at 12pm (America/New_York)", utc(27, 17)),
        ("resets 12am (UTC)", utc(28, 0)),
        ("Weekly limit reached · resets Dec 1, 9am (Europe/Berlin)", utc(1, 8, month=12)),
        ("resets Jan 2 at 15:30 (UTC)", utc(2, 15, 30, month=1, year=2027)),
        ("resets 3pm", utc(27, 13)),
        ("resets 2:30pm", utc(28, 12, 30)),
        ("resets 3 (UTC)", None),
        ("resets 31:77pm", None),
        ("resets 3pm (Mars/Olympus)", None),
        ("resets 3pm (../../etc/passwd)", utc(27, 13)),
        ("resets Feb 31, 3pm (UTC)", None),
        ("it resets soon", None),
        ("", None),
    ],
)
def test_a_time_in_words_is_the_next_such_time(text: str, at: datetime | None) -> None:
    assert in_words(text, NOW, two_hours_east) == at


@given(st.text() | st.from_regex(r"resets .{0,30}\d+:\d\d ?[ap]m( \(.*\))?"))
def test_no_text_is_too_odd(text: str) -> None:
    found = in_words(text, NOW, two_hours_east)
    assert found is None or found.tzinfo is not None


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (1795788300, utc(27, 14, 5)),
        (1795788300000, utc(27, 14, 5)),
        (1795788300.5, utc(27, 14, 5)),
        (0, None),
        (-5, None),
        ("1795788300", None),
        (None, None),
        (2**53, None),
        (10**400, None),
    ],
)
def test_a_number_counts_seconds_or_milliseconds(value: object, at: datetime | None) -> None:
    assert from_number(value) == at


def test_only_what_lies_ahead_and_not_too_far_is_a_reset() -> None:
    assert plausible(NOW + timedelta(hours=5), NOW) == NOW + timedelta(hours=5)
    assert plausible(NOW, NOW) is None
    assert plausible(NOW + FURTHEST + timedelta(seconds=1), NOW) is None
    assert plausible(None, NOW) is None


def test_of_codex_s_windows_the_last_that_is_used_up_counts() -> None:
    five_hours = {"usedPercent": 100, "resetsAt": 1795788300}
    week = {"usedPercent": 100, "resetsAt": 1795788300 + 86_400}
    assert of_windows({"primary": five_hours, "secondary": week}) == utc(28, 14, 5)
    week["usedPercent"] = 40
    assert of_windows({"primary": five_hours, "secondary": week}) == utc(27, 14, 5)
    assert of_windows({"primary": {**five_hours, "usedPercent": 99}}) is None
    assert of_windows({"primary": None, "secondary": "soon"}) is None
