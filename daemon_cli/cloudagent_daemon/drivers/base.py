"""What a driver is: a value in, a command out; lines in, events out. No I/O (architecture.md §5).

A `DriverSession` serves one child process. The runner writes the command's files, starts it, feeds
`prompt`, hands every line of standard output to `receive` and acts on what comes out. A session that
is asked something or has to answer says so by an event too (`Say`, `AwaitTools`, `PermissionAsked`).
One that can be warm is fed a further `prompt` after a turn's end (decisions/0024).
"""

import signal
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import Reason, RunEvent, Usage
from cloudagent_protocol.resources import AgentSpec, Runtime

#: What our MCP server is called, wherever its name is asked for.
SERVER: Final = "cloudagent"


class DriverError(Exception):
    """The agent cannot be started here; `str()` says why and what to do."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Capabilities:
    """What the CLI behind a driver can do."""

    #: The process takes further prompts after a turn's end.
    warm: bool = False
    #: A message can be put into a turn that is under way.
    steer: bool = False
    #: It is talked with: standard input stays open after the prompt, until the turn's end.
    converses: bool = False
    #: It tells by itself whether it has our tools; of one that does not, the bridge sees it.
    reports_tools: bool = True
    #: Names that it keeps for tools of its own: ours of that name is offered under another one.
    reserves: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ToolServer:
    """How the child reaches its tools.

    It starts `command` as an MCP server on stdio; or it connects to the Unix socket itself, says
    `{"token": <content of token_file>}` on one line and speaks MCP, one JSON-RPC message per line.
    """

    command: tuple[str, ...]
    socket: Path
    token_file: Path
    #: The names of the tools.
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Job:
    """All that a driver may know of the run it is to serve."""

    agent: AgentSpec
    #: The agent's own folder, which holds MEMORY.md, notes/, workspace/ and .meta/.
    home: Path
    #: Where the process runs: the agent's configured folder, or its workspace/.
    cwd: Path
    #: For session files of the driver's own (home/.meta/sessions).
    sessions_dir: Path
    #: Private to this run, 0700, removed at its end: the place for `Command.files`.
    run_dir: Path
    tools: ToolServer
    #: Who the agent is and how it answers; to be given to the CLI at each start.
    system_prompt: str
    #: The session to resume, or None for a new one.
    session_id: str | None
    #: A fresh UUID, for CLIs that let the caller name a new session.
    new_session_id: str
    #: The daemon's environment, for finding programs; a child never gets it whole.
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Command:
    """A process to start."""

    argv: tuple[str, ...]
    #: Set in the child, whatever the daemon's environment says.
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Names that the child inherits besides the usual ones; `*` at the end stands for any rest.
    inherits: tuple[str, ...] = ()
    #: Written (0600) before the start.
    files: Mapping[Path, str] = field(default_factory=dict[Path, str])
    #: Grows while the CLI works, even when it prints nothing: a sign of life.
    journal: Path | None = None
    #: How long it may take to leave by itself once its turn is over.
    linger_s: float = 10.0


@dataclass(frozen=True)
class Picture:
    """A picture that came with a message, to be shown to the model itself; its path is in the prompt."""

    path: Path
    #: One of `attachments.PICTURES`.
    media_type: str
    #: Its bytes, in base 64.
    data: str = field(repr=False)


@dataclass(frozen=True)
class Turn:
    """What to put to the agent."""

    prompt: str
    #: A driver whose program takes none leaves them out.
    pictures: Sequence[Picture] = ()
    #: Names the message, for a program that tells which one it has taken up: a UUID.
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class TextDelta:
    """A piece of the text that the model is writing.

    `block` counts the run's text blocks from 0, `offset` code points from that block's start.
    """

    block: int
    offset: int
    text: str


@dataclass(frozen=True)
class TurnEnd:
    """The CLI's own word on how the turn went; the runner then lets the process end, or ends it.

    `reason` is None for a turn that went well. TOOLS_UNAVAILABLE and SESSION_LOST make the runner
    try again (once; the latter with a new session), every other reason fails the run.
    """

    reason: Reason | None = None
    #: For a person: what the CLI said.
    detail: str = ""
    session_id: str | None = None
    usage: Usage | None = None
    #: What the model wrote last, to be published if it sent nothing itself.
    final_text: str = ""
    #: Of a rate limit: when it is over, where the CLI tells that.
    resets_at: datetime | None = None


@dataclass(frozen=True)
class Decision:
    """Whether the agent may; `why` is for the agent and for a person."""

    allow: bool
    why: str
    #: Of what is allowed: with this instead of what it asked for, such as a question with its
    #: answers. None: as asked.
    input: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Say:
    """For the program's standard input. Nothing may be said after the turn's end."""

    data: bytes


@dataclass(frozen=True)
class AwaitTools:
    """The program knows where our tools are; `then` is what follows once it has listed them.

    It is given False if the program has not done so in good time.
    """

    then: "Callable[[bool], Iterable[DriverEvent]]"


@dataclass(frozen=True)
class PermissionAsked:
    """The program does nothing until it is told whether it may; `then` puts the answer in its words.

    Whoever decides may take as long as it needs: lines are read meanwhile.
    """

    tool: str
    #: What it comes to: `read`, `search`, `think`, `edit`, `execute`, … or `other`, if not known.
    kind: str
    input: dict[str, Any]
    #: A tool of our own bridge, which has checks of its own.
    ours: bool
    then: "Callable[[Decision], Iterable[DriverEvent]]"
    #: Names the question, where the program may take it back; unique while it is open.
    id: str = ""
    #: The program has asked its own mode already, and that does not allow it.
    beyond_mode: bool = False


@dataclass(frozen=True)
class PermissionWithdrawn:
    """The question of this id needs no answer any more; one that comes is dropped."""

    id: str


@dataclass(frozen=True)
class TakenUp:
    """The program has begun to work on this message (`Turn.id`).

    Before that it has done nothing about it, and another process may be given it. Empty: the program
    has begun a turn that nobody asked for.
    """

    turn_id: str


@dataclass(frozen=True)
class Adjusted:
    """The program has answered what `DriverSession.adjust` has it told."""

    #: Whether its next turn is done as was wanted.
    agreed: bool


#: What is reported of a run, and what is between the session and its process alone.
Reported: TypeAlias = RunEvent | TextDelta | TurnEnd
DriverEvent: TypeAlias = (
    Reported | Say | AwaitTools | PermissionAsked | PermissionWithdrawn | TakenUp | Adjusted
)


class DriverSession(Protocol):
    """One child process of a driver, seen without the process."""

    @property
    def capabilities(self) -> Capabilities: ...

    def launch(self) -> Command:
        """What to start.

        Raises:
            DriverError: the program is not there.
        """
        ...

    def prompt(self, turn: Turn) -> bytes:
        """What to write to its standard input, to begin a turn.

        Once; where it can be warm also after each turn's end.
        """
        ...

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        """What to write between two turns, to have the next one done in this model and permission mode.

        Empty: it will be. None: not by this process. Else `Adjusted` tells.
        """
        ...

    def steer(self, turn: Turn) -> bytes:
        """What to write, to put a message into the turn that is under way; empty: it cannot be now.

        `TakenUp` tells when it was; a turn that has ended without is not over until then.
        """
        ...

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        """The meaning of one line of its standard output, without the line's end.

        Never raises for what a CLI may print: what is not understood is skipped or becomes an
        `UnknownEvent`. Events carry seq 0; the runner numbers them. A `Ready` event says that the
        CLI has our tools; a `Started` event is the runner's business, as is `Finished`.
        """
        ...

    def interrupt(self) -> bytes | signal.Signals:
        """How to stop the turn: bytes for its standard input (none: it has no turn yet), or a signal."""
        ...


class Driver(Protocol):
    """A kind of coding agent."""

    @property
    def name(self) -> str: ...

    @property
    def resumes(self) -> bool:
        """Whether its sessions can be resumed; with the history handed to a new one if they cannot."""
        ...

    @property
    def warm(self) -> bool:
        """Whether its processes have `Capabilities.warm`."""
        ...

    def open(self, job: Job) -> DriverSession:
        """A session for one process; does no I/O."""
        ...

    async def detect(self, environment: Mapping[str, str], mask: Mask = NO_MASK) -> Runtime | None:
        """Whether it can be used on this machine; `Runtime.problem` says why not. Bounded in time.

        None: there is nothing to look for, each agent names a program of its own.
        """
        ...
