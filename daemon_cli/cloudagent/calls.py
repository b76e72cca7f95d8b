"""Every request of the API as a value: what to send, and how to read the answer.

Nothing here does I/O, so the synchronous and the asynchronous client share it. What takes more
than one request is a *flow*: a generator that asks with `answer = yield from call` and returns
its result; a transport runs it.
"""

import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import RunEvent
from cloudagent_protocol.ids import MessageId
from cloudagent_protocol.resources import (
    Agent,
    AgentCreate,
    AgentMessageCreate,
    AgentUpdate,
    Approval,
    ApprovalAnswer,
    ApprovalState,
    Chain,
    ChainDecide,
    ChainState,
    Conversation,
    ConversationCreate,
    DayUsage,
    HostMachine,
    HostMachineCreate,
    HostMachineWithKey,
    Message,
    MessageCreate,
    MessageEdit,
    MessageMove,
    Page,
    Run,
    RunDiff,
    RunInterrupt,
    Trace,
    User,
)

T = TypeVar("T")
P = TypeVar("P")

_RUN_EVENTS: TypeAdapter[Page[RunEvent]] = TypeAdapter(Page[RunEvent])


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. The same value may be sent again: a POST carries its Idempotency-Key."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    #: A path: what that file holds, read as it is sent.
    content: bytes | Path | None = None
    idempotency_key: str | None = None
    content_type: str = "application/json"

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self.content is not None:
            headers["Content-Type"] = self.content_type
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        return headers

    def __iter__(self) -> "Generator[Call[Any], Any, T]":
        """For `answer = yield from call` in a flow."""
        return (yield self)


Flow: TypeAlias = Generator[Call[Any], Any, T]


class PageCall(Protocol[T]):
    """Makes the call for the page that begins after a cursor; None for the first."""

    def __call__(self, after: str | None) -> Call[Page[T]]: ...


def _nothing(body: bytes) -> None:
    del body


def _get(path: str, read: Callable[[bytes], T], **params: str | int | None) -> Call[T]:
    known = {name: value for name, value in params.items() if value is not None}
    return Call("GET", path, read, known)


def _write(
    method: str, path: str, read: Callable[[bytes], T], body: BaseModel | None, key: str | None
) -> Call[T]:
    # Only what the caller set travels: PATCH means those, and defaults are the server's to know.
    content = None if body is None else body.model_dump_json(exclude_unset=True).encode()
    if method == "POST":
        key = key or str(uuid.uuid4())
    return Call(method, path, read, content=content, idempotency_key=key)


def _pages(path: str, read: Callable[[bytes], Page[P]], **params: str | None) -> PageCall[P]:
    return lambda after: _get(path, read, limit=100, after=after, **params)


def _part(identifier: str) -> str:
    """An id as one part of a path, whatever it holds."""
    # A part of dots only would be resolved away on the way; no id looks so.
    return quote(identifier, safe="").replace(".", "%2E") if identifier else "%20"


# --- agents ---------------------------------------------------------------------------


def list_agents() -> PageCall[Agent]:
    return _pages("/v1/agents", Page[Agent].model_validate_json)


def create_agent(body: AgentCreate, key: str | None = None) -> Call[Agent]:
    return _write("POST", "/v1/agents", Agent.model_validate_json, body, key)


def update_agent(agent_id: str, body: AgentUpdate) -> Call[Agent]:
    path = f"/v1/agents/{_part(agent_id)}"
    return _write("PATCH", path, Agent.model_validate_json, body, None)


def delete_agent(agent_id: str) -> Call[None]:
    return _write("DELETE", f"/v1/agents/{_part(agent_id)}", _nothing, None, None)


def message_agent(agent_id: str, body: AgentMessageCreate, key: str | None = None) -> Call[Message]:
    path = f"/v1/agents/{_part(agent_id)}/messages"
    return _write("POST", path, Message.model_validate_json, body, key)


# --- hosts ----------------------------------------------------------------------------


def get_own_host() -> Call[HostMachine]:
    """For a machine: what its key stands for."""
    return _get("/v1/daemon/host", HostMachine.model_validate_json)


def list_hosts() -> PageCall[HostMachine]:
    return _pages("/v1/host-machines", Page[HostMachine].model_validate_json)


def get_host(host_id: str) -> Call[HostMachine]:
    return _get(f"/v1/host-machines/{_part(host_id)}", HostMachine.model_validate_json)


def create_host(body: HostMachineCreate, key: str | None = None) -> Call[HostMachineWithKey]:
    read = HostMachineWithKey.model_validate_json
    return _write("POST", "/v1/host-machines", read, body, key)


def rotate_host_key(host_id: str, key: str | None = None) -> Call[HostMachineWithKey]:
    path = f"/v1/host-machines/{_part(host_id)}/rotate-key"
    return _write("POST", path, HostMachineWithKey.model_validate_json, None, key)


def delete_host(host_id: str) -> Call[None]:
    return _write("DELETE", f"/v1/host-machines/{_part(host_id)}", _nothing, None, None)


# --- conversations and messages -------------------------------------------------------


def list_conversations(agent_id: str | None = None) -> PageCall[Conversation]:
    """Newest first; with `agent_id` those of one agent."""
    read = Page[Conversation].model_validate_json
    return _pages("/v1/conversations", read, agent_id=agent_id)


def get_conversation(conversation_id: str) -> Call[Conversation]:
    path = f"/v1/conversations/{_part(conversation_id)}"
    return _get(path, Conversation.model_validate_json)


def create_conversation(body: ConversationCreate, key: str | None = None) -> Call[Conversation]:
    return _write("POST", "/v1/conversations", Conversation.model_validate_json, body, key)


def list_messages(conversation_id: str) -> PageCall[Message]:
    """Oldest first; a message's id is the cursor of what follows it."""
    path = f"/v1/conversations/{_part(conversation_id)}/messages"
    return _pages(path, Page[Message].model_validate_json)


def create_message(
    conversation_id: str, body: MessageCreate, key: str | None = None
) -> Call[Message]:
    path = f"/v1/conversations/{_part(conversation_id)}/messages"
    return _write("POST", path, Message.model_validate_json, body, key)


def get_message(message_id: str) -> Call[Message]:
    return _get(f"/v1/messages/{_part(message_id)}", Message.model_validate_json)


def get_trace(message_id: str) -> Call[Trace]:
    return _get(f"/v1/messages/{_part(message_id)}/trace", Trace.model_validate_json)


def retry_message(message_id: str, key: str | None = None) -> Call[Trace]:
    path = f"/v1/messages/{_part(message_id)}/retry"
    return _write("POST", path, Trace.model_validate_json, None, key)


def continue_message(message_id: str, key: str | None = None) -> Call[Trace]:
    path = f"/v1/messages/{_part(message_id)}/continue"
    return _write("POST", path, Trace.model_validate_json, None, key)


def edit_message(message_id: str, text: str) -> Call[Message]:
    path = f"/v1/messages/{_part(message_id)}"
    return _write("PATCH", path, Message.model_validate_json, MessageEdit(text=text), None)


def move_message(message_id: str, before: str | None, key: str | None = None) -> Call[Message]:
    path = f"/v1/messages/{_part(message_id)}/move"
    body = MessageMove(before=MessageId(before) if before else None)
    return _write("POST", path, Message.model_validate_json, body, key)


def cancel_message(message_id: str) -> Call[None]:
    return _write("DELETE", f"/v1/messages/{_part(message_id)}", _nothing, None, None)


# --- usage ----------------------------------------------------------------------------


def list_usage(
    since: date | None = None, until: date | None = None, agent_id: str | None = None
) -> PageCall[DayUsage]:
    """The newest day first."""
    days = {"since": since and since.isoformat(), "until": until and until.isoformat()}
    read = Page[DayUsage].model_validate_json
    return _pages("/v1/usage", read, **days, agent_id=agent_id)


def decide_budget(agent_id: str, body: ChainDecide, key: str | None = None) -> Call[Agent]:
    path = f"/v1/agents/{_part(agent_id)}/budget"
    return _write("POST", path, Agent.model_validate_json, body, key)


# --- attachments ----------------------------------------------------------------------


def upload_attachment(name: str, content: bytes | Path, key: str | None = None) -> Call[Attachment]:
    return Call(
        "POST",
        "/v1/attachments",
        Attachment.model_validate_json,
        {"name": name},
        content,
        key or str(uuid.uuid4()),
        "application/octet-stream",
    )


def get_attachment(attachment_id: str) -> Call[bytes]:
    """Its bytes."""
    return _get(f"/v1/attachments/{_part(attachment_id)}", bytes)


def delete_attachment(attachment_id: str) -> Call[None]:
    return _write("DELETE", f"/v1/attachments/{_part(attachment_id)}", _nothing, None, None)


# --- chains ---------------------------------------------------------------------------


def list_chains(state: ChainState | None = None) -> PageCall[Chain]:
    """Newest first."""
    return _pages("/v1/chains", Page[Chain].model_validate_json, state=state)


def get_chain(chain_id: str) -> Call[Chain]:
    return _get(f"/v1/chains/{_part(chain_id)}", Chain.model_validate_json)


def decide_chain(chain_id: str, body: ChainDecide, key: str | None = None) -> Call[Chain]:
    path = f"/v1/chains/{_part(chain_id)}"
    return _write("POST", path, Chain.model_validate_json, body, key)


# --- approvals ------------------------------------------------------------------------


def list_approvals(
    state: ApprovalState | None = None, conversation_id: str | None = None
) -> PageCall[Approval]:
    """Newest first."""
    read = Page[Approval].model_validate_json
    return _pages("/v1/approvals", read, state=state, conversation_id=conversation_id)


def get_approval(approval_id: str) -> Call[Approval]:
    return _get(f"/v1/approvals/{_part(approval_id)}", Approval.model_validate_json)


def answer_approval(
    approval_id: str, body: ApprovalAnswer, key: str | None = None
) -> Call[Approval]:
    path = f"/v1/approvals/{_part(approval_id)}"
    return _write("POST", path, Approval.model_validate_json, body, key)


# --- runs and the caller --------------------------------------------------------------


def list_runs(conversation_id: str) -> PageCall[Run]:
    """Newest first."""
    path = f"/v1/conversations/{_part(conversation_id)}/runs"
    return _pages(path, Page[Run].model_validate_json)


def get_run(run_id: str) -> Call[Run]:
    return _get(f"/v1/runs/{_part(run_id)}", Run.model_validate_json)


def get_diff(run_id: str) -> Call[RunDiff]:
    return _get(f"/v1/runs/{_part(run_id)}/diff", RunDiff.model_validate_json)


def list_run_events(run_id: str) -> PageCall[RunEvent]:
    return _pages(f"/v1/runs/{_part(run_id)}/events", _RUN_EVENTS.validate_json)


def interrupt_run(run_id: str, key: str | None = None, *, now: bool = False) -> Call[None]:
    body = RunInterrupt(now=True) if now else None
    return _write("POST", f"/v1/runs/{_part(run_id)}/interrupt", _nothing, body, key)


def get_me() -> Call[User]:
    return _get("/v1/me", User.model_validate_json)


# --- flows ----------------------------------------------------------------------------


def collect(pages: PageCall[T], after: str | None = None) -> Flow[list[T]]:
    """Everything that a list holds, or all after a cursor, page by page."""
    found: list[T] = []
    cursor = after
    while True:
        page = yield from pages(cursor)
        found += page.data
        if page.next_cursor is None or not page.data:
            return found
        cursor = page.next_cursor
