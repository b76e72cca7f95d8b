"""Durations as people type and read them: `90s`, `2m`, `1h30m`."""

import re
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_PART: Final = re.compile(r"([0-9]{1,6})([smhd])")


def parse(text: str) -> float:
    """Seconds in `text`: numbers with units, the largest first; a number alone is seconds.

    Raises:
        ValueError: it is no duration, or nothing.
    """
    compact = text.replace(" ", "").lower()
    if re.fullmatch(r"[0-9]{1,6}", compact):
        compact += "s"
    parts = [(int(count), unit) for count, unit in _PART.findall(compact)]
    sizes = [_UNITS[unit] for _, unit in parts]
    whole = "".join(f"{count}{unit}" for count, unit in _PART.findall(compact))
    if whole != compact or not parts or sizes != sorted(set(sizes), reverse=True):
        raise ValueError(f"got {text!r}; a duration looks like 90s, 2m or 1h30m")
    seconds = sum(count * _UNITS[unit] for count, unit in parts)
    if seconds == 0:
        raise ValueError(f"got {text!r}; it must be longer than nothing")
    return float(seconds)
