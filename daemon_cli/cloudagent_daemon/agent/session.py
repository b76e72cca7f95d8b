"""A session's history on disk: one JSON object per line, only ever added to.

A turn is `user`, then `assistant` and `results` in turns, then `end`. Every line is on the disk
(and the loop waits for it: nothing else goes on in this program) before its effect: the calls of an `assistant` line are made after it is written. So whatever kills
the program, `fold` can say truthfully what is known, and in a form that every API takes: each call
has its result, each message its answer.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from cloudagent_daemon.agent.errors import AgentError, Reason
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Entry,
    Picture,
    Result,
    Results,
    User,
)

VERSION: Final = 1
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_UNKNOWN_EFFECT: Final = "Interrupted: it is not known whether this call was done."


class Session:
    """The open file of a session, of which this process is the only writer."""

    def __init__(self, file: BinaryIO, session_id: str, history: list[Entry]) -> None:
        self._file = file
        self.id = session_id
        #: What was said so far; `add` extends it.
        self.history = history

    def begin(self) -> None:
        """Heads a new file."""
        self._write({"type": "session", "version": VERSION, "id": self.id})

    def add(self, entry: Entry) -> None:
        """Appends; on the disk when it returns."""
        self._write(_dump(entry))
        self.history.append(entry)

    def end(self, reason: Reason | None) -> None:
        """Closes a turn; `reason` is None for one that went well."""
        self._write({"type": "end", "reason": reason})

    def _write(self, record: dict[str, Any]) -> None:
        record["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def open_session(folder: Path, session_id: str, *, resume: bool) -> Generator[Session]:
    """The session of that id; a new one is made unless `resume`.

    Raises:
        AgentError: there is none to resume, it cannot be read, or another process has it open.
    """
    if not _SAFE_ID.fullmatch(session_id):
        raise AgentError("session_lost", f"not a session id: {session_id!r}")
    path = folder / f"{session_id}.jsonl"
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (0 if resume else os.O_CREAT)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError as error:
        raise AgentError("session_lost", f"There is no session {session_id} here.") from error
    with os.fdopen(descriptor, "r+b") as file:
        _lock(file, session_id)
        session = Session(file, session_id, fold(_load(file, path)))
        if not file.tell():
            session.begin()
            _sync_folder(folder)
        yield session


def fold(records: Iterable[dict[str, Any]]) -> list[Entry]:
    """The history that records tell, each unfinished turn brought to an end."""
    history: list[Entry] = []
    for record in records:
        match record.get("type"):
            case "user":
                _settle(history, "interrupted")
                shown = record.get("pictures", ())
                pictures = (Picture(Path(one["path"]), one["media_type"]) for one in shown)
                history.append(User(record["text"], tuple(pictures)))
            case "assistant":
                calls = tuple(Call(**call) for call in record["calls"])
                history.append(Assistant(record["text"], calls))
            case "results":
                history.append(Results(tuple(Result(**result) for result in record["results"])))
            case "end":
                _settle(history, record.get("reason"))
            case _:
                pass  # of a newer version
    _settle(history, "interrupted")
    return history


def _settle(history: list[Entry], reason: str | None) -> None:
    """Makes the history end in words of the assistant's, as if its turn had run its course.

    Not every API takes two messages of the same side in a row, and none a call without its result.
    """
    if history and isinstance(last := history[-1], Assistant) and last.calls:
        missing = (Result(call.id, _UNKNOWN_EFFECT, is_error=True) for call in last.calls)
        history.append(Results(tuple(missing)))
    if history and not isinstance(history[-1], Assistant):
        note = f"[The turn ended early: {reason}]" if reason else "[Nothing more to say]"
        history.append(Assistant(note))


def _dump(entry: Entry) -> dict[str, Any]:
    match entry:
        case User():
            record: dict[str, Any] = {"type": "user", "text": entry.text}
            lying = [one for one in entry.pictures if one.path]
            if lying:
                record["pictures"] = [
                    {"path": str(one.path), "media_type": one.media_type} for one in lying
                ]
            return record
        case Assistant():
            return {
                "type": "assistant",
                "text": entry.text,
                "calls": [vars(call) for call in entry.calls],
            }
        case Results():
            return {"type": "results", "results": [vars(result) for result in entry.results]}


def _load(file: BinaryIO, path: Path) -> list[dict[str, Any]]:
    """All records; leaves the file's position at its end, and its end behind a whole line.

    A last line without its end is the trace of a crash: it was never acted on, and goes.
    """
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
        file.seek(whole)
    try:
        records = [json.loads(line) for line in data[:whole].splitlines()]
        fold(records)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AgentError("session_lost", f"The session in {path} cannot be read.") from error
    return records


def _lock(file: BinaryIO, session_id: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        detail = f"Another process is still working in session {session_id}."
        raise AgentError("internal", detail) from error


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
