"""Reading the agent's folder: a file, a list of files, a search."""

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import anyio
import anyio.to_thread

from cloudagent_daemon.agent.errors import ToolError
from cloudagent_daemon.agent.tools.base import ToolSpec
from cloudagent_daemon.agent.tools.beneath import Folder, RefusedError

#: Lines that read_file gives when it is not told how many.
DEFAULT_LINES: Final = 2_000
#: Bytes of a file that are looked at; what lies behind is not shown, and said to be there.
MAX_FILE_BYTES: Final = 10_000_000
MAX_LISTED: Final = 1_000
#: Seconds of a search: a regular expression can take for ever.
SEARCH_S: Final = 15.0
#: Folders that nobody means when listing or searching everything.
SKIPPED: Final = frozenset({".git", "node_modules", "__pycache__", ".venv"})

_PATH: Final = {"type": "string", "description": "Relative to your folder."}
_SPECS: Final = [
    ToolSpec(
        "read_file",
        "Read a text file of your folder. Lines are numbered in front.",
        {
            "type": "object",
            "properties": {
                "path": _PATH,
                "offset": {"type": "integer", "minimum": 1, "description": "First line, from 1."},
                "limit": {"type": "integer", "minimum": 1, "description": "How many lines."},
            },
            "required": ["path"],
            "additionalProperties": False,
        },
    ),
    ToolSpec(
        "list_files",
        "List a folder; folders end in a slash. .git, node_modules and the like are named, but "
        "not gone into.",
        {
            "type": "object",
            "properties": {
                "path": _PATH,
                "recursive": {"type": "boolean", "description": "With all folders below."},
            },
            "additionalProperties": False,
        },
    ),
    ToolSpec(
        "search_files",
        "Find lines of text files that hold a text or match a regular expression (Python's).",
        {
            "type": "object",
            "properties": {
                "pattern": {"type": "string", "minLength": 1},
                "path": {"type": "string", "description": "File or folder to search; default all."},
                "regex": {"type": "boolean", "description": "Whether `pattern` is an expression."},
                "ignore_case": {"type": "boolean"},
            },
            "required": ["pattern"],
            "additionalProperties": False,
        },
    ),
]
_KINDS: Final[dict[str, type]] = {"string": str, "integer": int, "boolean": bool}


class FileTools:
    """The file tools of one folder.

    Args:
        files: where files of messages lie; what has an absolute path in there is read, too.
    """

    specs = _SPECS

    def __init__(
        self, folder: Path, *, search_s: float = SEARCH_S, files: Path | None = None
    ) -> None:
        self._folder = folder
        self._files = files
        self._search_s = search_s

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        given = _checked(name, arguments)
        if name == "search_files":
            return await self._search(given)
        read = read_lines if name == "read_file" else list_files
        try:
            return await anyio.to_thread.run_sync(self._inside, read, given)
        except (RefusedError, OSError) as error:
            raise ToolError(str(error)) from error

    def _inside(self, read: Callable[..., str], given: dict[str, Any]) -> str:
        with Folder(self._root_of(given)) as folder:
            return read(folder, **given)

    def _root_of(self, given: dict[str, Any]) -> Path:
        """The folder that a path is meant from; whether it stays in there is looked at as it is opened."""
        path = PurePosixPath(given.get("path") or ".")
        if self._files and path.is_relative_to(self._files):
            return self._files
        return self._folder

    async def _search(self, given: dict[str, Any]) -> str:
        """Searches in a process of its own: nothing else can stop an expression that runs wild."""
        command = [sys.executable, "-P", "-m", "cloudagent_daemon.agent.tools.search"]
        asked = json.dumps({"folder": str(self._root_of(given)), **given}).encode()
        try:
            with anyio.fail_after(self._search_s):
                done = await anyio.run_process(command, input=asked, check=False)
        except TimeoutError as error:
            detail = (
                f"The search took over {self._search_s:.0f} s. Narrow it by `path` or `pattern`."
            )
            raise ToolError(detail) from error
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            raise ToolError(output.strip() or "The search failed.")
        return output


def read_lines(folder: Folder, path: str, offset: int = 1, limit: int = DEFAULT_LINES) -> str:
    """Numbered lines of a text file.

    Raises:
        RefusedError: it cannot be read, or holds no text.
    """
    data, whole = _read(folder, path)
    if b"\0" in data[:8_192]:
        raise RefusedError(f"{path}: a binary file")
    lines = data.decode("utf-8", "replace").splitlines()
    shown = lines[offset - 1 : offset - 1 + limit]
    if not shown:
        return f"{path} has {len(lines)} lines."
    last = offset + len(shown) - 1
    text = "\n".join(f"{number}\t{line}" for number, line in enumerate(shown, offset))
    if last < len(lines):
        text += f"\n[lines {offset} to {last} of {len(lines)}]"
    return text if whole else f"{text}\n[only the file's first {MAX_FILE_BYTES} bytes were read]"


def list_files(folder: Folder, path: str = ".", recursive: bool = False) -> str:
    """Names in a folder, sorted, folders with a slash.

    Raises:
        RefusedError: it is no folder, or lies outside.
    """
    names: list[str] = []
    for name, mode in walk(folder, path, recursive=recursive):
        if len(names) == MAX_LISTED:
            names.append(f"[more than {MAX_LISTED} entries; name a folder below]")
            break
        names.append(f"{name}/" if stat.S_ISDIR(mode) else name)
    return "\n".join(names) or "(empty)"


def walk(folder: Folder, path: str, *, recursive: bool) -> Iterator[tuple[str, int]]:
    """Entries of a folder with their modes, as names from the root; links are not followed.

    Raises:
        RefusedError: it is no folder, or lies outside.
    """
    # Not by recursion: a folder may be nested deeper than Python's stack.
    levels = [iter(_entries(folder, path))]
    while levels:
        if (entry := next(levels[-1], None)) is None:
            levels.pop()
            continue
        yield entry
        below, mode = entry
        if recursive and stat.S_ISDIR(mode) and PurePosixPath(below).name not in SKIPPED:
            with suppress(RefusedError):  # gone meanwhile, or not ours to read
                levels.append(iter(_entries(folder, below)))


def _entries(folder: Folder, path: str) -> list[tuple[str, int]]:
    descriptor = folder.open(path)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise RefusedError(f"{path}: not a folder")
        with os.scandir(descriptor) as entries:
            found = sorted((e.name, e.stat(follow_symlinks=False).st_mode) for e in entries)
    finally:
        os.close(descriptor)
    return [(os.path.normpath(f"{folder.relative(path)}/{name}"), mode) for name, mode in found]


def _read(folder: Folder, path: str) -> tuple[bytes, bool]:
    """A file's bytes, at most `MAX_FILE_BYTES`, and whether these are all."""
    descriptor = folder.open(path)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    return data[:MAX_FILE_BYTES], len(data) <= MAX_FILE_BYTES


def _checked(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, if they fit the tool's schema; models forget it often enough."""
    schema = next(spec.schema for spec in _SPECS if spec.name == name)
    properties = cast("dict[str, dict[str, Any]]", schema["properties"])
    if missing := [key for key in schema.get("required", []) if key not in arguments]:
        raise ToolError(f"{name} needs {', '.join(missing)}.")
    for key, value in arguments.items():
        if key not in properties:
            raise ToolError(f"{name} has no {key!r}; it takes {', '.join(properties)}.")
        kind = _KINDS[properties[key]["type"]]
        if type(value) is not kind or (kind is int and value < 1) or value == "":
            raise ToolError(f"{key} must be a {properties[key]['type']}, not {value!r:.100}.")
    return arguments
