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
    """One measured promise; `ok` is whether it is kept. Times in milliseconds."""

    name: str
    ours_ms: float
    reference: str
    reference_ms: float
    ratio: float
    difference_ms: float
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
    goal: str,
    max_ratio: float | None = None,
    max_difference_ms: float | None = None,
) -> Figure:
    """The medians of the pairs, held against a goal."""
    ratio = statistics.median(a / b for a, b in pairs)
    difference_ms = statistics.median(a - b for a, b in pairs) * 1000
    ok = (max_ratio is None or ratio <= max_ratio) and (
        max_difference_ms is None or difference_ms <= max_difference_ms
    )
    return Figure(
        name=name,
        ours_ms=round(statistics.median(a for a, _ in pairs) * 1000, 1),
        reference=reference,
        reference_ms=round(statistics.median(b for _, b in pairs) * 1000, 1),
        ratio=round(ratio, 3),
        difference_ms=round(difference_ms, 1),
        goal=goal,
        ok=ok,
        runs=len(pairs),
    )


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
            f"{each.ours_ms:.1f} ms",
            each.reference,
            f"{each.reference_ms:.1f} ms",
            f"{each.ratio:.2f}x",
            f"{each.difference_ms:+.1f} ms",
            each.goal,
            "ok" if each.ok else "MISSED",
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
