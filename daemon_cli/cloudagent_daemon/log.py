"""Where log lines go: standard error, and one file a day. Keys never do.

A thread writes, so that a slow or full disk delays nothing else; what it cannot take is dropped.
"""

import copy
import errno
import logging
import logging.handlers
import os
import queue
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from typing_extensions import override

#: Lines that may wait for the disk; further ones are dropped.
WAITING: Final = 10_000
#: How long a disk may take for the last of them before the daemon ends without.
STOP_S: Final = 5.0
#: The size at which a file is full for its day; how many full ones are kept at most, and how many in all.
MAX_BYTES: Final = 10_000_000
KEPT_FULL: Final = 5
KEPT_FILES: Final = 14

_SECRET: Final = re.compile(r"(sk_machine_|\bcat_|\bsk-)[A-Za-z0-9_-]{6,}")
#: What would steer a terminal, begin a line that nobody logged, or cannot be encoded.
_STEERING: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def logging_to(
    logs_dir: Path | None, *, debug: bool = False, quiet: bool = False
) -> Generator[None]:
    """Sets logging up for the daemon's life; `logs_dir` None means standard error only.

    With `quiet` standard error gets only what went wrong.
    """
    logging.raiseExceptions = False
    stderr = logging.StreamHandler()
    stderr.setLevel(logging.WARNING if quiet else logging.NOTSET)
    handlers: list[logging.Handler] = [stderr]
    if logs_dir:
        logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handlers.append(DailyFile(logs_dir))
    for handler in handlers:
        handler.setFormatter(Lines())
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
    entry = _Entry(waiting)
    _counting[:] = [entry, *(handler for handler in handlers if isinstance(handler, DailyFile))]
    listener = _Listener(waiting, *handlers, respect_handler_level=True)
    root = logging.getLogger()
    root.addHandler(entry)
    # Not DEBUG: at that level libraries log the very bytes that they send, prompts and keys.
    root.setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger("cloudagent_daemon").setLevel(logging.DEBUG if debug else logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(entry)
        with suppress(queue.Full):  # its thread goes with the process
            listener.stop()
        for handler in handlers:
            handler.close()


class _Listener(logging.handlers.QueueListener):
    """Ends even while more lines wait than there is room for."""

    @override
    def enqueue_sentinel(self) -> None:
        assert isinstance(self.queue, queue.Queue)
        self.queue.put(None, timeout=STOP_S)


def dropped() -> int:
    """Lines that this process could not log: the disk was full, or slower than they came."""
    return sum(counter.dropped for counter in _counting)


class _Entry(logging.handlers.QueueHandler):
    """Keeps message and traceback apart, which the library makes one text of."""

    dropped = 0

    @override
    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            super().enqueue(record)
        except queue.Full:
            self.dropped += 1

    @override
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        kept = copy.copy(record)
        # Now: what it speaks of may be another thing by the time the thread comes to it.
        kept.msg, kept.args = record.getMessage(), None
        return kept


class Lines(logging.Formatter):
    """`2026-11-20T21:00:00.123Z INFO link.client connected as host_… action=connected`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        name = record.name.removeprefix("cloudagent_daemon.")
        extra = "".join(
            f" {key}={value}" for key, value in vars(record).items() if key not in _STANDARD
        )
        text = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z {record.levelname} {name} "
        lines = [text + record.getMessage() + extra]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        # Secrets first: an escape that is spelled out ends in a letter, and hides where a key begins.
        return "\n".join(visible(without_secrets(line)) for line in lines)


class DailyFile(logging.Handler):
    """`daemon-YYYY-MM-DD.log`; a day that is full goes on in `daemon-YYYY-MM-DD.1.log`, and so on.

    A line that the disk does not take is dropped and counted; how many they were is the first thing
    written when it takes one again.
    """

    def __init__(self, logs_dir: Path, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self._dir = logs_dir
        self._max_bytes = max_bytes
        self._day = ""
        self._part = 0
        self._path = logs_dir
        self._handle: int | None = None
        self._size = 0
        #: Lines that could not be written, in all, and since the last one that could.
        self.dropped = 0
        self._missing = 0

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self._gap()}{self.format(record)}\n".encode()
            self._write(self._handle_for(record), line)
        except OSError:  # the disk is full: the next line begins anew
            self.dropped += 1
            self._missing += 1
            self._day = ""
        else:
            self._missing = 0

    @override
    def close(self) -> None:
        self._close()
        super().close()

    def _gap(self) -> str:
        return f"[{self._missing} line(s) are missing here: the disk was full]\n" * bool(
            self._missing
        )

    def _write(self, handle: int, line: bytes) -> None:
        """All of it or nothing: what a disk has no more room for is taken back."""
        written = os.write(handle, line)
        if written < len(line):
            os.ftruncate(handle, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _handle_for(self, record: logging.LogRecord) -> int:
        day = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%d}"
        if day != self._day:
            self._day, self._part = day, 0
            return self._open()
        if self._handle is None or not self._path.exists():  # somebody deleted it
            return self._open()
        if self._size > self._max_bytes:
            self._part += 1
            return self._open()
        return self._handle

    def _open(self) -> int:
        self._close()
        part = f".{self._part}" if self._part else ""
        self._path = self._dir / f"daemon-{self._day}{part}.log"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)
        self._size = self._path.stat().st_size
        _keep_to_size(self._dir, self._max_bytes)
        return self._handle

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _keep_to_size(logs_dir: Path, max_bytes: int) -> None:
    """Deletes the oldest files, so that the rest has no more than `KEPT_FULL` full ones."""
    total = 0
    newest_first = sorted(logs_dir.glob("daemon-*.log"), key=_written_at, reverse=True)
    for number, path in enumerate(newest_first):
        total += path.stat().st_size
        # The newest is empty and may become full; the others are full, and a line more.
        if number >= KEPT_FILES or total > (KEPT_FULL - 0.5) * max_bytes:
            path.unlink(missing_ok=True)
    for path in logs_dir.glob("launchd.*.log"):
        # launchd appends to them for ever, and keeps them open: they can only be emptied.
        if path.stat().st_size > max_bytes:
            os.truncate(path, 0)


def _written_at(path: Path) -> float:
    return path.stat().st_mtime


#: Those who count what they drop, of the present `logging_to`.
_counting: list[_Entry | DailyFile] = []


def visible(text: str) -> str:
    """One line of `text`, with nothing in it that could steer a terminal."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """`text` with keys and tokens cut down to their kind."""
    return _SECRET.sub(r"\1…", text)
