"""One message and what an agent makes of it, gathered from the event log. No I/O.

A turn shows, in order: rungs of the ladder, pieces of the model's text (`Delta`), run events,
and the agent's messages. However the stream was cut and resumed, each is shown once, and the
deltas of a block joined together are its whole text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from cloudagent import calls
from cloudagent.calls import Flow
from cloudagent.errors import InvalidRequestError, UnexpectedAnswerError
from cloudagent_protocol.attachments import MAX_ATTACHMENTS
from cloudagent_protocol.content import MAX_TEXT_CHARS
from cloudagent_protocol.errors import ErrorCode, Problem
from cloudagent_protocol.events import Finished, Outcome, RunEvent, Text, Usage
from cloudagent_protocol.resources import (
    AgentMessageCreate,
    Approval,
    ApprovalAnswer,
    ApprovalState,
    DeliveryMode,
    DeliveryState,
    DeliveryTrace,
    Event,
    EventType,
    Message,
    Run,
    Rung,
)

_RUN_EVENT: TypeAdapter[RunEvent] = TypeAdapter(RunEvent)
_ENDED: Final = frozenset(
    {DeliveryState.DONE, DeliveryState.FAILED, DeliveryState.CANCELLED, DeliveryState.DEAD}
)


@dataclass(frozen=True)
class Delta:
    """The next piece of what the model writes into one of its text blocks."""

    run_id: str
    block: int
    text: str


TurnEvent: TypeAlias = Rung | Delta | RunEvent | Message


@dataclass(frozen=True)
class TurnResult:
    """How a turn ended, and what the agent said in it."""

    sent: Message
    outcome: Outcome
    #: Why it failed (`cloudagent_protocol.events.Reason`), else None.
    reason: str | None
    #: For a person: what happened and what to do; for `silent`, the agent's own reason.
    detail: str
    messages: list[Message]
    run_id: str | None
    usage: Usage | None

    @property
    def ok(self) -> bool:
        return self.outcome in {Outcome.REPLIED, Outcome.SILENT, Outcome.AUTO_PUBLISHED}

    @property
    def text(self) -> str:
        """The agent's messages as one text; empty if it stayed silent."""
        return "\n\n".join(message.text for message in self.messages)


class TurnState:
    """What is known of one delivery of one message."""

    def __init__(self, sent: Message, delivery_id: str) -> None:
        self.sent = sent
        self.delivery_id = delivery_id
        self._trace: DeliveryTrace | None = None
        self._rungs_shown = 0
        self._runs: dict[str, Run | None] = {}
        self._last_seq: dict[str, int] = {}
        self._blocks: dict[tuple[str, int], str] = {}
        self._replies: dict[str, Message] = {}
        self._asked: dict[str, Approval] = {}
        self._finished: Finished | None = None

    @property
    def run_id(self) -> str | None:
        """The newest run of this delivery."""
        return next(reversed(self._runs), None)

    @property
    def pending_approval(self) -> Approval | None:
        """What a person is asked, and has not decided."""
        pending = (one for one in self._asked.values() if one.state is ApprovalState.PENDING)
        return next(pending, None)

    def asked(self) -> Approval:
        """As `pending_approval`.

        Raises:
            InvalidRequestError: there is nothing to decide.
        """
        if (found := self.pending_approval) is None:
            raise _invalid("the agent asks nothing at the moment")
        return found

    @property
    def ended(self) -> bool:
        return self._trace is not None and self._trace.state in _ENDED

    def receive(self, event: Event) -> Iterable[TurnEvent]:
        """What this event of the log means for the turn; nothing if it is about another.

        Raises:
            UnexpectedAnswerError: the event does not hold what its type promises.
        """
        try:
            return self._receive(event)
        except (ValidationError, KeyError, TypeError) as error:
            raise UnexpectedAnswerError(
                f"event {event.id} ({event.type}) cannot be read",
                why=str(error),
                next_step="update the client: its server may be newer",
            ) from error

    def _receive(self, event: Event) -> Iterable[TurnEvent]:
        data = event.data
        match event.type:
            case EventType.DELIVERY_UPDATED if data.get("id") == self.delivery_id:
                return self._moved(DeliveryTrace.model_validate(data))
            case EventType.RUN_STARTED | EventType.RUN_FINISHED | EventType.RUN_UPDATED:
                self._run(Run.model_validate(data))
            case EventType.RUN_DELTA if data.get("run_id") in self._runs:
                return self._delta(data["run_id"], data["block"], data["offset"], data["text"])
            case EventType.RUN_EVENT if data.get("run_id") in self._runs:
                return self._run_event(data["run_id"], _RUN_EVENT.validate_python(data["event"]))
            case EventType.APPROVAL_REQUESTED | EventType.APPROVAL_RESOLVED:
                if data.get("delivery_id") == self.delivery_id:
                    self._asked[data["id"]] = Approval.model_validate(data)
            case EventType.MESSAGE_CREATED | EventType.MESSAGE_UPDATED:
                return self._message(data)
            case _:
                pass
        return ()

    def catch_up(self) -> Flow[list[TurnEvent]]:
        """Fetch what the log no longer tells (`resync`), or what a finished turn still lacks."""
        shown: list[TurnEvent] = []
        trace = yield from calls.get_trace(self.sent.id)
        for delivery in trace.deliveries:
            if delivery.id == self.delivery_id:
                shown += self._moved(delivery)
        for run_id in list(self._runs):
            self._run((yield from calls.get_run(run_id)))
            for event in (yield from calls.collect(calls.list_run_events(run_id))):
                shown += self._run_event(run_id, event)
        self._asked = {}
        if self._trace and self._trace.state is DeliveryState.WAITING:
            asked = calls.list_approvals(ApprovalState.PENDING, self.sent.conversation_id)
            for one in (yield from calls.collect(asked))[::-1]:
                if one.delivery_id == self.delivery_id:
                    self._asked[one.id] = one
        conversation = calls.list_messages(self.sent.conversation_id)
        for message in (yield from calls.collect(conversation, after=self.sent.id)):
            shown += self._message(message.model_dump())
        return shown

    def settle(self) -> Flow[TurnResult]:
        """The result of a turn that has ended, with its last facts fetched where they lack."""
        run_id = self.run_id
        if run_id is not None and not self._run_is_over(run_id):
            self._run((yield from calls.get_run(run_id)))
        return self.result()

    def result(self) -> TurnResult:
        """How the turn ended; only once it has (`ended`)."""
        if self._trace is None:
            raise ValueError("the turn has not ended")
        run = self._runs.get(self.run_id or "")
        last = self._trace.rungs[-1] if self._trace.rungs else None
        return TurnResult(
            sent=self.sent,
            outcome=_outcome(self._trace),
            reason=self._trace.reason,
            detail=(self._finished.detail if self._finished else "")
            or (last.detail if last else "")
            or "",
            messages=list(self._replies.values()),
            run_id=self.run_id,
            usage=run.usage if run else None,
        )

    def _moved(self, trace: DeliveryTrace) -> list[TurnEvent]:
        self._trace = trace
        if trace.run_id is not None:
            self._runs.setdefault(trace.run_id, None)
        fresh = trace.rungs[self._rungs_shown :]
        self._rungs_shown = max(self._rungs_shown, len(trace.rungs))
        return list(fresh)

    def _run(self, run: Run) -> None:
        if self.delivery_id in run.delivery_ids or run.id in self._runs:
            self._runs[run.id] = run

    def _run_is_over(self, run_id: str) -> bool:
        run = self._runs[run_id]
        return run is not None and run.ended_at is not None

    def _delta(self, run_id: str, block: int, offset: int, text: str) -> list[TurnEvent]:
        known = self._blocks.get((run_id, block), "")
        fresh = text[len(known) - offset :] if offset <= len(known) else ""
        if not fresh:  # seen, or after a gap that the finished text will fill
            return []
        self._blocks[run_id, block] = known + fresh
        return [Delta(run_id, block, fresh)]

    def _run_event(self, run_id: str, event: RunEvent) -> list[TurnEvent]:
        if event.seq <= self._last_seq.get(run_id, 0):
            return []
        self._last_seq[run_id] = event.seq
        shown: list[TurnEvent] = []
        if isinstance(event, Text):
            shown += self._delta(run_id, event.block, 0, event.text)
        if isinstance(event, Finished):
            self._finished = event
        return [*shown, event]

    def _message(self, data: dict[str, Any]) -> list[TurnEvent]:
        ours = data.get("in_reply_to") == self.sent.id or data.get("run_id") in self._runs
        if not ours:
            return []
        message = Message.model_validate(data)
        if message.author.type != "agent":
            return []
        known = message.id in self._replies
        self._replies[message.id] = message
        return [] if known else [message]


def _outcome(trace: DeliveryTrace) -> Outcome:
    if trace.outcome in set(Outcome):
        return Outcome(trace.outcome)
    if trace.state is DeliveryState.DONE:
        return Outcome.REPLIED
    return Outcome.CANCELLED if trace.state is DeliveryState.CANCELLED else Outcome.FAILED


def approval_body(
    decision: str, reason: str | None = None, answer: str | None = None
) -> ApprovalAnswer:
    """The body of an answer to an agent's request.

    Raises:
        InvalidRequestError: it is none, as the server would say too.
    """
    said = {"decision": decision, "reason": reason, "answer": answer}
    given = {name: value for name, value in said.items() if value is not None}
    try:
        return ApprovalAnswer.model_validate(given)
    except ValidationError as error:
        raise _invalid(_first_of(error)) from error


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _invalid(detail: str, next_step: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(
        Problem(title="Invalid", status=422, code=ErrorCode.INVALID, detail=detail, next=next_step)
    )


def message_body(
    text: str,
    conversation_id: str | None = None,
    host_machine_id: str | None = None,
    mode: DeliveryMode = DeliveryMode.QUEUE,
    attachments: Sequence[str] = (),
    model: str | None = None,
    permission_mode: str | None = None,
) -> AgentMessageCreate:
    """The body of a message to an agent.

    Raises:
        InvalidRequestError: the text is too long, or blank and there are no files with it; or there
            are too many; as the server would say too.
    """
    said = {
        "conversation_id": conversation_id,
        "host_machine_id": host_machine_id,
        "mode": None if mode is DeliveryMode.QUEUE else mode,
        "attachments": list(attachments) or None,
        "model": model,
        "permission_mode": permission_mode,
    }
    sent = {"text": text, **{name: value for name, value in said.items() if value is not None}}
    try:
        return AgentMessageCreate.model_validate(sent)
    except ValidationError as error:
        raise _unfit(text, attachments, error) from error


def _unfit(text: str, attachments: Sequence[str], error: ValidationError) -> InvalidRequestError:
    """What of a message does not fit, with the value seen."""
    if len(text) > MAX_TEXT_CHARS:
        return _invalid(
            f"the message has {len(text):,} characters, and may have {MAX_TEXT_CHARS:,}",
            "send the text as a file: cloudagent send … --attach FILE",
        )
    if len(attachments) > MAX_ATTACHMENTS:
        return _invalid(f"the message has {len(attachments)} files; it may have {MAX_ATTACHMENTS}")
    if "\0" in text:
        return _invalid("the message has a NUL character", "send it as a file: --attach FILE")
    if not text.strip():
        return _invalid(
            "the message is empty, and there are no files with it",
            'cloudagent send AGENT "what it is to do"',
        )
    return _invalid(_first_of(error))


def delivery_to(message: Message, agent_id: str) -> str:
    """The id of the delivery that brings a message to an agent.

    Raises:
        UnexpectedAnswerError: the server stored the message, but means to deliver it nowhere.
    """
    for delivery in message.deliveries:
        if delivery.agent_id == agent_id:
            return delivery.id
    raise UnexpectedAnswerError(
        f"the server has no delivery of {message.id} to {agent_id}",
        why=f"its deliveries are {[delivery.agent_id for delivery in message.deliveries]}",
    )
