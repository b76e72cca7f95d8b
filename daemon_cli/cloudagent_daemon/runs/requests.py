"""What people are shown of that which an agent asks leave for: whole as far as may be, and without keys."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon.drivers.base import PermissionAsked
from cloudagent_daemon.runs import rules
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_daemon.runs.report import now
from cloudagent_daemon.runs.rules import Rule
from cloudagent_protocol.events import ApprovalRequested
from cloudagent_protocol.ids import new_approval_id

#: Characters of one text of an input that are shown; a longer one says so.
_SHOWN: Final = 50_000
#: Of files that a command names, those that are looked into.
_FILES: Final = 20
_FILE_BYTES: Final = 4_194_304


def request_of(
    asked: PermissionAsked,
    digest: str,
    rule: Rule | None,
    files: dict[str, str],
    *,
    cwd: str,
    redaction: Redaction,
    expires_at: datetime,
) -> ApprovalRequested:
    """A new request. `digest` is of all that leave would be given for, `files` as `hashes` tells them.

    Of what is not shown whole no rule is offered.
    """
    shown, cut = _cut(asked.input)
    clean: dict[str, Any] = json.loads(_cleaned(json.dumps(shown), redaction))
    tool = redaction.clean(asked.tool)
    masked = clean != shown or tool != asked.tool
    return ApprovalRequested(
        at=now(),
        approval_id=new_approval_id(),
        tool=tool,
        action=asked.kind,
        input=clean,
        truncated=cut,
        redacted=masked,
        cwd=cwd,
        files=files,
        rule=rule.words if rule and not (cut or masked) else None,
        digest=digest,
        expires_at=expires_at,
    )


def hashes(asked: PermissionAsked, cwd: str) -> dict[str, str]:
    """Of the files that a command names: what they hold now, which may be what it runs. Blocks."""
    command = asked.input.get("command")
    if asked.kind != "execute" or not isinstance(command, str):
        return {}
    found: dict[str, str] = {}
    for word in rules.named_files(command):
        path = Path(cwd, word)
        try:
            if len(found) < _FILES and path.is_file() and path.stat().st_size <= _FILE_BYTES:
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):
            continue
    return found


def _cleaned(text: str, redaction: Redaction) -> str:
    cleaned = redaction.clean(text)
    try:
        json.loads(cleaned)
    except ValueError:  # a key that runs into the quotes around it
        return json.dumps({"left out": "it holds a key that cannot be taken out of it"})
    return cleaned


def _cut(value: Any) -> tuple[Any, bool]:
    """The value with texts that are too long to be shown cut, and whether that was needed."""
    match value:
        case str() if len(value) > _SHOWN:
            return f"{value[:_SHOWN]}\n[{len(value) - _SHOWN} more characters are not shown]", True
        case dict():
            pairs = {str(name): _cut(inner) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            return {name: one for name, (one, _) in pairs.items()}, any(
                c for _, c in pairs.values()
            )
        case list():
            parts = [_cut(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
            return [one for one, _ in parts], any(c for _, c in parts)
        case _:
            return value, False
