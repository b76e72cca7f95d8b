"""An agent's folder on this machine: what it remembers, and what we remember of its sessions.

    <agent id>/  MEMORY.md  notes/  workspace/  attachments/  .meta/
    .meta/       identity.json  last-spawn.json  sessions/<conversation>.json  turns/<delivery>.json

All functions block; files are replaced whole, so that a reader never sees half of one.
"""

import contextlib
import json
import logging
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from cloudagent_daemon.aside import set_aside
from cloudagent_daemon.runs.redaction import SECRET_NAME, SECRET_VALUE
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Finished
from cloudagent_protocol.frames import Send
from cloudagent_protocol.ids import ConversationId, DeliveryId, MessageId, RunId
from cloudagent_protocol.resources import AgentSpec

#: Turns that are over and still known; one is about as large as what the agent sent in it.
TURNS_KEPT: Final = 64
#: Of the records below `.meta` that a later life reads.
SCHEMA: Final = 1
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
M = TypeVar("M", bound="_Record")
logger = logging.getLogger(__name__)


class NewerRecordError(Exception):
    """A newer daemon has written a record; `str()` says which, and what to do."""


class _Record(BaseModel):
    #: Grows when a reader of before would misunderstand it.
    schema_: int = Field(default=SCHEMA, alias="schema")


class SessionRecord(_Record):
    """The CLI's session that holds a conversation."""

    driver: str
    #: Claude Code knows a session only in the folder where it began.
    cwd: str
    session_id: str
    updated_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))


class TurnRecord(_Record):
    """What must be known of a delivery's turn if the daemon dies in it, or loses its spool.

    The last ones of an agent stay when they are over: a spool that is lost may take with it what the
    backend was not told yet, and the backend then delivers again.
    """

    run_id: RunId
    #: The process that works on it, as its environment names it.
    launch_id: str
    #: All that the agent sent, written down before it was handed on.
    sends: list[Send] = Field(default_factory=list[Send])
    #: Those of them that ask another agent, with its name: no answer to who is waiting for one.
    asked: dict[MessageId, str] = Field(default_factory=dict[MessageId, str])
    #: Files that wait for its next message; copies of them are kept.
    files: list[Attachment] = Field(default_factory=list[Attachment])
    #: Whether the agent went on working after its last send, or was about to: it had only asked.
    worked_since: bool = False
    #: Launches so far of which none came to work on the message.
    failed_launches: int = 0
    #: Whether it left in good order because people do not answer, rather than having been cut off.
    parked: bool = False
    #: How it ended, with its number in the run, if only the reporting was left to do.
    finished: Finished | None = None


class SpawnRecord(BaseModel):
    """What a person looks at when an agent will not start."""

    run_id: RunId
    launch_id: str
    argv: list[str]
    cwd: str
    pid: int | None = None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    exit_code: int | None = None
    problem: str | None = None
    stderr_tail: str = ""


@dataclass(frozen=True)
class Place:
    """A git work tree of a conversation's own (runs/trees.py)."""

    #: Where in it the agent works.
    cwd: Path
    tree: Path
    branch: str
    #: The person's own work tree of the same repository.
    root: str
    #: Of this making: one that is made anew in the same folder is another one.
    id: str = ""


class Workspace:
    """The folder of one agent.

    Raises:
        ValueError: the agent's id would not stay inside `agents_dir`.
    """

    def __init__(self, agents_dir: Path, agent: AgentSpec) -> None:
        self.agent = agent
        self.home = agents_dir / _safe(agent.id)
        self.memory = self.home / "MEMORY.md"
        self.notes = self.home / "notes"
        self.folder = self.home / "workspace"
        #: Files that came with messages.
        self.attachments = self.home / "attachments"
        #: Work trees of its conversations.
        self.trees = self.home / "worktrees"
        #: The one that it works in now.
        self.place: Place | None = None
        self.meta = self.home / ".meta"
        #: What runs under way are compared with, by run.
        self.looks = self.meta / "looks"
        self.sessions = self.meta / "sessions"
        self._turns = self.meta / "turns"

    @property
    def cwd(self) -> Path:
        """Where the agent works: the folder it was given, or its own."""
        if self.place:
            return self.place.cwd
        return Path(self.agent.cwd).expanduser() if self.agent.cwd else self.folder

    def prepare(self) -> None:
        """Creates what is missing; what is there stays."""
        for folder in (self.notes, self.folder, self.attachments, self.sessions, self._turns):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self.memory.open("x", encoding="utf-8") as file:
            file.write(f"# What {self.agent.name} remembers\n")
        identity = self.agent.model_dump_json(include={"id", "name", "driver", "cwd"}, indent=2)
        known = self.meta / "identity.json"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if known.read_text("utf-8") == identity:
                return  # each message comes by here, and a write is a wait for the disk
        _replace(known, identity)

    # --- sessions ---

    def session_of(self, conversation: ConversationId) -> SessionRecord | None:
        """The conversation's session, whether it can still be resumed (`resumable`) or not."""
        return _load(self._session_file(conversation), SessionRecord)

    def resumable(self, record: SessionRecord) -> bool:
        """Whether the driver and the folder are still the ones that the session began with."""
        return record.driver == self.agent.driver and record.cwd == str(self.cwd)

    def keep_session(self, conversation: ConversationId, session_id: str) -> None:
        record = SessionRecord(driver=self.agent.driver, cwd=str(self.cwd), session_id=session_id)
        _replace(self._session_file(conversation), record.model_dump_json(indent=2, by_alias=True))

    def _session_file(self, conversation: ConversationId) -> Path:
        return self.sessions / f"{_safe(conversation)}.json"

    # --- turns under way ---

    def turn_of(self, delivery: DeliveryId) -> TurnRecord | None:
        return _load(self._turn_file(delivery), TurnRecord)

    def keep_turn(self, delivery: DeliveryId, record: TurnRecord, *, synced: bool = True) -> None:
        text = record.model_dump_json(by_alias=True)
        _replace(self._turn_file(delivery), text, synced=synced)

    def forget_turn(self, delivery: DeliveryId) -> None:
        """It has not begun."""
        self._turn_file(delivery).unlink(missing_ok=True)

    def forget_old_turns(self) -> None:
        """Leaves the newest `TURNS_KEPT`, and of older ones those that are not over."""
        # Ids of deliveries begin with the time.
        for file in sorted(self._turns.glob("*.json"), reverse=True)[TURNS_KEPT:]:
            try:
                record = _load(file, TurnRecord)
            except NewerRecordError:
                continue
            if record is None or record.finished is not None:
                file.unlink(missing_ok=True)

    def _turn_file(self, delivery: DeliveryId) -> Path:
        return self._turns / f"{_safe(delivery)}.json"

    def keep_tree(self, file: Path, record: str) -> None:
        """Writes down a work tree that is there or is about to be."""
        self.trees.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(file, record)

    # --- for people ---

    def keep_spawn(self, record: SpawnRecord) -> None:
        shown = record.model_copy(update={"argv": redacted(record.argv)})
        _replace(self.meta / "last-spawn.json", shown.model_dump_json(indent=2))


def redacted(argv: list[str]) -> list[str]:
    """The words of a command line, without values that look secret and without long ones."""
    before = ("", *argv)
    return [_shown(word, after) for word, after in zip(argv, before, strict=False)]


def _shown(word: str, after: str) -> str:
    flag, equals, value = word.partition("=")
    if equals and _is_secret(flag):
        return f"{flag}=…"
    if ("=" not in after and _is_secret(after)) or SECRET_VALUE.search(value or word):
        return "…"
    return word if len(word) <= 500 else f"{word[:60]}… ({len(word)} characters)"


def _is_secret(flag: str) -> bool:
    return flag.startswith("-") and SECRET_NAME.search(flag) is not None


def _safe(name: str) -> str:
    if not _SAFE_ID.fullmatch(name):
        raise ValueError(f"not usable as a file name: {name!r}")
    return name


def _load(path: Path, model: type[M]) -> M | None:
    """The record; none if there is none, or if it is damaged: then it is set aside, and said once.

    Without its record a session starts anew with a handoff note, and a turn with that of an attempt
    that was cut off.

    Raises:
        NewerRecordError: see there.
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    _refuse_newer(path, body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        aside = set_aside(path)
        logger.error(  # noqa: TRY400 - the trace tells nothing more
            "%s was unreadable (%d errors); set aside as %s",
            path,
            error.error_count(),
            aside.name,
            extra={"action": "record_set_aside"},
        )
        return None


def _refuse_newer(path: Path, body: bytes) -> None:
    try:
        said: Any = json.loads(body)
        schema = said.get("schema", SCHEMA)
    except (ValueError, AttributeError, RecursionError):
        return
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerRecordError(
            f"{path} was written by a newer daemon (schema {schema}; this one knows {SCHEMA}) and "
            "was left as it is. Update this one: uv tool upgrade cloudagent-daemon"
        )


def _replace(path: Path, text: str, *, synced: bool = True) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(draft, "x", encoding="utf-8", opener=_private) as file:
            file.write(text)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:  # a full disk: no half of it stays behind
        draft.unlink(missing_ok=True)
        raise


def _private(path: Any, flags: int) -> int:
    return os.open(path, flags, 0o600)
