"""What happens during a run, as numbered events, and how it ends.

A run's events are numbered from 1; one may be missing, if its writing down was cut off. Whoever
stores or shows them is idempotent on (run, seq). A type that this version does not know becomes
`UnknownEvent` and is kept.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
)

from cloudagent_protocol.ids import ApprovalId, DeliveryId, MessageId

#: What JavaScript counts exactly, and every database keeps.
MAX_NUMBER: Final = 2**53


class Outcome(StrEnum):
    """How a run ended, as the last rung of its messages' ladder says it."""

    REPLIED = "replied"
    SILENT = "silent"
    AUTO_PUBLISHED = "auto_published"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"  # given up: it could not be launched, or took the daemon down, again and again


class Reason(StrEnum):
    """Why a run failed or is tried again; told apart by facts, never by a CLI's text."""

    RUNTIME_MISSING = "runtime_missing"  # no such program on the machine
    SPAWN_FAILED = "spawn_failed"  # the program could not be started
    TOOLS_UNAVAILABLE = "tools_unavailable"  # the CLI did not connect to our MCP server
    SESSION_LOST = "session_lost"  # the session to resume is gone
    AUTHENTICATION = "authentication"
    BILLING = "billing"
    RATE_LIMIT = "rate_limit"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    CONNECTION = "connection"  # the model could not be reached
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    MAX_TURNS = "max_turns"
    MODEL_ERROR = "model_error"  # an error result of no finer kind
    CRASHED = "crashed"  # ended by a signal or with an error, without a result
    NO_RESULT = "no_result"  # ended well, but never said how the turn went
    HUNG = "hung"  # no sign of life for too long
    OUT_OF_MEMORY = "out_of_memory"  # its processes took more than its machine's owner allows
    INTERRUPTED = "interrupted"  # a person stopped it
    DAEMON_STOPPED = "daemon_stopped"
    AGENT_UNKNOWN = "agent_unknown"
    INTERNAL = "internal"
    # why a message waits, or ended, without a run
    HOST_OFFLINE = "host_offline"
    HOST_DRAINING = "host_draining"  # its machine's daemon is shutting down
    NOT_STEERABLE = "not_steerable"  # its driver takes nothing into a turn that is under way
    FETCHING = "fetching"  # its files are on their way to its machine
    ATTACHMENT_MISSING = "attachment_missing"  # a file of it cannot be had
    WORKTREE = "worktree"  # the work tree that it is to work in cannot be made
    TOO_LARGE = "too_large"  # the message and its agent's settings do not fit into one frame
    HOST_REMOVED = "host_removed"
    UNLISTED = "unlisted"  # its machine does not say that it works on it, and not that it is over
    BACKLOG_FULL = "backlog_full"
    HOP_LIMIT = "hop_limit"  # agents have passed it on too often
    BUDGET = (
        "budget"  # its agent has used what it may in a day; a person decides whether it goes on
    )
    CHAIN_PAUSED = "chain_paused"  # a person decides whether the agents go on
    APPROVAL = "approval"  # a person decides whether the agent may
    QUESTION = "question"  # the agent has asked a person
    UNANSWERED = "unanswered"  # nobody has decided or answered in time


#: A reason of a newer peer is kept as it is.
AnyReason: TypeAlias = Annotated[
    Reason | Annotated[str, StringConstraints(max_length=100)],
    Field(union_mode="left_to_right"),
]


class ApprovalDecision(StrEnum):
    """What a person says to what an agent asks for."""

    #: Just this, now; for a question: the answer.
    ONCE = "once"
    #: The same again in this conversation, unasked.
    CONVERSATION = "conversation"
    #: The same again of this agent, unasked.
    ALWAYS = "always"
    DENY = "deny"


#: A decision of a newer peer; whoever does not know it takes it for a refusal.
AnyDecision: TypeAlias = Annotated[
    ApprovalDecision | Annotated[str, StringConstraints(max_length=40)],
    Field(union_mode="left_to_right"),
]


class Resolution(StrEnum):
    """What became of a request, beside a person's decision."""

    EXPIRED = "expired"  # nobody has decided in time; that is a refusal
    CANCELLED = "cancelled"  # the agent no longer waits for it
    RULE = "rule"  # what a person had allowed before covers it; nobody was asked


AnyResolution: TypeAlias = Annotated[Resolution | AnyDecision, Field(union_mode="left_to_right")]


class Usage(BaseModel):
    """Tokens of a turn, and its price where the CLI tells one."""

    model_config = ConfigDict(extra="ignore")

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


class _Event(BaseModel):
    model_config = ConfigDict(extra="allow")

    #: Position in the run, from 1. A driver yields 0; the runner numbers.
    seq: int = Field(default=0, ge=0, le=MAX_NUMBER)
    at: AwareDatetime


class Started(_Event):
    """The coding agent's process is alive."""

    type: Literal["started"] = "started"
    driver: str
    attempt: int = Field(default=1, ge=1, le=MAX_NUMBER)
    launch_id: str
    pid: int | None = None
    #: Whether it resumes an earlier session of this conversation.
    resumed: bool = False


class Ready(_Event):
    """The CLI has reported that it can call our tools."""

    type: Literal["ready"] = "ready"
    session_id: str | None = None
    model: str | None = None


class Text(_Event):
    """One finished block of what the model wrote; `block` counts a run's blocks from 0."""

    type: Literal["text"] = "text"
    block: int
    text: str


class Steered(_Event):
    """A further message was put into the run's turn, and the agent has taken it up.

    From here on the run is the run of that delivery too.
    """

    type: Literal["steered"] = "steered"
    delivery_id: DeliveryId
    message_id: MessageId


class ToolCall(_Event):
    type: Literal["tool_call"] = "tool_call"
    tool_call_id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict[str, Any])


class ToolResult(_Event):
    """A tool's answer, cut to the first and last 15,000 characters (`truncated`)."""

    type: Literal["tool_result"] = "tool_result"
    tool_call_id: str
    output: str
    is_error: bool = False
    truncated: bool = False


class ApprovalRequested(_Event):
    """The agent does nothing more of this before a person has decided whether it may."""

    type: Literal["approval_requested"] = "approval_requested"
    approval_id: ApprovalId
    tool: str
    #: What it comes to: `execute`, `edit`, `fetch`, … or `other`, if not known.
    action: str = "other"
    #: What the tool is to be given, as it is.
    input: dict[str, Any] = Field(default_factory=dict[str, Any])
    #: Whether something of `input` was too long to be shown, or was left out because it is a key.
    truncated: bool = False
    redacted: bool = False
    #: Where it would be done.
    cwd: str | None = None
    #: Files that the command names, with their SHA-256: an answer counts for these contents only.
    files: dict[str, str] = Field(default_factory=dict[str, str])
    #: What `conversation` and `always` would allow, in words; null: it can be allowed once only.
    rule: str | None = None
    #: Names exactly what is asked for, with all that an answer binds.
    digest: str | None = None
    #: When it counts as refused if nobody has decided.
    expires_at: AwareDatetime | None = None


class Question(_Event):
    """The agent asks a person, and waits for the answer."""

    type: Literal["question"] = "question"
    approval_id: ApprovalId
    question: str
    #: Answers to choose from; another one may be given all the same.
    options: list[str] = Field(default_factory=list[str])
    expires_at: AwareDatetime | None = None


class ApprovalResolved(_Event):
    """What became of a request or a question; the agent goes on, or its run ends."""

    type: Literal["approval_resolved"] = "approval_resolved"
    #: Null where nobody was asked, because a rule covers it.
    approval_id: ApprovalId | None = None
    decision: AnyResolution
    #: Who decided.
    by: str
    reason: str | None = None
    answer: str | None = None
    #: Of a rule that was made or used: what it allows, in words.
    rule: str | None = None


class UsageReported(_Event):
    type: Literal["usage"] = "usage"
    usage: Usage


class Retry(_Event):
    """The CLI tries its model again, or the daemon starts another attempt."""

    type: Literal["retry"] = "retry"
    attempt: int
    reason: AnyReason
    delay_s: float = 0.0
    detail: str = ""


class Stderr(_Event):
    """Lines that the process wrote to its standard error, already decoded."""

    type: Literal["stderr"] = "stderr"
    text: str


class Finished(_Event):
    """The end of the run: always its last event, and there is exactly one."""

    type: Literal["finished"] = "finished"
    outcome: Outcome
    reason: AnyReason | None = None
    #: For a person: what happened and what to do. For `silent`, the agent's own reason.
    detail: str = ""
    #: Who asked for the stop, where somebody did: a person's name.
    stopped_by: str | None = None
    exit_code: int | None = None
    stderr_tail: str = ""
    session_id: str | None = None
    usage: Usage | None = None
    #: Of a rate limit: when it is over, where the CLI told that.
    resets_at: AwareDatetime | None = None


class UnknownEvent(_Event):
    """An event of a newer version: kept as it came, shown as nothing."""

    type: str


_KNOWN: TypeAlias = (
    Annotated[Started, Tag("started")]
    | Annotated[Ready, Tag("ready")]
    | Annotated[Text, Tag("text")]
    | Annotated[Steered, Tag("steered")]
    | Annotated[ToolCall, Tag("tool_call")]
    | Annotated[ToolResult, Tag("tool_result")]
    | Annotated[ApprovalRequested, Tag("approval_requested")]
    | Annotated[Question, Tag("question")]
    | Annotated[ApprovalResolved, Tag("approval_resolved")]
    | Annotated[UsageReported, Tag("usage")]
    | Annotated[Retry, Tag("retry")]
    | Annotated[Stderr, Tag("stderr")]
    | Annotated[Finished, Tag("finished")]
)
_TAGS = frozenset(
    {
        "started",
        "ready",
        "text",
        "steered",
        "tool_call",
        "tool_result",
        "approval_requested",
        "question",
        "approval_resolved",
        "usage",
        "retry",
        "stderr",
        "finished",
    }
)


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        kind = cast("dict[str, Any]", value).get("type")
    else:
        kind = getattr(value, "type", None)
    return kind if kind in _TAGS else "unknown"


RunEvent: TypeAlias = Annotated[
    _KNOWN | Annotated[UnknownEvent, Tag("unknown")], Discriminator(_tag)
]
