"""How much memory a tree of processes takes now, by the standard library alone; where /proc tells that."""

from contextlib import suppress
from pathlib import Path
from typing import Final

#: Processes of one tree that are looked at.
_MOST: Final = 1_000


def resident_bytes(pid: int | None) -> int | None:
    """Of the process and all that it started; null if that is not known here, or it is gone."""
    if pid is None:
        return None
    tree = [pid]
    for one in tree:  # grows
        tree += _children(one)[: max(0, _MOST - len(tree))]
    sizes = [size for one in tree if (size := _share(one)) is not None]
    return sum(sizes) or None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError, ValueError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, file.read_text("ascii").split())
    return found


def _share(pid: int) -> int | None:
    """What it takes; of what it shares with others its share (proc(5), `Pss`)."""
    with suppress(OSError, ValueError, IndexError):
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        [row] = [row for row in rows if row.startswith("Pss:")]
        return int(row.split()[1]) * 1_024
    return None
