"""What a running daemon says of itself: a small file, replaced in one step whenever it changes.

Reading it needs the standard library only, because `status` must be quick. The lock, not this
file, tells whether a daemon runs (lock.py): after a crash the file is only what was last said.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = "cloudagent.status/1"


def write(path: Path, report: dict[str, Any]) -> None:
    """Replaces the file; readers see the old one or the new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({"schema": SCHEMA, **report}), "utf-8")
    draft.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What the daemon last said, or nothing."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
