"""Limits of accounts on the disk, so that a restart does not try what would be refused.

Nothing depends on it: what cannot be read is begun anew, and costs one turn that is refused.
"""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import anyio.to_thread

from cloudagent_daemon.runs.limits import Limit

logger = logging.getLogger(__name__)
NAME: Final = "limits.json"
_SCHEMA: Final = "cloudagent.limits/1"


def load(state_dir: Path | None) -> list[Limit]:
    """What an earlier life knew; nothing if there is no file, or none that can be used."""
    if state_dir is None:
        return []
    try:
        told: Any = json.loads((state_dir / NAME).read_text("utf-8"))
        return [_limit(cast("dict[str, Any]", one)) for one in told["limits"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("limits that were known are not: %s", error, extra={"action": "limits"})
        return []


async def keep(state_dir: Path | None, limits: Sequence[Limit]) -> None:
    """As `save`, in a thread."""
    await anyio.to_thread.run_sync(save, state_dir, limits)


def save(state_dir: Path | None, limits: Sequence[Limit]) -> None:
    """Keep them for the next life. Blocks; a disk that takes nothing is only logged."""
    if state_dir is None:
        return
    body = [
        {"account": one.account, "until": one.until.isoformat(), "driver": one.driver}
        for one in limits
    ]
    draft = state_dir / f"{NAME}.new"
    try:
        draft.write_text(json.dumps({"schema": _SCHEMA, "limits": body}), "utf-8")
        draft.chmod(0o600)
        draft.replace(state_dir / NAME)
    except OSError as error:
        logger.warning("limits are not kept: %s", error, extra={"action": "limits"})


def _limit(told: dict[str, Any]) -> Limit:
    until = datetime.fromisoformat(told["until"])
    if until.tzinfo is None:
        raise ValueError("a time without a zone")
    return Limit(str(told["account"])[:64], until, str(told["driver"])[:40])
