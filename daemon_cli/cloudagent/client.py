"""The synchronous client.

    with CloudAgent() as ca:
        turn = ca.agents.get("shop").send("fix the login test")
        for event in turn:
            if isinstance(event, Delta):
                print(event.text, end="")
        print(turn.result.text)

`async_client.py` is the same with `await`. A change here belongs there too.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from pydantic import ConfigDict, Field

from cloudagent import calls, flows, turn
from cloudagent.config import resolve
from cloudagent.cursor import Cursor
from cloudagent.transport import Transport
from cloudagent.turn import TurnEvent, TurnResult, TurnState, approval_body
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import RunEvent
from cloudagent_protocol.resources import (
    Agent,
    AgentCreate,
    AgentMessageCreate,
    AgentUpdate,
    Approval,
    ApprovalState,
    Chain,
    ChainDecide,
    ChainState,
    Conversation,
    ConversationCreate,
    DayUsage,
    DeliveryMode,
    Event,
    EventType,
    HostMachine,
    HostMachineCreate,
    HostMachineWithKey,
    Message,
    MessageCreate,
    Run,
    RunDiff,
    Trace,
    User,
)


class Turn:
    """A message that was sent to an agent, and what the agent makes of it.

    Iterate it for what happens, as it happens; `wait` or `result` for how it ended. It holds a
    connection only while it is iterated or waited for.
    """

    def __init__(self, transport: Transport, state: TurnState, cursor: Cursor) -> None:
        self._transport = transport
        self._state = state
        self._cursor = cursor
        self._events: Generator[TurnEvent] | None = None
        self._result: TurnResult | None = None

    @property
    def message(self) -> Message:
        """The message that was sent."""
        return self._state.sent

    def __iter__(self) -> Iterator[TurnEvent]:
        return self.events()

    def events(self, timeout_s: float | None = None) -> Iterator[TurnEvent]:
        """What happens, until the turn ends; goes on where an earlier iteration was left.

        Raises:
            WaitTimeoutError: it takes longer; it goes on, and can be taken up again.
        """
        if self._events is None or timeout_s is not None:
            self.close()
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            self._events = self._follow(deadline)
        return self._events

    @property
    def result(self) -> TurnResult:
        """How the turn ended; waits for the end."""
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> TurnResult:
        """How the turn ended, once it has.

        Raises:
            WaitTimeoutError: it takes longer; it goes on, and can be waited for again.
        """
        if self._result is None:
            self.close()
            for _ in self.events(timeout_s):
                pass
            self._result = self._transport.flow(self._state.settle())
        return self._result

    @property
    def pending_approval(self) -> Approval | None:
        """What the agent has asked you in this turn and waits for; the oldest, if it is more than one."""
        return self._state.pending_approval

    def approve(
        self, decision: str = "once", *, reason: str | None = None, answer: str | None = None
    ) -> Approval:
        """Decide `pending_approval`: `once`, `conversation`, `always` or `deny`.

        Raises:
            ConflictError: somebody has answered already, or the agent no longer waits.
            InvalidRequestError: nothing is asked, or it cannot be answered so.
        """
        asked = self._state.asked()
        body = approval_body(decision, reason, answer)
        return self._transport.run(calls.answer_approval(asked.id, body))

    def interrupt(self) -> None:
        """Ask the agent to stop; the turn then ends as cancelled."""
        self._transport.run(calls.cancel_message(self._state.sent.id))

    def close(self) -> None:
        """Drop the connection of an iteration that was left early."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _follow(self, deadline: float | None) -> Generator[TurnEvent]:
        if self._state.ended:
            return
        with closing(self._transport.follow(self._cursor, deadline)) as log:
            for event in log:
                if event.type == EventType.RESYNC:
                    yield from self._transport.flow(self._state.catch_up())
                else:
                    yield from self._state.receive(event)
                if self._state.ended:
                    return


class AgentHandle(Agent):
    """An agent, with what can be done with it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    transport: Transport = Field(exclude=True, repr=False)

    def send(
        self,
        text: str,
        *,
        conversation_id: str | None = None,
        host_machine_id: str | None = None,
        mode: DeliveryMode = DeliveryMode.QUEUE,
        attachments: Sequence[str] = (),
        model: str | None = None,
        permission_mode: str | None = None,
        idempotency_key: str | None = None,
    ) -> Turn:
        """Send a message and follow what comes of it.

        It takes its place after what was sent before; with `interrupt` before all that has not begun,
        and what runs in its conversation is stopped. With `host_machine_id`, the ephemeral machine of
        a CI job, it runs there or nowhere. `attachments` are ids of files that were uploaded. `model` and
        `permission_mode` count for this turn instead of the agent's own, which a mode may only narrow.
        """
        body = turn.message_body(
            text, conversation_id, host_machine_id, mode, attachments, model, permission_mode
        )
        return _send(self.transport, self.id, body, idempotency_key)

    def interrupt(self, *, now: bool = False) -> list[Run]:
        """Stop what the agent does now; the runs that will end. What is queued stays so.

        It is asked first, and may leave its work in order; `now` its processes are killed instead.
        """
        return self.transport.flow(flows.interrupt_agent(self.id, now=now))


class Agents:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[AgentHandle]:
        return map(self._handle, self._transport.items(calls.list_agents()))

    def get(self, name_or_id: str) -> AgentHandle:
        """Raises NotFoundError, AmbiguousNameError."""
        return self._handle(self._transport.flow(flows.resolve_agent(name_or_id)))

    def create(self, body: AgentCreate, *, idempotency_key: str | None = None) -> AgentHandle:
        return self._handle(self._transport.run(calls.create_agent(body, idempotency_key)))

    def update(self, agent_id: str, body: AgentUpdate) -> AgentHandle:
        return self._handle(self._transport.run(calls.update_agent(agent_id, body)))

    def delete(self, agent_id: str) -> None:
        self._transport.run(calls.delete_agent(agent_id))

    def _handle(self, agent: Agent) -> AgentHandle:
        return AgentHandle(transport=self._transport, **agent.model_dump())


class Hosts:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[HostMachine]:
        return self._transport.items(calls.list_hosts())

    def get(self, host_id: str) -> HostMachine:
        return self._transport.run(calls.get_host(host_id))

    def job(self, name_or_id: str) -> HostMachine | None:
        """The connected machine of a CI job; None if there is none of this name or id now."""
        return self._transport.flow(flows.find_job(name_or_id))

    def create(
        self, body: HostMachineCreate, *, idempotency_key: str | None = None
    ) -> HostMachineWithKey:
        return self._transport.run(calls.create_host(body, idempotency_key))

    def rotate_key(self, host_id: str, *, idempotency_key: str | None = None) -> HostMachineWithKey:
        return self._transport.run(calls.rotate_host_key(host_id, idempotency_key))

    def delete(self, host_id: str) -> None:
        self._transport.run(calls.delete_host(host_id))


class Conversations:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Conversation]:
        return self._transport.items(calls.list_conversations())

    def get(self, conversation_id: str) -> Conversation:
        return self._transport.run(calls.get_conversation(conversation_id))

    def create(
        self, body: ConversationCreate, *, idempotency_key: str | None = None
    ) -> Conversation:
        return self._transport.run(calls.create_conversation(body, idempotency_key))

    def messages(self, conversation_id: str) -> Iterator[Message]:
        """Oldest first."""
        return self._transport.items(calls.list_messages(conversation_id))

    def send(
        self, conversation_id: str, body: MessageCreate, *, idempotency_key: str | None = None
    ) -> Message:
        """A message to everybody in the conversation, or the one agent that the body names."""
        return self._transport.run(calls.create_message(conversation_id, body, idempotency_key))


class Messages:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, agent_id: str, body: AgentMessageCreate, *, idempotency_key: str | None = None
    ) -> Message:
        """Send a message to an agent, and leave it at that; `agent.send` also follows it."""
        return self._transport.run(calls.message_agent(agent_id, body, idempotency_key))

    def get(self, message_id: str) -> Message:
        return self._transport.run(calls.get_message(message_id))

    def trace(self, message_id: str) -> Trace:
        """Where the message is: each rung with its time, who says so, and why it failed."""
        return self._transport.run(calls.get_trace(message_id))

    def retry(self, message_id: str, *, idempotency_key: str | None = None) -> Trace:
        """Deliver it again where its last delivery failed, died or was cancelled.

        Raises:
            ConflictError: there is nothing to try again, or it is under way already.
        """
        return self._transport.run(calls.retry_message(message_id, idempotency_key))

    def go_on(self, message_id: str, *, idempotency_key: str | None = None) -> Trace:
        """Let it go on where a rate limit has cut it off, as soon as that is over.

        Raises:
            ConflictError: it waits for nobody's word.
        """
        return self._transport.run(calls.continue_message(message_id, idempotency_key))

    def edit(self, message_id: str, text: str) -> Message:
        """Change what a message says that waits in the queue.

        Raises:
            ConflictError: it was sent to its machine before.
        """
        return self._transport.run(calls.edit_message(message_id, text))

    def move(
        self, message_id: str, before: str | None = None, *, idempotency_key: str | None = None
    ) -> Message:
        """Put a message that waits in the queue before another one of its conversation, or behind all.

        Raises:
            ConflictError: one of the two does not wait any more.
        """
        return self._transport.run(calls.move_message(message_id, before, idempotency_key))

    def cancel(self, message_id: str) -> None:
        self._transport.run(calls.cancel_message(message_id))


class Attachments:
    """Files that go with messages."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self, name: str, content: bytes | Path, *, idempotency_key: str | None = None
    ) -> Attachment:
        """Upload a file (of a path: never whole in memory); its id then goes with one message, within a day.

        Raises:
            APIError: it is empty, too large, or your files take all the room that they may have.
        """
        return self._transport.run(calls.upload_attachment(name, content, idempotency_key))

    def download(self, attachment_id: str) -> bytes:
        return self._transport.run(calls.get_attachment(attachment_id))

    def delete(self, attachment_id: str) -> None:
        """Remove one that was not sent."""
        self._transport.run(calls.delete_attachment(attachment_id))


class Chains:
    """What followed from messages, where agents message each other."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, state: ChainState | None = None) -> Iterator[Chain]:
        """Newest first; those of one state."""
        return self._transport.items(calls.list_chains(state))

    def get(self, chain_id: str) -> Chain:
        """By the id of the message that began it."""
        return self._transport.run(calls.get_chain(chain_id))

    def decide(
        self, chain_id: str, body: ChainDecide, *, idempotency_key: str | None = None
    ) -> Chain:
        """Let a paused chain go on, or stop it.

        Raises:
            ConflictError: it has not paused, or somebody has answered already.
        """
        return self._transport.run(calls.decide_chain(chain_id, body, idempotency_key))


class Usage:
    """What agents have used, and whether one that has used up its budget goes on."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, *, since: date | None = None, until: date | None = None, agent_id: str | None = None
    ) -> Iterator[DayUsage]:
        """A day (UTC) of an agent each, the newest first; of the last 30 days if no `since` is given."""
        return self._transport.items(calls.list_usage(since, until, agent_id))

    def decide(
        self, agent_id: str, body: ChainDecide, *, idempotency_key: str | None = None
    ) -> Agent:
        """Let it use as much again today, or stop what waits.

        Raises:
            ConflictError: it has not paused, or somebody has answered already.
        """
        return self._transport.run(calls.decide_budget(agent_id, body, idempotency_key))


class Approvals:
    """What agents asked you: whether they may, and which of these."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, state: ApprovalState | None = None, *, conversation_id: str | None = None
    ) -> Iterator[Approval]:
        """Newest first; those of one state or conversation."""
        return self._transport.items(calls.list_approvals(state, conversation_id))

    def get(self, approval_id: str) -> Approval:
        return self._transport.run(calls.get_approval(approval_id))

    def answer(
        self,
        approval_id: str,
        decision: str = "once",
        *,
        reason: str | None = None,
        answer: str | None = None,
        idempotency_key: str | None = None,
    ) -> Approval:
        """Decide `once`, `conversation`, `always` or `deny`; `answer` is that to a question.

        Raises:
            ConflictError: somebody has answered already, or the agent no longer waits.
            InvalidRequestError: it cannot be answered so.
        """
        body = approval_body(decision, reason, answer)
        call = calls.answer_approval(approval_id, body, idempotency_key)
        return self._transport.run(call)


class Runs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, run_id: str) -> Run:
        return self._transport.run(calls.get_run(run_id))

    def diff(self, run_id: str) -> RunDiff:
        """What it changed in the repository that it worked in.

        Raises:
            NotFoundError: also while nothing was told of it, or if that was no repository.
        """
        return self._transport.run(calls.get_diff(run_id))

    def events(self, run_id: str) -> Iterator[RunEvent]:
        return self._transport.items(calls.list_run_events(run_id))

    def interrupt(
        self, run_id: str, *, now: bool = False, idempotency_key: str | None = None
    ) -> None:
        self._transport.run(calls.interrupt_run(run_id, idempotency_key, now=now))


class Events:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def follow(self, after: int | None = None) -> Generator[Event]:
        """Every event after an id, or from now on; without end, and over broken connections.

        `resync` says that events after that id are no longer kept: fetch anew what you show.
        """
        with closing(self._transport.follow(Cursor(after))) as log:
            for event in log:
                if event.type != EventType.PING:
                    yield event


class CloudAgent:
    """A person's view of one server. Close it, or use it in a `with` block.

    Without arguments it goes where CLOUDAGENT_URL and CLOUDAGENT_TOKEN say, else where
    `~/.cloudagent/client.json` does (`cloudagent up` writes it).

    Raises:
        NotLoggedInError: no server or token is known.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_retries: int = 4,
        http_client: httpx2.Client | None = None,
    ) -> None:
        self.settings = resolve(url, token, timeout_s=timeout_s, max_retries=max_retries)
        self._transport = Transport(self.settings, http_client)
        self.agents = Agents(self._transport)
        self.hosts = Hosts(self._transport)
        self.conversations = Conversations(self._transport)
        self.messages = Messages(self._transport)
        self.attachments = Attachments(self._transport)
        self.chains = Chains(self._transport)
        self.usage = Usage(self._transport)
        self.approvals = Approvals(self._transport)
        self.runs = Runs(self._transport)
        self.events = Events(self._transport)

    def me(self) -> User:
        return self._transport.run(calls.get_me())

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _send(transport: Transport, agent_id: str, body: AgentMessageCreate, key: str | None) -> Turn:
    # The cursor comes first, so that nothing of the turn can lie before it.
    cursor = Cursor()
    with closing(transport.follow(cursor)) as events:
        next(events)
    message = transport.run(calls.message_agent(agent_id, body, key))
    return Turn(transport, TurnState(message, turn.delivery_to(message, agent_id)), cursor)
