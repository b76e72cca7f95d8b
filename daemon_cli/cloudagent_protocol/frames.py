"""Frames of the link between a daemon and its backend: one JSON object per WebSocket message.

Two kinds. **Numbered** frames must not be lost: they carry `seq`, are kept by their sender until
acknowledged, and are sent again after a reconnect. **Passing** frames (the handshake, `ack`,
`heartbeat`, `delta`, `query`, `answer`, `command`, `command_result`, `expect`) live for one connection.

docs/protocol.md tells the whole story; tests/golden/frames holds one example of each.
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)

from cloudagent_protocol.attachments import MAX_ATTACHMENTS
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.diffs import Diff
from cloudagent_protocol.errors import CloseCode, ProtocolError
from cloudagent_protocol.events import AnyDecision, AnyReason, RunEvent
from cloudagent_protocol.ids import (
    AgentId,
    ApprovalId,
    ConversationId,
    DeliveryId,
    HostId,
    MessageId,
    RunId,
)
from cloudagent_protocol.link import LEASE_S
from cloudagent_protocol.resources import (
    AgentRef,
    AgentSpec,
    AgentStatus,
    Author,
    DeliveryMode,
    Hold,
    Runtime,
)

#: Bytes of one frame, after any inflation (RFC 6455 leaves the limit to us).
MAX_FRAME_BYTES: Final = 1_048_576
#: What goes with a message; null: nothing does.
Files: TypeAlias = Annotated[list[Attachment], Field(max_length=MAX_ATTACHMENTS)]


class _Frame(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Numbered(_Frame):
    """A frame that must arrive; `seq` counts from 1 per direction and epoch."""

    seq: int = Field(default=0, ge=0)


# --- the handshake --------------------------------------------------------------------


class LiveRun(_Frame):
    """A run whose process is alive, as the daemon's heartbeat lists it."""

    run_id: RunId
    delivery_ids: list[DeliveryId]


#: Why the machine starts nothing; the first ones count, if there are very many.
MAX_HOLDS: Final = 100
Holds: TypeAlias = Annotated[list[Hold], Field(max_length=MAX_HOLDS)]


class Capability(StrEnum):
    """What a daemon can do that not every daemon of this protocol version can."""

    #: It stops what runs in the conversation of a delivery that interrupts, by itself.
    INTERRUPT_MODE = "interrupt_mode"
    #: It answers each `command`.
    COMMANDS = "commands"
    #: It may start an agent's process before there is a message for it.
    EXPECT = "expect"


class Hello(_Frame):
    """The daemon's first frame."""

    type: Literal["hello"] = "hello"
    protocol: list[int]
    daemon_version: str
    #: Names one life of the daemon's process.
    instance_id: str
    profile: str
    os: str
    hostname: str
    runtimes: list[Runtime] = Field(default_factory=list[Runtime])
    #: The history that the daemon's numbers belong to; null if it knows none.
    epoch: str | None = None
    #: Number of the last backend frame that is on the daemon's disk.
    last_seq: int = Field(default=0, ge=0)
    #: Deliveries that the daemon holds and has not finished.
    unfinished: list[DeliveryId] = Field(default_factory=list[DeliveryId])
    running: list[LiveRun] = Field(default_factory=list[LiveRun])
    holds: Holds = Field(default_factory=list[Hold])
    #: Whether it is shutting down already: see `Heartbeat`.
    draining: bool = False
    #: Members of `Capability`; a newer daemon's may be unknown here.
    capabilities: list[str] = Field(default_factory=list[str])


class Welcome(_Frame):
    """The backend's answer; only after it may numbered frames flow."""

    type: Literal["welcome"] = "welcome"
    protocol: int
    session_id: str
    #: Where it differs from the hello's, both sides number anew from 1.
    epoch: str
    host_id: HostId
    heartbeat_s: float
    silence_s: float
    #: A numbered frame that is not acknowledged for so long is sent again, in both directions.
    lease_s: float = LEASE_S
    #: Number of the last daemon frame that is on the backend's disk.
    last_seq: int = Field(ge=0)
    #: Deliveries that may be in flight (sent, not yet finished) at once.
    window: int
    agents: Sequence[AgentRef] = ()
    #: Deliveries of the hello that are over: the daemon forgets them.
    drop: list[DeliveryId] = Field(default_factory=list[DeliveryId])


# --- backend to daemon, numbered --------------------------------------------------------


class DeliveredMessage(_Frame):
    id: MessageId
    conversation_id: ConversationId
    author: Author
    text: str
    created_at: AwareDatetime
    #: The person's message that began it all; null where the backend knows no chains.
    chain_id: MessageId | None = None
    #: Messages between that one and this one, this one counted; 0: it is a person's.
    depth: int = Field(default=0, ge=0)
    #: What its author worked on when it sent this.
    caused_by: MessageId | None = None
    #: The conversation that it stands in, if the agent is to work on it in another: another agent's
    #: answer goes to where the question was asked.
    written_in: ConversationId | None = None
    #: Files that go with it; their bytes are fetched apart, before the work begins.
    attachments: Files | None = None


class Retried(_Frame):
    """The earlier delivery of a message that is delivered over again."""

    delivery_id: DeliveryId
    #: Who asked for it.
    actor: str
    outcome: str
    reason: str | None = None
    #: Whether an agent is known to have begun on it: what it did then may still be there.
    began: bool = False


class Deliver(Numbered):
    """A message on its way to an agent."""

    type: Literal["deliver"] = "deliver"
    delivery_id: DeliveryId
    #: Order for the agent; unlike `seq` it survives a new epoch. One that interrupts is below zero.
    delivery_seq: int
    mode: DeliveryMode = DeliveryMode.QUEUE
    agent: AgentSpec
    #: `conversation_id` in it is the one that the agent works in.
    message: DeliveredMessage
    #: Set where a person had an earlier delivery of this message done over again.
    retry: Retried | None = None
    #: Depth above which a message to an agent is refused; null: the backend alone knows.
    hop_limit: int | None = Field(default=None, ge=0)


class Interrupt(Numbered):
    """Stop the work on a delivery, started or not."""

    type: Literal["interrupt"] = "interrupt"
    delivery_id: DeliveryId
    #: Who asked.
    actor: str
    #: Whether its processes are to be killed, rather than asked to stop first.
    now: bool | None = None


class Decide(Numbered):
    """What a person said to a request or a question of an agent; the first one that comes counts."""

    type: Literal["decide"] = "decide"
    approval_id: ApprovalId
    #: The delivery whose run asks.
    delivery_id: DeliveryId
    decision: AnyDecision
    #: For the agent: why not.
    reason: str | None = None
    #: To a question.
    answer: str | None = None
    #: Who, and when.
    actor: str
    decided_at: AwareDatetime


class AgentsChanged(Numbered):
    """The host's agents, whole, after one was made, changed or removed."""

    type: Literal["agents_changed"] = "agents_changed"
    agents: Sequence[AgentRef]


# --- daemon to backend, numbered --------------------------------------------------------


class RunReport(Numbered):
    """One event of a run; idempotent on (run_id, event.seq)."""

    type: Literal["run_report"] = "run_report"
    run_id: RunId
    agent_id: AgentId
    conversation_id: ConversationId
    delivery_ids: list[DeliveryId]
    event: RunEvent


class Send(Numbered):
    """A message of an agent; idempotent on its id, which was made on the machine."""

    type: Literal["send"] = "send"
    message_id: MessageId
    agent_id: AgentId
    conversation_id: ConversationId
    run_id: RunId
    text: str
    in_reply_to: MessageId | None = None
    #: What its run works on: the chain goes on from there.
    caused_by: MessageId | None = None
    auto_published: bool = False
    sent_at: AwareDatetime
    #: Files that go with it, whose bytes were brought before; one that was not is left out, and said.
    attachments: Files | None = None


class DeliveryReport(Numbered):
    """Why a delivery that lies on the machine waits, if for more than its turn; a rung `waiting`."""

    type: Literal["delivery_report"] = "delivery_report"
    delivery_id: DeliveryId
    at: AwareDatetime
    reason: AnyReason
    #: For a person.
    detail: str = ""


class HostReport(Numbered):
    """What changed on the machine: the runtimes that were found."""

    type: Literal["host_report"] = "host_report"
    runtimes: list[Runtime]


class RunDiff(Numbered):
    """What a run changed in the repository that it worked in; idempotent on its id."""

    type: Literal["run_diff"] = "run_diff"
    run_id: RunId
    agent_id: AgentId
    conversation_id: ConversationId
    diff: Diff


# --- passing ----------------------------------------------------------------------------


class Ack(_Frame):
    """All numbered frames up to and including `seq` are on the receiver's disk."""

    type: Literal["ack"] = "ack"
    seq: int = Field(ge=0)


class Heartbeat(_Frame):
    """A sign of life, from both ends; the daemon's lists what is alive, and what waits for room.

    It is no numbered frame, because a daemon must be able to say that its disk is full.
    """

    type: Literal["heartbeat"] = "heartbeat"
    running: list[LiveRun] = Field(default_factory=list[LiveRun])
    holds: Holds = Field(default_factory=list[Hold])
    #: The daemon's: it finishes what runs, begins nothing, and then ends; it is sent nothing new.
    draining: bool = False


class Delta(_Frame):
    """A piece of the text that the model is writing; may be dropped, the `text` event follows.

    `offset` counts Unicode code points from the start of the run's block number `block`.
    """

    type: Literal["delta"] = "delta"
    run_id: RunId
    agent_id: AgentId
    conversation_id: ConversationId
    block: int = Field(ge=0)
    offset: int = Field(ge=0)
    text: str


class ListMessages(_Frame):
    op: Literal["list_messages"] = "list_messages"
    agent_id: AgentId
    conversation_id: ConversationId
    limit: int = Field(default=20, ge=1, le=100)
    before: MessageId | None = None


class ListAgents(_Frame):
    """Whom the agent may message: the other agents of its owner."""

    op: Literal["list_agents"] = "list_agents"
    agent_id: AgentId


class FindAgent(_Frame):
    """Where a message of the agent to another one goes: see `FoundAgent`.

    The conversation of the two is made if there is none. The answer is an error if there is no such
    agent, or if a message that `caused_by` causes may not be sent to it.
    """

    op: Literal["find_agent"] = "find_agent"
    agent_id: AgentId
    #: Name or id of the other one.
    wanted: str = Field(max_length=200)
    caused_by: MessageId


#: What a daemon asks.
Question: TypeAlias = ListMessages | ListAgents | FindAgent


class UnknownQuery(_Frame):
    """A question of a newer daemon; answered by an error."""

    op: str


_OPS: Final = frozenset({"list_messages", "list_agents", "find_agent"})


def _known_op(raw: Any) -> str:
    op = (
        cast("dict[str, Any]", raw).get("op") if isinstance(raw, dict) else getattr(raw, "op", None)
    )
    return "known" if op in _OPS else "unknown"


class Query(_Frame):
    """A question of the daemon's; answered on the same connection or not at all."""

    type: Literal["query"] = "query"
    id: int
    query: Annotated[
        Annotated[Annotated[Question, Field(discriminator="op")], Tag("known")]
        | Annotated[UnknownQuery, Tag("unknown")],
        Discriminator(_known_op),
    ]


class AgentEntry(_Frame):
    """One line of the answer to `list_agents` (`data.agents`)."""

    id: AgentId
    name: str
    driver: str
    #: The name of its machine.
    host: str
    status: AgentStatus | str


class FoundAgent(_Frame):
    """The answer to `find_agent` (`data`)."""

    id: AgentId
    name: str
    #: Of the two agents: what either says in it is delivered to the other.
    conversation_id: ConversationId
    #: Why it will not be delivered at once, for a model to read; null if nothing stands against it.
    waits_for: str | None = None


class Answer(_Frame):
    """The answer to the query with this id; `error` is for a person or a model to read."""

    type: Literal["answer"] = "answer"
    id: int
    data: dict[str, Any] | None = None
    error: str | None = None


class CommandOp(StrEnum):
    """What a person may ask of a daemon."""

    #: Look again which agent programs there are; answered when the backend has been told.
    RESCAN = "rescan"
    #: Let what runs finish, end, and start anew; answered before.
    RESTART = "restart"


class Command(_Frame):
    """A person's wish for the daemon itself; answered on the same connection or not at all."""

    type: Literal["command"] = "command"
    #: Not used again, on no connection.
    id: int
    #: A member of `CommandOp`; a newer backend's is answered by an error.
    op: str
    #: Who asks.
    actor: str


class CommandResult(_Frame):
    """What came of the command with this id."""

    type: Literal["command_result"] = "command_result"
    id: int
    #: Why it is not done, for a person; null if it is, or begins now.
    error: Annotated[str, Field(max_length=1_000)] | None = None


class Expect(_Frame):
    """A person looks at a conversation, and may be about to write; nothing is lost with it."""

    type: Literal["expect"] = "expect"
    #: Who would be given what they write.
    agent: AgentSpec
    conversation_id: ConversationId


class UnknownFrame(_Frame):
    """A frame of a newer version. A numbered one is acknowledged and otherwise ignored."""

    type: str
    seq: int | None = None


FromDaemon: TypeAlias = (
    Hello
    | RunReport
    | Send
    | DeliveryReport
    | HostReport
    | RunDiff
    | Ack
    | Heartbeat
    | Delta
    | Query
    | CommandResult
    | UnknownFrame
)
FromBackend: TypeAlias = (
    Welcome
    | Deliver
    | Interrupt
    | Decide
    | AgentsChanged
    | Ack
    | Heartbeat
    | Answer
    | Command
    | Expect
    | UnknownFrame
)
Frame: TypeAlias = FromDaemon | FromBackend

_Tagged: TypeAlias = Annotated[
    Hello
    | Welcome
    | Deliver
    | Interrupt
    | Decide
    | AgentsChanged
    | RunReport
    | Send
    | DeliveryReport
    | HostReport
    | RunDiff
    | Ack
    | Heartbeat
    | Delta
    | Query
    | Answer
    | Command
    | CommandResult
    | Expect,
    Field(discriminator="type"),
]
_adapter: TypeAdapter[Any] = TypeAdapter(_Tagged)
_TYPES: Final = frozenset(
    {
        "hello",
        "welcome",
        "deliver",
        "interrupt",
        "decide",
        "agents_changed",
        "run_report",
        "send",
        "delivery_report",
        "host_report",
        "run_diff",
        "ack",
        "heartbeat",
        "delta",
        "query",
        "answer",
        "command",
        "command_result",
        "expect",
    }
)


def encode(frame: BaseModel) -> str:
    """The frame as JSON text, without line breaks.

    Raises:
        ProtocolError: it is larger than `MAX_FRAME_BYTES`.
    """
    text = frame.model_dump_json(exclude_none=True)
    if len(text) > MAX_FRAME_BYTES // 4 and len(text.encode()) > MAX_FRAME_BYTES:
        raise ProtocolError("frame too large", CloseCode.TOO_LARGE)
    return text


def decode(data: str | bytes) -> Frame:
    """The frame in one WebSocket message.

    Raises:
        ProtocolError: it is no JSON object with a `type`, or lacks what its type needs.
    """
    if isinstance(data, bytes):
        raise ProtocolError("binary frame; frames are JSON text")
    if len(data) > MAX_FRAME_BYTES:
        raise ProtocolError("frame too large", CloseCode.TOO_LARGE)
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    kind = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise ProtocolError("a frame is a JSON object with a type")
    try:
        return _adapter.validate_python(raw) if kind in _TYPES else UnknownFrame.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"bad {kind} frame: {where}: {first['msg']}") from error
