"""The things that the HTTP API shows, and the bodies that create and change them.

What we send has these fields and no others; what we receive may have more (a newer peer).
Times are aware UTC.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from cloudagent_protocol.attachments import MAX_ATTACHMENTS
from cloudagent_protocol.content import Attachment, MaybeText, MessageText
from cloudagent_protocol.diffs import ChangeCount, Diff
from cloudagent_protocol.events import AnyDecision, ApprovalDecision, Usage
from cloudagent_protocol.ids import (
    AgentId,
    ApprovalId,
    AttachmentId,
    ConversationId,
    DeliveryId,
    HostId,
    MessageId,
    RunId,
    TokenId,
    UserId,
)

Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$"
    ),
]
#: On an id that a caller sends: bounded, and checked to be text that UTF-8 can spell.
_SENT: Final = StringConstraints(min_length=1, max_length=100)
T = TypeVar("T")


class Resource(BaseModel):
    """Something the API shows."""

    model_config = ConfigDict(extra="ignore")


class Body(BaseModel):
    """Something a caller sends; an unknown field is an error, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")


class Page(Resource, Generic[T]):
    """One page of a list; `next_cursor` goes into `?after=`, null on the last page."""

    data: list[T]
    next_cursor: str | None = None


# --- people ---------------------------------------------------------------------------


class User(Resource):
    id: UserId
    email: str
    name: str
    is_admin: bool = False
    created_at: AwareDatetime


class Session(Resource):
    """The answer to a login; the page gets a cookie beside it."""

    user: User
    access_token: str
    refresh_token: str
    expires_in: int


class Token(Resource):
    """A personal access token; `raw_token` is there only in the answer that creates it."""

    id: TokenId
    name: str
    last_four: str
    created_at: AwareDatetime
    last_used_at: AwareDatetime | None = None
    raw_token: str | None = None


class TokenCreate(Body):
    name: Name


# --- host machines --------------------------------------------------------------------


class HostState(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    DRAINING = "draining"


#: Names of models that a host tells of one program.
MAX_MODELS: Final = 50
_ModelName = Annotated[str, StringConstraints(max_length=100)]


class Runtime(Resource):
    """An agent program found on a host; `problem` says why it cannot be used."""

    name: str
    version: str | None = None
    path: str | None = None
    logged_in: bool | None = None
    problem: str | None = None
    #: What a person should know of one that can be used, and what to do about it.
    warning: str | None = None
    #: What it offers by name; null: not known, or not asked yet.
    models: Annotated[list[_ModelName], Field(max_length=MAX_MODELS)] | None = None


class Hold(Resource):
    """Why a machine starts nothing for now, of one agent or at all; it goes on by itself."""

    #: `memory_low`, `disk_low`, `descriptors_low`: the machine's; `installation_gone`, `…_orphaned`,
    #: `…_broken`: the daemon's; `crash_loop`: an agent's.
    reason: Annotated[str, StringConstraints(max_length=40, pattern=r"^[a-z_]+$")]
    #: For a person.
    detail: Annotated[str, StringConstraints(max_length=500)]
    #: Whose messages wait; null: everybody's.
    agent_id: Annotated[AgentId, _SENT] | None = None
    #: When it is tried again, if a time is set.
    until: AwareDatetime | None = None


class HostMachine(Resource):
    id: HostId
    name: str
    hostname: str
    os: str
    daemon_version: str
    state: HostState
    last_seen_at: AwareDatetime | None = None
    runtimes: list[Runtime] = Field(default_factory=list[Runtime])
    #: As of its last word; of one that is offline they say nothing.
    holds: list[Hold] = Field(default_factory=list[Hold])
    key_last_four: str
    created_at: AwareDatetime
    #: Of an ephemeral host: the one whose key made it, and whose agents it serves.
    parent_id: HostId | None = None


class HostMachineCreate(Body):
    name: Name
    hostname: Annotated[str, StringConstraints(max_length=255)] = ""
    os: Annotated[str, StringConstraints(max_length=50)] = ""
    daemon_version: Annotated[str, StringConstraints(max_length=50)] = ""


class HostMachineWithKey(HostMachine):
    """The answer that creates a host or rotates its key: the only time the key is shown."""

    raw_key: str


class EphemeralHostCreate(HostMachineCreate):
    """A host for the time of one job, made with the key of another host."""

    #: Id or name of the one agent that it serves; null: all agents of the parent.
    agent: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    #: Deliveries that it takes in its life.
    takes: Annotated[int, Field(ge=1, le=1_000)] = 1


# --- agents ---------------------------------------------------------------------------


class Driver(StrEnum):
    CLAUDE_CODE = "claude_code"
    CODEX = "codex"
    OPENCODE = "opencode"
    GEMINI = "gemini"
    QWEN = "qwen"
    ACP = "acp"  # any program that speaks the Agent Client Protocol, by the agent's `command`
    BUILTIN = "builtin"
    SCRIPTED = "scripted"


class AgentStatus(StrEnum):
    IDLE = "idle"
    WORKING = "working"
    WAITING = "waiting"
    CRASHED = "crashed"
    OFFLINE = "offline"
    RUNTIME_MISSING = "runtime_missing"


class AgentRef(Resource):
    """An agent, by what it is called and what drives it."""

    id: AgentId
    name: str
    driver: Driver | str


class AgentSpec(AgentRef):
    """What a daemon must know of an agent to run it."""

    model: str | None = None
    instructions: str | None = None
    #: `default`, `acceptEdits`, `plan`, `bypassPermissions`: the driver's permission mode.
    mode: str = "default"
    command: list[str] | None = None
    env: dict[str, str] = Field(default_factory=dict[str, str])
    cwd: str | None = None
    #: Silence after which a run of it is ended; null: what its machine's owner has set.
    hang_timeout_s: float | None = None
    #: What happens when nobody has answered a request of it for a while: `ask` (so is null) goes on
    #: asking, with its process ended, and `deny` refuses, so that it goes on without.
    unattended: str | None = None
    #: Whether each conversation's runs work in a git work tree of their own: `per_conversation`; null
    #: is `off`.
    worktree: str | None = None


class AgentLimits(Resource):
    """What an agent may do without asking a person."""

    #: Whether a turn that a rate limit has cut off goes on by itself when that is over.
    auto_resume: bool = False
    #: How often in a row for one message, and how far ahead that may be.
    resume_times: Annotated[int, Field(ge=1, le=20)] = 3
    resume_within_h: Annotated[float, Field(gt=0, le=192, allow_inf_nan=False)] = 24.0
    #: What its turns may use in a day (UTC) before a person is asked; null: as much as they want.
    day_tokens: Annotated[int, Field(ge=1, le=10**12)] | None = None
    day_cost_usd: Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)] | None = None


class AgentPause(Resource):
    """Why nothing further of an agent is sent to its machine, until a person has decided."""

    reason: Literal["budget"] | str
    #: For a person.
    detail: str
    since: AwareDatetime
    #: When it ends by itself.
    until: AwareDatetime
    #: Messages that wait.
    waiting: int
    #: Which of the day's pauses it is; an answer may name it.
    pause: int


class DayUsage(Resource):
    """What the turns of an agent used that ended on a day (UTC)."""

    agent_id: AgentId
    day: str
    turns: int
    input_tokens: int
    output_tokens: int
    #: Where its program tells a price; 0 where it does not.
    cost_usd: float


class EphemeralHost(HostMachineWithKey):
    """The answer that creates one: what it may do, and how long it may be away."""

    agents: list[AgentRef]
    takes: int
    #: Seconds without a connection after which the backend removes it.
    ttl_s: float


class Agent(AgentSpec):
    runtime: Literal["local_daemon"] = "local_daemon"
    limits: AgentLimits = Field(default_factory=AgentLimits)
    pause: AgentPause | None = None
    host_machine_id: HostId
    status: AgentStatus
    created_at: AwareDatetime


_EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
_EnvValue = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00-\x08\x0b-\x1f]*$")]
_Env = Annotated[dict[_EnvName, _EnvValue], Field(max_length=50)]
_Word = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f]+$")
]
_Command = Annotated[list[_Word], Field(min_length=1, max_length=50)]
_Path = Annotated[str, StringConstraints(max_length=4_096, pattern=r"^(/|~)[^\x00]*$")]
#: At least as long as a coding agent may be silent at its start; at most a week.
_HangTimeout = Annotated[float, Field(ge=10, le=604_800, allow_inf_nan=False)]
_Mode = Literal["default", "acceptEdits", "plan", "bypassPermissions"]
_Unattended = Literal["ask", "deny"]
_Worktree = Literal["off", "per_conversation"]
_Model = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][^\x00-\x20\x7f]*$")
]
_Instructions = Annotated[str, StringConstraints(max_length=20_000, pattern=r"^[^\x00]*$")]


class AgentLimitsGiven(AgentLimits):
    """As a caller sends them: whole, what is left out is as it is at first."""

    model_config = ConfigDict(extra="forbid")


class AgentCreate(Body):
    name: Name
    runtime: Literal["local_daemon"] = "local_daemon"
    driver: Driver = Driver.CLAUDE_CODE
    host_machine_id: Annotated[HostId, _SENT]
    model: _Model | None = None
    instructions: _Instructions | None = None
    mode: _Mode = "default"
    command: _Command | None = None
    env: _Env = Field(default_factory=dict[str, str])
    cwd: _Path | None = None
    hang_timeout_s: _HangTimeout | None = None
    unattended: _Unattended | None = None
    worktree: _Worktree | None = None
    limits: AgentLimitsGiven | None = None


class AgentUpdate(Body):
    """Only the fields that are sent change; null clears an optional one."""

    name: Name | None = None
    driver: Driver | None = None
    model: _Model | None = None
    instructions: _Instructions | None = None
    mode: _Mode | None = None
    command: _Command | None = None
    env: _Env | None = None
    cwd: _Path | None = None
    hang_timeout_s: _HangTimeout | None = None
    unattended: _Unattended | None = None
    worktree: _Worktree | None = None
    limits: AgentLimitsGiven | None = None


# --- conversations and messages -------------------------------------------------------


class Conversation(Resource):
    id: ConversationId
    title: str | None = None
    #: `agents`: of two agents with each other; what one of them says is delivered to the other.
    kind: Literal["people", "agents"] = "people"
    agent_ids: list[AgentId]
    created_at: AwareDatetime
    last_message_at: AwareDatetime | None = None


class ConversationCreate(Body):
    agent_ids: Annotated[list[Annotated[AgentId, _SENT]], Field(min_length=1, max_length=50)]
    title: Name | None = None


class DeliveryState(StrEnum):
    """Where a delivery is; `delivery/states.py` holds the allowed moves."""

    QUEUED = "queued"
    LEASED = "leased"
    RECEIVED = "received"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


class DeliveryMode(StrEnum):
    """How a message takes its place among what its agent has still to do."""

    #: After everything that was sent to the agent before.
    QUEUE = "queue"
    #: Into the turn that is under way in its conversation; where the driver cannot, as `queue`.
    STEER = "steer"
    #: Next, before all that has not begun; what runs in its conversation is stopped.
    INTERRUPT = "interrupt"


class Author(Resource):
    type: Literal["user", "agent", "system"]
    id: str
    name: str


class DeliverySummary(Resource):
    id: DeliveryId
    agent_id: AgentId
    #: Its place: of what waits for an agent, the smallest number begins next. A later message has a
    #: larger one, and one that interrupts a smaller one than all before it.
    seq: int
    state: DeliveryState
    mode: DeliveryMode = DeliveryMode.QUEUE
    #: The earlier delivery of the message that this one does over again.
    retry_of: DeliveryId | None = None


class Message(Resource):
    id: MessageId
    conversation_id: ConversationId
    author: Author
    text: str
    attachments: list[Attachment] = Field(default_factory=list[Attachment])
    created_at: AwareDatetime
    deliveries: list[DeliverySummary] = Field(default_factory=list[DeliverySummary])
    in_reply_to: MessageId | None = None
    run_id: RunId | None = None
    auto_published: bool | None = None
    #: The person's message that began it all: its own id for a person's.
    chain_id: MessageId | None = None
    #: Messages between that one and this one, this one counted; 0: it is a person's.
    depth: int = 0
    #: What its author worked on when it sent this.
    caused_by: MessageId | None = None
    #: What it wants instead of the agent's own; null: nothing.
    model: str | None = None
    permission_mode: str | None = None


class _Said(Body):
    """What somebody says: a text, files that were uploaded before, or both."""

    text: MaybeText = ""
    attachments: Annotated[
        list[Annotated[AttachmentId, _SENT]], Field(max_length=MAX_ATTACHMENTS)
    ] = Field(default_factory=list[AttachmentId])
    #: For the turn of this message alone. A mode may be the agent's own or a narrower one.
    model: _Model | None = None
    permission_mode: _Mode | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.attachments and not self.text.strip():
            raise ValueError("a message without attachments needs a text that is not all blank")
        return self


class AgentMessageCreate(_Said):
    """A message to one agent; without `conversation_id` it goes to their latest conversation.

    With `host_machine_id` it goes to that machine alone: an ephemeral one that serves the agent.
    """

    conversation_id: Annotated[ConversationId, _SENT] | None = None
    host_machine_id: Annotated[HostId, _SENT] | None = None
    mode: DeliveryMode = DeliveryMode.QUEUE


class MessageCreate(_Said):
    """A message into a conversation, for all of its agents or the one named."""

    agent_id: Annotated[AgentId, _SENT] | None = None
    mode: DeliveryMode = DeliveryMode.QUEUE


class MessageEdit(Body):
    """Other words for a message that waits in the backend's queue."""

    text: MessageText


class MessageMove(Body):
    """Another place for a message that waits: before that one, or (null) behind all of its conversation."""

    before: Annotated[MessageId, _SENT] | None = None


# --- where a message is ---------------------------------------------------------------


class RungName(StrEnum):
    """The receipt ladder, in its order; the last six are ends."""

    STORED = "stored"
    SENT = "sent"
    RECEIVED = "received"
    STARTED = "started"
    READY = "ready"
    SEEN = "seen"
    WAITING = "waiting"
    ANSWERED = "answered"
    INTERRUPTED = "interrupted"
    REPLIED = "replied"
    SILENT = "silent"
    AUTO_PUBLISHED = "auto_published"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


class Rung(Resource):
    """One thing that is known to have happened: when, by whom, and why if it went wrong."""

    rung: RungName | str
    at: AwareDatetime
    #: `backend`, a host's name, an agent's name, or a person's.
    actor: str
    #: For a person.
    detail: str | None = None
    #: For a program: a member of `Reason`, where something waits, failed, or was cut off.
    reason: str | None = None


class DeliveryTrace(Resource):
    id: DeliveryId
    message_id: MessageId
    conversation_id: ConversationId
    agent_id: AgentId
    run_id: RunId | None = None
    state: DeliveryState
    mode: DeliveryMode = DeliveryMode.QUEUE
    #: The earlier delivery of the message that this one does over again.
    retry_of: DeliveryId | None = None
    outcome: str | None = None
    reason: str | None = None
    #: Of one that is queued for a machine that takes nothing: its name, and since when it is offline
    #: or shutting down (null: it has never been here).
    waits_on: str | None = None
    waits_since: AwareDatetime | None = None
    #: When a rate limit is over that it waits for, or a pause of its agent.
    waits_until: AwareDatetime | None = None
    attempt: int = 0
    #: Who asked to stop it, while that is not done yet.
    interrupted_by: str | None = None
    #: Who asked, after that, to end it at once.
    ended_by: str | None = None
    rungs: list[Rung]


class RunInterrupt(Body):
    #: Whether its processes are killed at once, rather than asked to stop first: what they were in the
    #: middle of stays as it is.
    now: bool = False


class Trace(Resource):
    message_id: MessageId
    deliveries: list[DeliveryTrace]
    chain_id: MessageId | None = None
    depth: int = 0
    caused_by: MessageId | None = None


# --- chains ---------------------------------------------------------------------------


class ChainState(StrEnum):
    """Whether the agents' messages of a chain are delivered."""

    ACTIVE = "active"
    #: It has had its turns; what is further wanted waits until a person has decided.
    PAUSED = "paused"
    STOPPED = "stopped"


ChainDecision = Literal["continue", "stop"]


class ChainAnswer(Resource):
    """What a person decided when a chain had paused."""

    decision: ChainDecision
    by: str
    at: AwareDatetime


class Chain(Resource):
    """All that followed from one message of a person's, as far as agents message each other.

    A *turn* is one delivery of an agent's message to another agent: the person's own message, and
    attempts that go on with a run that was cut off, do not count.
    """

    #: The id of the message that began it.
    id: MessageId
    conversation_id: ConversationId
    author: Author
    #: The first words of that message.
    opening: str
    state: ChainState
    turns: int
    #: It pauses when it wants more.
    turns_allowed: int
    #: What the runs that are over have used, that of the first message included.
    usage: Usage = Field(default_factory=Usage)
    #: It pauses when it has used so much; null: no limit.
    tokens_allowed: int | None = None
    cost_usd_allowed: float | None = None
    #: Deliveries that wait for a person's decision.
    waiting: int
    #: How often it has paused so far.
    pauses: int
    paused_at: AwareDatetime | None = None
    answers: list[ChainAnswer] = Field(default_factory=list[ChainAnswer])
    #: Where its messages stand or are worked on, the first one's included.
    conversation_ids: list[ConversationId]
    agent_ids: list[AgentId]


class ChainDecide(Body):
    decision: ChainDecision
    #: Which pause this answers, as `Chain.pauses` counts them; null: the one of now.
    pause: Annotated[int, Field(ge=1, le=2**31)] | None = None


# --- runs -----------------------------------------------------------------------------


class RunState(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    FINISHED = "finished"


class Run(Resource):
    id: RunId
    agent_id: AgentId
    conversation_id: ConversationId
    delivery_ids: list[DeliveryId]
    driver: str
    state: RunState
    outcome: str | None = None
    reason: str | None = None
    attempt: int = 1
    session_id: str | None = None
    usage: Usage | None = None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    #: What it changed in the repository that it worked in; null: nothing, or nothing is known (yet).
    changes: ChangeCount | None = None


class RunDiff(Diff):
    """What a run changed, file by file."""

    run_id: RunId


# --- approvals ------------------------------------------------------------------------


class ApprovalKind(StrEnum):
    PERMISSION = "permission"
    QUESTION = "question"


class ApprovalState(StrEnum):
    #: It waits for a person.
    PENDING = "pending"
    #: A person has decided, and the machine has not acted on it yet.
    ANSWERED = "answered"
    #: The machine has acted on the decision.
    RESOLVED = "resolved"
    #: Nobody has decided in time.
    EXPIRED = "expired"
    #: The agent no longer waits for it; `detail` says why.
    CANCELLED = "cancelled"


class Approval(Resource):
    """What an agent may not do, or does not know, without a person."""

    id: ApprovalId
    kind: ApprovalKind
    state: ApprovalState
    agent_id: AgentId
    conversation_id: ConversationId
    host_machine_id: HostId
    delivery_id: DeliveryId
    run_id: RunId
    #: Of a permission: see `ApprovalRequested`.
    tool: str | None = None
    action: str | None = None
    input: dict[str, Any] | None = None
    truncated: bool = False
    redacted: bool = False
    cwd: str | None = None
    files: dict[str, str] = Field(default_factory=dict[str, str])
    #: What `conversation` and `always` would allow; null: it can be allowed once only.
    rule: str | None = None
    #: Of a question.
    question: str | None = None
    options: list[str] = Field(default_factory=list[str])
    requested_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    decision: AnyDecision | None = None
    reason: str | None = None
    answer: str | None = None
    decided_by: str | None = None
    decided_at: AwareDatetime | None = None
    #: When the machine acted on it, or it was over without a decision.
    ended_at: AwareDatetime | None = None
    #: For a person: what became of it, where that is not the decision.
    detail: str | None = None


class ApprovalAnswer(Body):
    """A person's decision; to a question `answer` is the answer, and `deny` declines to give one."""

    decision: ApprovalDecision = ApprovalDecision.ONCE
    #: For the agent: why not.
    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000)] | None = None
    answer: (
        Annotated[
            str,
            StringConstraints(
                strip_whitespace=True, min_length=1, max_length=20_000, pattern=r"^[^\x00]*$"
            ),
        ]
        | None
    ) = None


# --- the event log --------------------------------------------------------------------


class EventType(StrEnum):
    MESSAGE_CREATED = "message.created"  # data: Message
    MESSAGE_UPDATED = "message.updated"  # data: Message
    DELIVERY_UPDATED = "delivery.updated"  # data: DeliveryTrace
    CHAIN_UPDATED = "chain.updated"  # data: Chain; when it pauses and when a person has decided
    RUN_STARTED = "run.started"  # data: Run
    RUN_DELTA = "run.delta"  # data: {run_id, conversation_id, block, offset, text}; not kept
    RUN_EVENT = "run.event"  # data: {run_id, conversation_id, agent_id, event}
    RUN_FINISHED = "run.finished"  # data: Run
    RUN_UPDATED = "run.updated"  # data: Run; what it changed is known
    APPROVAL_REQUESTED = "approval.requested"  # data: Approval
    APPROVAL_RESOLVED = "approval.resolved"  # data: Approval; when decided, and when it is over
    HOST_UPDATED = "host.updated"  # data: HostMachine, or {id, deleted: true}
    AGENT_UPDATED = "agent.updated"  # data: Agent, or {id, deleted: true}
    PING = "ping"  # data: {}
    RESYNC = "resync"  # data: {}; what was asked for is no longer kept: fetch anew


class Event(Resource):
    """One line of a person's event log.

    `id` rises, without gaps being promised. Events that are not kept (`run.delta`, `ping`)
    carry the id of the newest kept one, so that resuming after any id loses nothing.
    """

    id: int
    type: EventType | str
    at: AwareDatetime
    data: dict[str, Any]
