"""The search of `search_files`, as a program of its own that can be killed.

Reads {"folder", "pattern", "path"?, "regex"?, "ignore_case"?} from standard input and writes what
it finds; exits 1 with the reason if it cannot search.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon.agent.tools.beneath import Folder, RefusedError
from cloudagent_daemon.agent.tools.files import MAX_FILE_BYTES, walk

MAX_FOUND: Final = 200
MAX_LINE_CHARS: Final = 300


def search(folder: Folder, expression: re.Pattern[str], path: str) -> Iterator[str]:
    """Lines found, as `file:number: line`, at most `MAX_FOUND` and a note.

    Raises:
        RefusedError: `path` cannot be read.
    """
    found = 0
    for name in _files(folder, path):
        for number, line in enumerate(_lines(folder, name), 1):
            if not expression.search(line):
                continue
            found += 1
            if found > MAX_FOUND:
                yield f"[more than {MAX_FOUND} lines; narrow the search]"
                return
            yield f"{name}:{number}: {line[:MAX_LINE_CHARS]}"


def _files(folder: Folder, path: str) -> Iterator[str]:
    descriptor = folder.open(path)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    if stat.S_ISREG(mode):
        yield folder.relative(path)
        return
    for name, kind in walk(folder, path, recursive=True):
        if stat.S_ISREG(kind):
            yield name


def _lines(folder: Folder, name: str) -> list[str]:
    """A text file's lines; none for one that cannot be read or holds no text."""
    try:
        descriptor = folder.open(name)
    except RefusedError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES)
    return [] if b"\0" in data[:8_192] else data.decode("utf-8", "replace").splitlines()


def main() -> int:
    asked: dict[str, Any] = json.load(sys.stdin)
    pattern = asked["pattern"] if asked.get("regex") else re.escape(asked["pattern"])
    try:
        expression = re.compile(pattern, re.IGNORECASE if asked.get("ignore_case") else 0)
        with Folder(Path(asked["folder"])) as folder:
            lines = list(search(folder, expression, asked.get("path", ".")))
    except (re.error, RefusedError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    text = "\n".join(lines) or "Nothing found."
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
