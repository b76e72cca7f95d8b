"""What a running daemon says of itself: a small file, replaced in one step whenever it changes.

Reading it needs the standard library only, because `status` must be quick. The lock, not this
file, tells whether a daemon runs (lock.py): after a crash the file is only what was last said.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Final, cast

SCHEMA: Final = "cloudagent.status/1"
#: The file is filled up with blanks to this size, so that on a full disk it still has room for news.
_ROOM_BYTES: Final = 16_384
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, report: dict[str, Any]) -> None:
    """Replaces the file; readers see the old one or the new one.

    On a full disk there is no room for a second file. Then it is written over where it stands, and a
    reader may, for a moment, see nothing.

    Raises:
        OSError: it could not be written even so.
    """
    body = json.dumps({"schema": SCHEMA, **report}).encode().ljust(_ROOM_BYTES)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        draft.write_bytes(body)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno not in _FULL:
            raise
        _write_over(path, body)


def _write_over(path: Path, body: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(body)
        file.truncate()


#: What a reader takes for granted of a report, beside its schema.
_LISTS: Final = ("runtimes", "agents", "warm")


def read(path: Path) -> dict[str, Any]:
    """What the daemon last said, or nothing: also if the file is damaged, or a newer daemon's."""
    try:
        said: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    report: dict[str, Any] = {"warm": [], **cast("dict[str, Any]", said)}
    lists = [cast("list[Any]", report[name]) for name in _LISTS if _is_list(report.get(name))]
    sound = len(lists) == len(_LISTS) and all(
        isinstance(one, dict) for each in lists for one in each
    )
    return report if sound and report.get("schema") == SCHEMA else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
