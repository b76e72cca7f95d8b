"""The tools of one run: what they take, what they do, and that a repeated call does nothing twice.

Knows neither MCP nor sockets: a name and arguments go in, a text comes out.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import anyio
import anyio.to_thread
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cloudagent_protocol.attachments import MAX_ATTACHMENTS, size_text
from cloudagent_protocol.content import MAX_TEXT_CHARS, Attachment
from cloudagent_protocol.frames import AgentEntry
from cloudagent_protocol.ids import ConversationId, MessageId

logger = logging.getLogger(__name__)

#: Characters of MEMORY.md: what an agent may read at once, and what it may let the file grow to.
MAX_MEMORY_CHARS: Final = 200_000
#: How long a send may wait for the disk.
SEND_S: Final = 30.0


class ToolError(Exception):
    """A call that cannot be done; the model reads `str()`."""


@dataclass(frozen=True)
class Asked:
    """A message to another agent that is on its way."""

    message_id: MessageId
    #: Whom it goes to, by its name.
    name: str
    #: Whether an answer comes to the conversation that the agent works in.
    answers_here: bool
    #: Why it is not delivered at once.
    waits_for: str | None = None


class Desk(Protocol):
    """What a run does for its agent's tools."""

    async def send(
        self, text: str, conversation_id: ConversationId | None, paths: Sequence[str] = ()
    ) -> MessageId:
        """Sends in the agent's name, with the files as they are now; durable when it returns.

        Raises:
            ToolError: the agent cannot write there, or a file cannot be sent; then nothing is.
        """
        ...

    async def attach(self, path: str) -> Attachment:
        """Keeps the file as it is now, for the next message; durable when it returns.

        Raises:
            ToolError: it cannot be sent.
        """
        ...

    async def list_messages(
        self, conversation_id: ConversationId | None, limit: int, before: MessageId | None
    ) -> list[dict[str, Any]]:
        """Messages as the API shows them, oldest first.

        Raises:
            ToolError: the backend cannot be asked.
        """
        ...

    def stay_silent(self, reason: str) -> None: ...

    async def list_agents(self) -> list[AgentEntry]:
        """Whom the agent may message.

        Raises:
            ToolError: the backend cannot be asked.
        """
        ...

    async def message_agent(self, wanted: str, text: str) -> Asked:
        """Sends to another agent, by name or id; durable when it returns.

        Raises:
            ToolError: nothing was sent: there is no such agent, or it may not be messaged now.
        """
        ...

    async def ask_user(self, question: str, options: list[str]) -> str:
        """A person's answer, for the model to read; waits until there is one.

        Raises:
            ToolError: nobody can be asked, or the run leaves until there is an answer.
        """
        ...

    @property
    def memory(self) -> Path: ...


@dataclass(frozen=True)
class ToolAnswer:
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    #: JSON schema of its arguments.
    schema: dict[str, Any]


def _sayable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    if not text.strip():
        raise ValueError("must not be blank")
    return text


#: An id as the model spells it.
_Id = Annotated[str, Field(max_length=100)]
_Path = Annotated[str, Field(min_length=1, max_length=4_096)]
_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(_sayable)]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _SendMessage(_Arguments):
    text: _Text = Field(description="The message, as Markdown.")
    conversation_id: _Id | None = Field(
        default=None, description="Another conversation of yours; without it, this one."
    )
    attachments: list[_Path] = Field(
        default_factory=list[str],
        max_length=MAX_ATTACHMENTS,
        description="Paths of files to send with it, from your folders.",
    )


class _AttachFile(_Arguments):
    path: _Path = Field(description="Of a file in your folders, absolute or from where you work.")


class _ListMessages(_Arguments):
    conversation_id: _Id | None = Field(
        default=None, description="Another conversation of yours; without it, this one."
    )
    limit: int = Field(default=20, ge=1, le=100)
    before: _Id | None = Field(
        default=None, description="A message's id: only what was said before it."
    )


class _StaySilent(_Arguments):
    reason: Annotated[_Text, Field(max_length=2_000)] = Field(
        description="Why no answer is called for; the person can see it."
    )


class _AskUser(_Arguments):
    question: Annotated[_Text, Field(max_length=10_000)] = Field(
        description="What you need to know. The person sees nothing else: say all."
    )
    options: list[Annotated[_Text, Field(max_length=500)]] = Field(
        default_factory=list[str],
        max_length=12,
        description="Answers to choose from; the person may give another one.",
    )


class _ListAgents(_Arguments):
    pass


class _MessageAgent(_Arguments):
    agent: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="Its name or id, as `list_agents` shows them."
    )
    text: _Text = Field(
        description="The message, as Markdown. It knows nothing of your conversation: say all."
    )


class _ReadMemory(_Arguments):
    pass


class _AppendMemory(_Arguments):
    text: _Text = Field(description="What to remember; becomes a paragraph of MEMORY.md.")


class Toolbox:
    """The tools of one run."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._writing = anyio.Lock()
        #: Answers by call, so that a call that is repeated under its key is only answered again.
        self._answers: dict[str, ToolAnswer] = {}
        #: Sends whose answer never reached the agent; it will likely try them again.
        self._unheard: dict[tuple[str | None, ...], str] = {}
        self._running = 0
        self._idle = anyio.Event()
        self._idle.set()

    async def call(self, name: str, arguments: dict[str, Any], key: str) -> ToolAnswer:
        """Does a call; `key` names it, so that a repetition under the same key has no effect."""
        self._running += 1
        if self._running == 1:
            self._idle = anyio.Event()
        try:
            return await self._call(name, arguments, key)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def heard(self, key: str) -> None:
        """The answer to this call has reached the agent."""
        self._unheard = {what: call for what, call in self._unheard.items() if call != key}

    async def idle(self) -> None:
        """Waits until no call is under way."""
        await self._idle.wait()

    async def _call(self, name: str, arguments: dict[str, Any], key: str) -> ToolAnswer:
        entry = _TOOLS.get(_MEANT_BY.get(name, name))
        if entry is None:
            return ToolAnswer(f"There is no tool {name!r}; there are {', '.join(_TOOLS)}.", True)
        model, do = entry
        try:
            parsed = model.model_validate(arguments)
        except ValidationError as error:
            return ToolAnswer(_complaint(name, error), is_error=True)
        try:
            return await do(self, parsed, key)
        except ToolError as error:
            return ToolAnswer(str(error), is_error=True)
        except (OSError, TimeoutError) as error:
            logger.exception("a tool failed", extra={"action": "tool", "tool": name})
            return ToolAnswer(f"{name} failed on the agent's machine: {error!r}.", is_error=True)

    async def send_message(self, arguments: _SendMessage, key: str) -> ToolAnswer:
        conversation = arguments.conversation_id

        async def send() -> ToolAnswer:
            there = ConversationId(conversation) if conversation else None
            sent = await self._desk.send(arguments.text, there, arguments.attachments)
            return ToolAnswer(f"Sent as {sent}.")

        what = ("send_message", conversation, arguments.text, *arguments.attachments)
        return await self._once(key, what, send)

    async def attach_file(self, arguments: _AttachFile, key: str) -> ToolAnswer:
        async def attach() -> ToolAnswer:
            kept = await self._desk.attach(arguments.path)
            what = f"{kept.name} ({kept.media_type}, {size_text(kept.size_bytes)})"
            return ToolAnswer(f"{what} goes with your next message; the file may change now.")

        return await self._once(key, ("attach_file", arguments.path), attach)

    async def message_agent(self, arguments: _MessageAgent, key: str) -> ToolAnswer:
        async def send() -> ToolAnswer:
            asked = await self._desk.message_agent(arguments.agent, arguments.text)
            return ToolAnswer(_on_its_way(asked))

        what = ("message_agent", arguments.agent, arguments.text)
        return await self._once(key, what, send)

    async def _once(
        self, key: str, what: tuple[str | None, ...], send: Callable[[], Awaitable[ToolAnswer]]
    ) -> ToolAnswer:
        """Sends, unless this call did so already, or one that said the same and was not heard."""
        # Shielded: a call that the agent gives up halfway is either done or not begun.
        with anyio.CancelScope(shield=True):
            async with self._writing:
                earlier = self._unheard.get(what, "")
                if key not in self._answers and earlier in self._answers:
                    self._answers[key] = self._answers[earlier]
                if key not in self._answers:
                    with anyio.fail_after(SEND_S):
                        self._answers[key] = await send()
                    self._unheard[what] = key
        return self._answers[key]

    async def ask_user(self, arguments: _AskUser, key: str) -> ToolAnswer:
        return ToolAnswer(await self._desk.ask_user(arguments.question, arguments.options))

    async def list_agents(self, arguments: _ListAgents, key: str) -> ToolAnswer:
        lines = [
            f"{one.name} ({one.id}): {one.driver} on {one.host}, {one.status}"
            for one in await self._desk.list_agents()
        ]
        return ToolAnswer("\n".join(lines) or "There are no other agents.")

    async def list_messages(self, arguments: _ListMessages, key: str) -> ToolAnswer:
        messages = await self._desk.list_messages(
            ConversationId(arguments.conversation_id) if arguments.conversation_id else None,
            arguments.limit,
            MessageId(arguments.before) if arguments.before else None,
        )
        lines = [
            f"[{message['id']}] {message['created_at']} {message['author']['name']}:\n"
            f"{message['text']}"
            for message in messages
        ]
        return ToolAnswer("\n\n".join(lines) or "No messages.")

    async def stay_silent(self, arguments: _StaySilent, key: str) -> ToolAnswer:
        self._desk.stay_silent(arguments.reason)
        return ToolAnswer("Noted. End your turn now; nothing will be shown but this reason.")

    async def read_memory(self, arguments: _ReadMemory, key: str) -> ToolAnswer:
        text = await anyio.to_thread.run_sync(_read_memory, self._desk.memory)
        return ToolAnswer(text[:MAX_MEMORY_CHARS] or "(MEMORY.md is empty.)")

    async def append_memory(self, arguments: _AppendMemory, key: str) -> ToolAnswer:
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if key not in self._answers:
                    await anyio.to_thread.run_sync(
                        _append_memory, self._desk.memory, arguments.text
                    )
                    self._answers[key] = ToolAnswer("Remembered.")
        return self._answers[key]


def _read_memory(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _append_memory(path: Path, text: str) -> None:
    """Adds a paragraph.

    Raises:
        ToolError: the file would become too long to be read.
    """
    before = _read_memory(path)
    if len(before) + len(text) + 2 > MAX_MEMORY_CHARS:
        raise ToolError(
            f"{path} is full ({len(before)} characters). Shorten it, or write to notes/ instead."
        )
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{gap}{text.rstrip()}\n")


def _on_its_way(asked: Asked) -> str:
    text = f"Sent to {asked.name} as {asked.message_id}."
    if asked.waits_for:
        text += f" It waits: {asked.waits_for}."
    if asked.answers_here:
        text += (
            f" {asked.name}'s answer will come as a new message of this conversation and begin your "
            "next turn: do not wait for it."
        )
    return text


def _complaint(tool: str, error: ValidationError) -> str:
    parts = [
        f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    return f"{tool} was not called. {'; '.join(parts)}."


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    properties = schema.get("properties", {})
    for part in (schema, *properties.values()):
        part.pop("title", None)
    return schema


_Do = Callable[[Toolbox, Any, str], Awaitable[ToolAnswer]]
_TOOLS: Final[dict[str, tuple[type[_Arguments], _Do]]] = {
    "send_message": (_SendMessage, Toolbox.send_message),
    "attach_file": (_AttachFile, Toolbox.attach_file),
    "list_messages": (_ListMessages, Toolbox.list_messages),
    "stay_silent": (_StaySilent, Toolbox.stay_silent),
    "ask_user": (_AskUser, Toolbox.ask_user),
    "list_agents": (_ListAgents, Toolbox.list_agents),
    "message_agent": (_MessageAgent, Toolbox.message_agent),
    "read_memory": (_ReadMemory, Toolbox.read_memory),
    "append_memory": (_AppendMemory, Toolbox.append_memory),
}
_DESCRIPTIONS: Final = {
    "send_message": "Send a message into the conversation. The person sees only what you send "
    "this way. It is stored when this returns; do not send it again.",
    "attach_file": "Send a file to the person: it goes with your next message in this conversation, as it is "
    "now. Pictures are shown.",
    "list_messages": "Earlier messages of the conversation, oldest first.",
    "stay_silent": "End your turn without an answer, with your reason.",
    "ask_user": "Ask the person a question that you cannot go on without, and wait for the answer. It may "
    "take long; your work may be paused meanwhile.",
    "list_agents": "The other agents that you can message: name, id, machine, what they do now.",
    "message_agent": "Send a message to another agent, which begins a turn of it. It is stored when "
    "this returns; do not send it again, and do not wait: an answer begins a new turn of yours.",
    "read_memory": "Read MEMORY.md, what you remember across conversations.",
    "append_memory": "Add a paragraph to MEMORY.md.",
}
TOOLS: Final = tuple(
    Tool(name, _DESCRIPTIONS[name], _schema(model)) for name, (model, _) in _TOOLS.items()
)
#: What a tool is called where a program keeps its name for one of its own (docs/decisions/0029).
OTHER_NAMES: Final = {"ask_user": "ask_person"}
_MEANT_BY: Final = {other: name for name, other in OTHER_NAMES.items()}
#: All that a call of one of them may be named.
NAMES: Final = frozenset({*_TOOLS, *_MEANT_BY})


def offered(reserved: Collection[str]) -> tuple[Tool, ...]:
    """The tools for a program that keeps these names, each of `OTHER_NAMES`, for its own."""
    return tuple(
        replace(tool, name=OTHER_NAMES[tool.name]) if tool.name in reserved else tool
        for tool in TOOLS
    )
