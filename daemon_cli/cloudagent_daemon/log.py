"""Where log lines go: standard error, and one file a day. Keys never do.

A thread writes, so that a slow or full disk delays nothing else; what it cannot take is dropped.
"""

import copy
import logging
import logging.handlers
import queue
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from typing_extensions import override

#: Lines that may wait for the disk; further ones are dropped.
WAITING: Final = 10_000
#: Files that are kept, and the size at which one is full for its day.
KEPT_FILES: Final = 14
MAX_BYTES: Final = 10_000_000

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
    listener = logging.handlers.QueueListener(waiting, *handlers, respect_handler_level=True)
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
        listener.stop()
        for handler in handlers:
            handler.close()


class _Entry(logging.handlers.QueueHandler):
    """Keeps message and traceback apart, which the library makes one text of."""

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
    """`daemon-YYYY-MM-DD.log`; a day that is full goes on in `daemon-YYYY-MM-DD.1.log`, and so on."""

    def __init__(self, logs_dir: Path, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self._dir = logs_dir
        self._max_bytes = max_bytes
        self._day = ""
        self._part = 0
        self._path = logs_dir
        self._file: logging.FileHandler | None = None

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file_for(record).emit(record)
        except OSError:  # somebody deleted it, or the disk is full: the next line begins anew
            self._day = ""
            self.handleError(record)

    @override
    def close(self) -> None:
        if self._file:
            self._file.close()
        super().close()

    def _file_for(self, record: logging.LogRecord) -> logging.FileHandler:
        day = f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%d}"
        if day != self._day:
            self._day, self._part = day, 0
            return self._open()
        if self._file is None or self._path.stat().st_size > self._max_bytes:
            self._part += 1
            return self._open()
        return self._file

    def _open(self) -> logging.FileHandler:
        if self._file:
            self._file.close()
        part = f".{self._part}" if self._part else ""
        self._path = self._dir / f"daemon-{self._day}{part}.log"
        self._path.touch(mode=0o600)
        self._file = logging.FileHandler(self._path, encoding="utf-8")
        self._file.setFormatter(self.formatter)
        for old in sorted(self._dir.glob("daemon-*.log"), key=_written_at)[:-KEPT_FILES]:
            old.unlink(missing_ok=True)
        return self._file


def _written_at(path: Path) -> float:
    return path.stat().st_mtime


def visible(text: str) -> str:
    """One line of `text`, with nothing in it that could steer a terminal."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """`text` with keys and tokens cut down to their kind."""
    return _SECRET.sub(r"\1…", text)
