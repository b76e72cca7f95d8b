"""The asynchronous client.

    async with AsyncCloudAgent() as ca:
        agent = await ca.agents.get("shop")
        turn = await agent.send("fix the login test")
        async for event in turn:
            if isinstance(event, Delta):
                print(event.text, end="")
        print((await turn.wait()).text)

`client.py` is the same without `await`. A change here belongs there too.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import httpx2
from pydantic import ConfigDict, Field

from cloudagent import calls, flows, turn
from cloudagent.async_transport import AsyncTransport
from cloudagent.config import resolve
from cloudagent.cursor import Cursor
from cloudagent.errors import WaitTimeoutError
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


class AsyncTurn:
    """A message that was sent to an agent, and what the agent makes of it.

    Iterate it for what happens, as it happens; `wait` for how it ended. It holds a connection
    only while it is iterated or waited for.
    """

    def __init__(self, transport: AsyncTransport, state: TurnState, cursor: Cursor) -> None:
        self._transport = transport
        self._state = state
        self._cursor = cursor
        self._events: AsyncGenerator[TurnEvent, None] | None = None
        self._result: TurnResult | None = None

    @property
    def message(self) -> Message:
        """The message that was sent."""
        return self._state.sent

    def __aiter__(self) -> AsyncIterator[TurnEvent]:
        if self._events is None:
            self._events = self._follow()
        return self._events

    async def wait(self, timeout_s: float | None = None) -> TurnResult:
        """How the turn ended, once it has.

        Raises:
            WaitTimeoutError: it takes longer; it goes on, and can be waited for again.
        """
        if self._result is None:
            await self.aclose()
            try:
                with anyio.fail_after(timeout_s):
                    async with aclosing(self._follow()) as events:
                        async for _ in events:
                            pass
                    self._result = await self._transport.flow(self._state.settle())
            except TimeoutError as error:
                raise WaitTimeoutError(
                    "the turn is not over yet", why=f"it takes longer than {timeout_s:g} s"
                ) from error
        return self._result

    @property
    def pending_approval(self) -> Approval | None:
        """What the agent has asked you in this turn and waits for; the oldest, if it is more than one."""
        return self._state.pending_approval

    async def approve(
        self, decision: str = "once", *, reason: str | None = None, answer: str | None = None
    ) -> Approval:
        """Decide `pending_approval`: `once`, `conversation`, `always` or `deny`.

        Raises:
            ConflictError: somebody has answered already, or the agent no longer waits.
            InvalidRequestError: nothing is asked, or it cannot be answered so.
        """
        asked = self._state.asked()
        body = approval_body(decision, reason, answer)
        return await self._transport.run(calls.answer_approval(asked.id, body))

    async def interrupt(self) -> None:
        """Ask the agent to stop; the turn then ends as cancelled."""
        await self._transport.run(calls.cancel_message(self._state.sent.id))

    async def aclose(self) -> None:
        """Drop the connection of an iteration that was left early."""
        if self._events is not None:
            await self._events.aclose()
            self._events = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _follow(self) -> AsyncGenerator[TurnEvent, None]:
        if self._state.ended:
            return
        async with aclosing(self._transport.follow(self._cursor)) as log:
            async for event in log:
                if event.type == EventType.RESYNC:
                    shown = await self._transport.flow(self._state.catch_up())
                else:
                    shown = self._state.receive(event)
                for item in shown:
                    yield item
                if self._state.ended:
                    return


class AsyncAgentHandle(Agent):
    """An agent, with what can be done with it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    transport: AsyncTransport = Field(exclude=True, repr=False)

    async def send(
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
    ) -> AsyncTurn:
        """Send a message and follow what comes of it.

        It takes its place after what was sent before; with `interrupt` before all that has not begun,
        and what runs in its conversation is stopped. With `host_machine_id`, the ephemeral machine of
        a CI job, it runs there or nowhere. `attachments` are ids of files that were uploaded. `model` and
        `permission_mode` count for this turn instead of the agent's own, which a mode may only narrow.
        """
        body = turn.message_body(
            text, conversation_id, host_machine_id, mode, attachments, model, permission_mode
        )
        return await _send(self.transport, self.id, body, idempotency_key)

    async def interrupt(self, *, now: bool = False) -> list[Run]:
        """Stop what the agent does now; the runs that will end. What is queued stays so.

        It is asked first, and may leave its work in order; `now` its processes are killed instead.
        """
        return await self.transport.flow(flows.interrupt_agent(self.id, now=now))


class AsyncAgents:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> AsyncIterator[AsyncAgentHandle]:
        async with aclosing(self._transport.items(calls.list_agents())) as agents:
            async for agent in agents:
                yield self._handle(agent)

    async def get(self, name_or_id: str) -> AsyncAgentHandle:
        """Raises NotFoundError, AmbiguousNameError."""
        return self._handle(await self._transport.flow(flows.resolve_agent(name_or_id)))

    async def create(
        self, body: AgentCreate, *, idempotency_key: str | None = None
    ) -> AsyncAgentHandle:
        return self._handle(await self._transport.run(calls.create_agent(body, idempotency_key)))

    async def update(self, agent_id: str, body: AgentUpdate) -> AsyncAgentHandle:
        return self._handle(await self._transport.run(calls.update_agent(agent_id, body)))

    async def delete(self, agent_id: str) -> None:
        await self._transport.run(calls.delete_agent(agent_id))

    def _handle(self, agent: Agent) -> AsyncAgentHandle:
        return AsyncAgentHandle(transport=self._transport, **agent.model_dump())


class AsyncHosts:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncIterator[HostMachine]:
        return self._transport.items(calls.list_hosts())

    async def get(self, host_id: str) -> HostMachine:
        return await self._transport.run(calls.get_host(host_id))

    async def job(self, name_or_id: str) -> HostMachine | None:
        """The connected machine of a CI job; None if there is none of this name or id now."""
        return await self._transport.flow(flows.find_job(name_or_id))

    async def create(
        self, body: HostMachineCreate, *, idempotency_key: str | None = None
    ) -> HostMachineWithKey:
        return await self._transport.run(calls.create_host(body, idempotency_key))

    async def rotate_key(
        self, host_id: str, *, idempotency_key: str | None = None
    ) -> HostMachineWithKey:
        return await self._transport.run(calls.rotate_host_key(host_id, idempotency_key))

    async def delete(self, host_id: str) -> None:
        await self._transport.run(calls.delete_host(host_id))


class AsyncConversations:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncIterator[Conversation]:
        return self._transport.items(calls.list_conversations())

    async def get(self, conversation_id: str) -> Conversation:
        return await self._transport.run(calls.get_conversation(conversation_id))

    async def create(
        self, body: ConversationCreate, *, idempotency_key: str | None = None
    ) -> Conversation:
        return await self._transport.run(calls.create_conversation(body, idempotency_key))

    def messages(self, conversation_id: str) -> AsyncIterator[Message]:
        """Oldest first."""
        return self._transport.items(calls.list_messages(conversation_id))

    async def send(
        self, conversation_id: str, body: MessageCreate, *, idempotency_key: str | None = None
    ) -> Message:
        """A message to everybody in the conversation, or the one agent that the body names."""
        call = calls.create_message(conversation_id, body, idempotency_key)
        return await self._transport.run(call)


class AsyncMessages:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self, agent_id: str, body: AgentMessageCreate, *, idempotency_key: str | None = None
    ) -> Message:
        """Send a message to an agent, and leave it at that; `agent.send` also follows it."""
        return await self._transport.run(calls.message_agent(agent_id, body, idempotency_key))

    async def get(self, message_id: str) -> Message:
        return await self._transport.run(calls.get_message(message_id))

    async def trace(self, message_id: str) -> Trace:
        """Where the message is: each rung with its time, who says so, and why it failed."""
        return await self._transport.run(calls.get_trace(message_id))

    async def retry(self, message_id: str, *, idempotency_key: str | None = None) -> Trace:
        """Deliver it again where its last delivery failed, died or was cancelled.

        Raises:
            ConflictError: there is nothing to try again, or it is under way already.
        """
        return await self._transport.run(calls.retry_message(message_id, idempotency_key))

    async def go_on(self, message_id: str, *, idempotency_key: str | None = None) -> Trace:
        """Let it go on where a rate limit has cut it off, as soon as that is over.

        Raises:
            ConflictError: it waits for nobody's word.
        """
        return await self._transport.run(calls.continue_message(message_id, idempotency_key))

    async def edit(self, message_id: str, text: str) -> Message:
        """Change what a message says that waits in the queue.

        Raises:
            ConflictError: it was sent to its machine before.
        """
        return await self._transport.run(calls.edit_message(message_id, text))

    async def move(
        self, message_id: str, before: str | None = None, *, idempotency_key: str | None = None
    ) -> Message:
        """Put a message that waits in the queue before another one of its conversation, or behind all.

        Raises:
            ConflictError: one of the two does not wait any more.
        """
        return await self._transport.run(calls.move_message(message_id, before, idempotency_key))

    async def cancel(self, message_id: str) -> None:
        await self._transport.run(calls.cancel_message(message_id))


class AsyncAttachments:
    """Files that go with messages."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(
        self, name: str, content: bytes | Path, *, idempotency_key: str | None = None
    ) -> Attachment:
        """Upload a file (of a path: never whole in memory); its id then goes with one message, within a day.

        Raises:
            APIError: it is empty, too large, or your files take all the room that they may have.
        """
        return await self._transport.run(calls.upload_attachment(name, content, idempotency_key))

    async def download(self, attachment_id: str) -> bytes:
        return await self._transport.run(calls.get_attachment(attachment_id))

    async def delete(self, attachment_id: str) -> None:
        """Remove one that was not sent."""
        await self._transport.run(calls.delete_attachment(attachment_id))


class AsyncChains:
    """What followed from messages, where agents message each other."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, state: ChainState | None = None) -> AsyncIterator[Chain]:
        """Newest first; those of one state."""
        return self._transport.items(calls.list_chains(state))

    async def get(self, chain_id: str) -> Chain:
        """By the id of the message that began it."""
        return await self._transport.run(calls.get_chain(chain_id))

    async def decide(
        self, chain_id: str, body: ChainDecide, *, idempotency_key: str | None = None
    ) -> Chain:
        """Let a paused chain go on, or stop it.

        Raises:
            ConflictError: it has not paused, or somebody has answered already.
        """
        return await self._transport.run(calls.decide_chain(chain_id, body, idempotency_key))


class AsyncUsage:
    """What agents have used, and whether one that has used up its budget goes on."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(
        self, *, since: date | None = None, until: date | None = None, agent_id: str | None = None
    ) -> AsyncIterator[DayUsage]:
        """A day (UTC) of an agent each, the newest first; of the last 30 days if no `since` is given."""
        return self._transport.items(calls.list_usage(since, until, agent_id))

    async def decide(
        self, agent_id: str, body: ChainDecide, *, idempotency_key: str | None = None
    ) -> Agent:
        """Let it use as much again today, or stop what waits.

        Raises:
            ConflictError: it has not paused, or somebody has answered already.
        """
        return await self._transport.run(calls.decide_budget(agent_id, body, idempotency_key))


class AsyncApprovals:
    """What agents asked you: whether they may, and which of these."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(
        self, state: ApprovalState | None = None, *, conversation_id: str | None = None
    ) -> AsyncIterator[Approval]:
        """Newest first; those of one state or conversation."""
        return self._transport.items(calls.list_approvals(state, conversation_id))

    async def get(self, approval_id: str) -> Approval:
        return await self._transport.run(calls.get_approval(approval_id))

    async def answer(
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
        return await self._transport.run(call)


class AsyncRuns:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, run_id: str) -> Run:
        return await self._transport.run(calls.get_run(run_id))

    async def diff(self, run_id: str) -> RunDiff:
        """As `Runs.diff`."""
        return await self._transport.run(calls.get_diff(run_id))

    def events(self, run_id: str) -> AsyncIterator[RunEvent]:
        return self._transport.items(calls.list_run_events(run_id))

    async def interrupt(
        self, run_id: str, *, now: bool = False, idempotency_key: str | None = None
    ) -> None:
        await self._transport.run(calls.interrupt_run(run_id, idempotency_key, now=now))


class AsyncEvents:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def follow(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Every event after an id, or from now on; without end, and over broken connections.

        `resync` says that events after that id are no longer kept: fetch anew what you show.
        Leave it through `contextlib.aclosing`, so that its connection is closed at once.
        """
        async with aclosing(self._transport.follow(Cursor(after))) as log:
            async for event in log:
                if event.type != EventType.PING:
                    yield event


class AsyncCloudAgent:
    """A person's view of one server, for asynchronous code. Use it in an `async with` block.

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
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        self.settings = resolve(url, token, timeout_s=timeout_s, max_retries=max_retries)
        self._transport = AsyncTransport(self.settings, http_client)
        self.agents = AsyncAgents(self._transport)
        self.hosts = AsyncHosts(self._transport)
        self.conversations = AsyncConversations(self._transport)
        self.messages = AsyncMessages(self._transport)
        self.attachments = AsyncAttachments(self._transport)
        self.chains = AsyncChains(self._transport)
        self.usage = AsyncUsage(self._transport)
        self.approvals = AsyncApprovals(self._transport)
        self.runs = AsyncRuns(self._transport)
        self.events = AsyncEvents(self._transport)

    async def me(self) -> User:
        return await self._transport.run(calls.get_me())

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _send(
    transport: AsyncTransport, agent_id: str, body: AgentMessageCreate, key: str | None
) -> AsyncTurn:
    # The cursor comes first, so that nothing of the turn can lie before it.
    cursor = Cursor()
    async with aclosing(transport.follow(cursor)) as events:
        await anext(events)
    message = await transport.run(calls.message_agent(agent_id, body, key))
    return AsyncTurn(transport, TurnState(message, turn.delivery_to(message, agent_id)), cursor)
