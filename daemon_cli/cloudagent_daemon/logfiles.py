"""Reading the daemon's own log files: what a line says, which were the last, what comes after them.

Standard library only, because `logs` must be quick. What is written there: log.py.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SCHEMA: Final = "cloudagent.log/1"
#: Of one line so much is shown; no line of ours is longer.
MAX_LINE_BYTES: Final = 65_536
#: How often a followed file is looked at.
POLL_S: Final = 0.2

_NAME: Final = re.compile(r"daemon-(\d{4}-\d\d-\d\d)(?:\.(\d+))?\.log")
_HEAD: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([A-Z]+) (\S+) (.*)")
_FIELDS: Final = re.compile(r"(?: [a-z_]+=\S*)+$")


@dataclass
class Entry:
    """One line of the log, and what belongs to it: the lines of a traceback."""

    #: RFC 3339 in UTC, so that texts compare as times do; empty where a line is nobody's.
    at: str = ""
    level: str = ""
    logger: str = ""
    message: str = ""
    #: What stands behind the message: `action`, `agent_id` and so on.
    fields: dict[str, str] = field(default_factory=dict[str, str])
    lines: list[str] = field(default_factory=list[str])

    def json(self) -> dict[str, Any]:
        """As `cloudagent.log/1` shows it."""
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "at": self.at or None,
            "level": self.level or None,
            "logger": self.logger or None,
            "message": self.message,
        }
        body |= {"fields": self.fields, "more": self.lines[1:]}
        return body


@dataclass(frozen=True)
class Wanted:
    """Which entries are shown."""

    since: str = ""
    level: str = "DEBUG"
    agent_id: str | None = None

    def __call__(self, entry: Entry) -> bool:
        return (
            entry.at >= self.since
            and _rank(entry.level) >= LEVELS.index(self.level)
            and self.agent_id in (None, entry.fields.get("agent_id"))
        )


def _rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("INFO")


def files(logs_dir: Path) -> list[Path]:
    """The log files, the oldest first, by what their names say."""
    return sorted(filter(_key, logs_dir.glob("daemon-*.log")), key=_key)


def _key(path: Path) -> tuple[str, int] | tuple[()]:
    """Day and part; nothing for a name that is none of ours."""
    match = _NAME.fullmatch(path.name)
    return (match[1], int(match[2] or 0)) if match else ()


def parse(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries in lines of a log; what begins none belongs to the one before."""
    entry: Entry | None = None
    for line in lines:
        head = _HEAD.fullmatch(line)
        if head is None and entry is not None:
            entry.lines.append(line)
            continue
        if entry is not None:
            yield entry
        entry = _entry(line, head)
    if entry is not None:
        yield entry


def _entry(line: str, head: re.Match[str] | None) -> Entry:
    if head is None:
        return Entry(message=line, lines=[line])
    at, level, logger, text = head.groups()
    behind = _FIELDS.search(text)
    pairs = behind[0].split() if behind else []
    fields = dict(pair.split("=", 1) for pair in pairs)
    message = text[: behind.start()] if behind else text
    return Entry(at, level, logger, message, fields, [line])


def last(logs_dir: Path, count: int, wanted: Wanted, before: "Tail | None" = None) -> list[Entry]:
    """The last `count` entries that are wanted, the oldest first; up to where a tail begins."""
    found: list[Entry] = []
    for path, end in reversed(_ends(logs_dir, before)):
        entries = list(parse(_lines(path, end)))
        chosen = [entry for entry in entries if wanted(entry)]
        found = [*chosen[max(0, len(chosen) - (count - len(found))) :], *found]
        if len(found) >= count or (entries and "" < entries[0].at < wanted.since):
            break
    return found if count else []


def _ends(logs_dir: Path, before: "Tail | None") -> list[tuple[Path, int]]:
    """Each file, and how far it is read."""
    known = [(path, sys.maxsize) for path in files(logs_dir)]
    if before is None or before.path is None:
        return known if before is None else []
    earlier = [one for one in known if _key(one[0]) < _key(before.path)]
    return [*earlier, (before.path, before.begins_at)]


def _lines(path: Path, end: int) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            done = 0
            for raw in file:
                if done >= end:
                    return
                done += len(raw)
                yield text(raw)
    except FileNotFoundError:  # rotated away meanwhile
        return


def text(raw: bytes) -> str:
    """A line as it is read: cut to a bound, without its end, whatever bytes it holds."""
    cut = raw[:MAX_LINE_BYTES].rstrip(b"\r\n").decode("utf-8", "replace")
    return cut + ("…" if len(raw) > MAX_LINE_BYTES else "")


class Tail:
    """Follows the log from where it ends now, across rotation, and the end and start of a daemon."""

    def __init__(self, logs_dir: Path, pause: Callable[[float], None] = time.sleep) -> None:
        self._dir = logs_dir
        self._pause = pause
        known = files(logs_dir)
        #: The file that is read, and where in the first one it began.
        self.path: Path | None = known[-1] if known else None
        self._file: BufferedReader | None = self._open(at_end=True)
        self.begins_at = self._file.tell() if self._file else 0
        self._rest = b""

    def lines(self) -> Generator[str]:
        """Lines as they are completed, for ever."""
        try:
            while True:
                yield from self._new_lines()
                following = self._following()
                if following is None:
                    self._pause(POLL_S)
                elif self._file is None or not self._file.peek(1):  # all of the one before is read
                    if self._rest:
                        yield text(self._rest)
                    self._switch(following)
        finally:
            if self._file:
                self._file.close()

    def _new_lines(self) -> Iterator[str]:
        while self._file and (data := self._file.read(MAX_LINE_BYTES)):
            *whole, self._rest = (self._rest + data).split(b"\n")
            for raw in whole:
                yield text(raw)
            if len(self._rest) > MAX_LINE_BYTES:
                yield text(self._rest)
                self._rest = b""

    def _following(self) -> Path | None:
        """The file to read next, if there is one: a later one, or what has this one's name now."""
        path = self.path
        later = [
            one
            for one in files(self._dir)
            if path is None or _key(one) > _key(path) or (one == path and self._replaced())
        ]
        return later[0] if later else None

    def _switch(self, path: Path) -> None:
        if self._file:
            self._file.close()
        self.path, self._rest = path, b""
        self._file = self._open(at_end=False)

    def _replaced(self) -> bool:
        """Whether the path leads to another file, or to a shorter one, than is being read."""
        if self._file is None or self.path is None:
            return True
        try:
            info = self.path.stat()
        except FileNotFoundError:
            return False
        here = self._file.tell()
        return info.st_ino != os.fstat(self._file.fileno()).st_ino or info.st_size < here

    def _open(self, *, at_end: bool) -> BufferedReader | None:
        if self.path is None:
            return None
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        if at_end:
            file.seek(0, 2)
        return file
