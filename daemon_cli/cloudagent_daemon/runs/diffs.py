"""Cuts what changed to what is sent of it: without keys, and bounded. Without I/O."""

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pydantic import ValidationError

from cloudagent_protocol.diffs import MAX_DIFF_BYTES, Diff, FileDiff

#: So that one file does not take the room of all.
MAX_PATCH_BYTES: Final = 65_536
MAX_LINE_CHARS: Final = 1_000
CUT: Final = "…"
#: Not `splitlines`, which takes more than a line feed for an end.
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
Clean: TypeAlias = Callable[[str], str]


def diff_of(said: dict[str, Any], root: str, clean: Clean) -> Diff:
    """The diff in what the differ printed; `clean` takes keys out of a text.

    Raises:
        ValueError: it is not one.
    """
    try:
        diff = Diff.model_validate({**said, "root": root})
    except ValidationError as error:
        raise ValueError(f"not a diff: {error.error_count()} errors") from error
    room = MAX_DIFF_BYTES
    files: list[FileDiff] = []
    redacted = False
    for file in diff.files:
        cleaned = clean(file.patch)
        redacted |= cleaned != file.patch
        patch = _fitted(cleaned, min(room, MAX_PATCH_BYTES))
        room -= _size(patch)
        truncated = file.truncated or patch != cleaned
        files.append(file.model_copy(update={"patch": patch, "truncated": truncated}))
    return diff.model_copy(update={"files": files, "redacted": redacted})


def _fitted(patch: str, room: int) -> str:
    """As many whole lines as there is room for, none too long; nothing at all if that is its head only."""
    kept: list[str] = []
    hunks = False
    for line in _LINE.findall(patch):
        end = "\n" if line.endswith("\n") else ""
        if len(line) > MAX_LINE_CHARS:
            line = f"{line[:MAX_LINE_CHARS]}{CUT}{end}"
        room -= _size(line)
        if room < 0:
            return "".join(kept) if hunks else ""
        hunks |= line[:1] in {"+", "-"} and len(kept) > _HEAD_LINES
        kept.append(line)
    return "".join(kept)


#: `diff`, `index`, `---`, `+++`, `@@`: with fewer lines nothing is seen of a change.
_HEAD_LINES: Final = 4


def _size(text: str) -> int:
    """Bytes that it takes in a JSON string."""
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) - 2
