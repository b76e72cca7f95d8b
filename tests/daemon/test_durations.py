"""Durations as people type them."""

import pytest

from cloudagent_daemon.durations import parse


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("2m", 120), ("1h30m", 5_400), ("1h 30m", 5_400), ("45", 45), ("1D", 86_400)],
)
def test_a_duration_is_numbers_with_units(text: str, seconds: float) -> None:
    assert parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "2x", "-1s", "0", "0m", "30m1h", "1m1m", "1.5h", "2m!", "\u0663m", "9" * 40]
)
def test_what_is_no_duration_is_said_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"90s, 2m or 1h30m|longer than nothing"):
        parse(text)
