"""Files that cannot be understood are kept beside the place where they were, never thrown away."""

import time
from pathlib import Path

_MOST = 1_000


def set_aside(path: Path, why: str = "corrupt", *, tails: tuple[str, ...] = ("",)) -> Path:
    """Renames a file to `NAME.WHY-TIME`, and its companions (`tails` of its name) with it.

    Returns:
        What it is called now.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    # Two of one second each keep their own name.
    names = (f"{path.name}.{why}-{stamp}{f'-{n}' if n else ''}" for n in range(_MOST))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    for tail in tails:
        part = path.with_name(path.name + tail)
        if part.exists():
            part.rename(aside.with_name(aside.name + tail))
    return aside
