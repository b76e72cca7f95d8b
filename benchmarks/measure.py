"""Timing two things in turn, A B A B, so that a noisy machine disturbs both alike.

Every figure is reported beside its reference of the same run, as a ratio or a difference of
pairs; absolute times of these machines mean little.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured promise; `ok` is whether it is kept."""

    name: str
    ours: float
    reference: str
    reference_value: float
    #: Of `ours`, `reference_value` and `difference`.
    unit: str
    ratio: float
    difference: float
    goal: str
    ok: bool
    runs: int


def paired(
    ours: Callable[[], float], reference: Callable[[], float], *, runs: int, warmup: int = 1
) -> list[tuple[float, float]]:
    """Seconds of both, alternating, `runs` times after `warmup` uncounted rounds."""
    for _ in range(warmup):
        ours()
        reference()
    return [(ours(), reference()) for _ in range(runs)]


def figure(
    name: str,
    reference: str,
    pairs: Sequence[tuple[float, float]],
    *,
    goal: str = "",
    unit: str = "ms",
    scale: float = 1_000,
    min_ratio: float | None = None,
    max_ratio: float | None = None,
    max_difference_ms: float | None = None,
    most: float | None = None,
) -> Figure:
    """The medians of the pairs, held against a goal.

    `scale` leads from what the pairs hold to `unit`: from seconds to milliseconds, if nothing else
    is said. `most` is what our own value may be, in `unit`.
    """
    ratio = statistics.median(a / b for a, b in pairs)
    difference = statistics.median(a - b for a, b in pairs) * scale
    ours = statistics.median(a for a, _ in pairs) * scale
    ok = (
        (min_ratio is None or ratio >= min_ratio)
        and (max_ratio is None or ratio <= max_ratio)
        and (max_difference_ms is None or difference <= max_difference_ms)
        and (most is None or ours <= most)
    )
    return Figure(
        name=name,
        ours=round(ours, 1),
        reference=reference,
        reference_value=round(statistics.median(b for _, b in pairs) * scale, 1),
        unit=unit,
        ratio=round(ratio, 3),
        difference=round(difference, 1),
        goal=goal,
        ok=ok,
        runs=len(pairs),
    )


def rate(
    name: str,
    reference: str,
    pairs: Sequence[tuple[float, float]],
    *,
    goal: str = "",
    min_ratio: float | None = None,
) -> Figure:
    """As `figure`, of things done per second."""
    return figure(name, reference, pairs, goal=goal, unit="/s", scale=1, min_ratio=min_ratio)


def seconds_of(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> float:
    """Wall time of a whole process, its output thrown away. Its exit code does not matter."""
    began = time.perf_counter()
    subprocess.run(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - began


def report(figures: Sequence[Figure], *, as_json: bool) -> None:
    """A table for people, or one JSON array."""
    if as_json:
        print(json.dumps([asdict(each) for each in figures], indent=2))
        return
    header = ("figure", "ours", "reference", "ref.", "ratio", "diff.", "goal", "")
    rows = [
        (
            each.name,
            f"{each.ours:,.1f} {each.unit}",
            each.reference,
            f"{each.reference_value:,.1f} {each.unit}",
            f"{each.ratio:.3g}x",
            f"{each.difference:+,.1f} {each.unit}",
            each.goal,
            "" if not each.goal else "ok" if each.ok else "MISSED",
        )
        for each in figures
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def python(*args: str) -> list[str]:
    """This Python, with these arguments."""
    return [sys.executable, *args]
