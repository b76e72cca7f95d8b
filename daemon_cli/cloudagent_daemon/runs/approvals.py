"""What a run asks people, and what it does with their decisions.

A request is on the disk, and on its way to the backend, before anybody waits for it; a decision is
acted on once, and only by what it was given for (rules.py). Who waits for too long leaves: the run is
parked, its delivery stays unfinished, and the decision brings it back (decisions/0022).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from cloudagent_daemon.config import Limits
from cloudagent_daemon.drivers.base import Decision, PermissionAsked
from cloudagent_daemon.drivers.values import as_objects, as_text
from cloudagent_daemon.link.asked import Asked, waits_for
from cloudagent_daemon.runs import rules
from cloudagent_daemon.runs.permission import by_mode
from cloudagent_daemon.runs.ports import Answers, StopSignal
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.requests import hashes, request_of
from cloudagent_daemon.runs.rules import Rule
from cloudagent_protocol.events import (
    ApprovalDecision,
    ApprovalRequested,
    ApprovalResolved,
    Question,
    Resolution,
    ToolCall,
)
from cloudagent_protocol.frames import Decide, Deliver
from cloudagent_protocol.ids import ApprovalId, new_approval_id

logger = logging.getLogger(__name__)

#: How often it is told that a run which waits for people is alive.
_STIR_S: Final = 20.0
#: How long leave counts that was given while nothing ran, from the start of the process (PERM-10).
GRANT_S: Final = 600.0
#: Of what was asked before, how much a session that does not know it is told.
_TOLD: Final = 20
_LASTING: Final = frozenset({ApprovalDecision.CONVERSATION, ApprovalDecision.ALWAYS})
_ALLOW: Final = _LASTING | {ApprovalDecision.ONCE}
_NOBODY: Final = "nobody"
#: The tool by which claude asks people; runtimes' own word for what `ask_user` does.
_QUESTIONS: Final = "AskUserQuestion"
#: How long a program waits for a tool's answer by its own settings, less a margin (docs/drivers.md).
_TOOL_PATIENCE_S: Final = {"opencode": 45.0, "codex": 240.0, "gemini": 500.0, "qwen": 500.0}


class UnansweredError(Exception):
    """Nobody has decided in time; `str()` is for a person."""


class ParkedError(Exception):
    """The turn is being ended; the answer will come to the next one."""


@dataclass
class _Known:
    """What was decided while nothing ran, for the process that goes on."""

    #: Leave that was given, by what it was given for.
    grants: dict[str, Decide] = field(default_factory=dict[str, Decide])
    #: Answers, by question.
    answers: dict[str, Decide] = field(default_factory=dict[str, Decide])
    #: Of questions and refusals: said in the note, and known with the next thing that is asked.
    noted: list[ApprovalId] = field(default_factory=list[ApprovalId])
    since: float = field(default_factory=time.monotonic)


class Asking:
    """One run's requests to people.

    Args:
        reporter: has the events, in the order of the run.
        answers: what people have decided; None: nobody can be asked.
        stir: called now and then while people are waited for: the agent is no more silent than they.
        parks: whether a run that leaves is ever taken up again.
    """

    def __init__(
        self,
        deliver: Deliver,
        reporter: Reporter,
        answers: Answers | None,
        limits: Limits,
        environment: Mapping[str, str],
        cwd: Path,
        stir: Callable[[], None],
        *,
        parks: bool,
    ) -> None:
        self._deliver = deliver
        self._reporter = reporter
        self._answers = answers
        self._limits = limits
        self._redaction = Redaction({**environment, **deliver.agent.env})
        self._cwd = str(cwd)
        self._context = rules.context_of(deliver.agent)
        self._stir = stir
        self._parks = parks
        self._known = _Known()
        self._refused: dict[str, str] = {}
        self._rules_told: set[str] = set()
        #: What people are asked at the moment, by the program's own name for it, and in words.
        self._open: dict[str, ApprovalId] = {}
        self._waits_for: dict[ApprovalId, str] = {}
        self._tainted = deliver.message.author.type != "user"
        self.stop = StopSignal()

    # --- before the process ---

    async def known(self) -> list[tuple[ApprovalRequested | Question, Decide]]:
        """What was decided while nothing ran; this run acts on it.

        Raises:
            UnansweredError: something was not decided in time.
        """
        if self._answers is None:
            return []
        known = await self._answers.asked(self._deliver.delivery_id)
        for one in known:
            if one.decided is None and one.expires_at <= time.time():
                await self._expire(one)
        decided = [(one.request, one.decided) for one in known if one.decided]
        for request, decision in decided:
            await self._settle(request, decision)
            if isinstance(request, ApprovalRequested) and request.digest and _allows(decision):
                self._known.grants[request.digest] = decision
            else:
                self._known.noted.append(request.approval_id)
                if isinstance(request, Question):
                    self._known.answers[request.question] = decision
                if isinstance(request, ApprovalRequested) and request.digest:
                    self._refused[request.digest] = _refusal(decision)
        self._known.since = time.monotonic()
        return decided

    async def acted_on(self) -> list[tuple[ApprovalRequested | Question, Decide]]:
        """What earlier processes of this delivery have asked, and been told; the latest of it."""
        if self._answers is None:
            return []
        known = await self._answers.acted_on(self._deliver.delivery_id)
        return [(one.request, one.decided) for one in known[-_TOLD:] if one.decided]

    async def _expire(self, one: Asked) -> None:
        days = self._limits.approval_expire_s
        await self._resolved(
            one.request.approval_id, Resolution.EXPIRED, f"nobody decided within {_words(days)}"
        )
        raise UnansweredError(
            f"Nobody decided within {_words(days)} what the agent asked. Send the message again to have "
            "it ask anew."
        )

    # --- while it runs ---

    def saw(self, call: ToolCall) -> None:
        """The agent has called a tool."""
        self._tainted = self._tainted or rules.taints(call.name)

    async def decide(self, asked: PermissionAsked) -> Decision:
        """Whether the agent may: by its mode, by what people said before, or by asking one."""
        if asked.tool == _QUESTIONS and self._answers is not None:
            return await self._put(asked)
        decision = by_mode(self._deliver.agent.mode, asked)
        if decision.allow or self._answers is None:
            return decision
        files = await anyio.to_thread.run_sync(hashes, asked, self._cwd)
        about = (asked.tool, asked.kind, asked.input, self._cwd, self._context, files)
        digest, rule = rules.digest(*about), rules.rule_for(*about)
        if before := self._refused.get(digest):
            return Decision(False, f"It was refused before in this turn: {before}")
        if grant := self._known.grants.pop(digest, None):
            await self._answers.acted(grant.approval_id)
            if time.monotonic() - self._known.since < GRANT_S:
                return Decision(True, f"{grant.actor} allowed it.")
        if rule and (standing := await self._standing(rule)):
            return Decision(True, f"{standing.by} has allowed {standing.words}.")
        request = request_of(
            asked,
            digest,
            rule,
            files,
            cwd=self._cwd,
            redaction=self._redaction,
            expires_at=self._expiry(),
        )
        decided = await self._ask(request, asked.id)
        if not _allows(decided):
            self._refused[digest] = _refusal(decided)
            return Decision(False, _refusal(decided))
        return Decision(True, f"{decided.actor} allowed it.")

    async def question(self, question: str, options: list[str], asked_as: str = "") -> Decide:
        """A person's answer to a question of the agent's; a refusal says why there is none."""
        assert self._answers is not None
        if known := self._known.answers.pop(question, None):
            return known  # it asks once more what it was just told
        request = Question(
            at=now(),
            approval_id=new_approval_id(),
            question=question,
            options=options,
            expires_at=self._expiry(),
        )
        return await self._ask(request, asked_as)

    async def _put(self, asked: PermissionAsked) -> Decision:
        """A program's own questions to people: it is given the answers, or told why there are none."""
        given = asked.input
        answers: dict[str, str] = {}
        for one in as_objects(given.get("questions")):
            asks = as_text(one.get("question"))
            labels = [as_text(option.get("label")) for option in as_objects(one.get("options"))]
            try:
                said = await self.question(asks, [label for label in labels if label], asked.id)
            except ParkedError:
                await anyio.sleep_forever()  # who asks is gone with its turn
                raise
            if said.answer is None:
                why = f": {said.reason}" if said.reason else "."
                return Decision(
                    False, f"{said.actor} gives no answer{why} Go on as you think best."
                )
            answers[asks] = said.answer
        return Decision(True, "It was answered.", input={**given, "answers": answers})

    @property
    def can_ask(self) -> bool:
        return self._answers is not None

    async def withdraw(self) -> None:
        """The turn is over: nothing that it has asked is waited for any more."""
        if self._answers is None:
            return
        for one in await self._answers.asked(self._deliver.delivery_id):
            if one.decided is None:
                why = "the agent no longer waits for it"
                await self._resolved(one.request.approval_id, Resolution.CANCELLED, why)

    async def take_back(self, asked_as: str) -> None:
        """The program has taken a question back: nobody need answer it any more, and is told so.

        Whoever leaves or is stopped takes back, too, what it asks; that is settled at its end.
        """
        approval_id = self._open.pop(asked_as, None)
        if approval_id is not None and not self.stop.requested:
            why = "its program has taken it back"
            await self._resolved(approval_id, Resolution.CANCELLED, why)

    # --- one request ---

    async def _ask(self, request: ApprovalRequested | Question, asked_as: str) -> Decide:
        """Asks people, and waits: for the first decision, or until the run is ended for want of one."""
        assert self._answers is not None
        for approval_id in self._known.noted:  # what the note said is known to the agent by now
            await self._answers.acted(approval_id)
        self._known.noted.clear()
        self._waits_for[request.approval_id] = waits_for(request)
        self._tell_what_waits()
        try:
            return await self._wait(request, asked_as)
        finally:
            del self._waits_for[request.approval_id]
            self._tell_what_waits()

    def _tell_what_waits(self) -> None:
        self.stop.waits_for = next(iter(self._waits_for.values()), None)

    async def _wait(self, request: ApprovalRequested | Question, asked_as: str) -> Decide:
        assert self._answers is not None
        await self._reporter.event(request)
        if asked_as:
            self._open[asked_as] = request.approval_id
        about = {"action": "ask", "approval_id": request.approval_id, "kind": request.type}
        logger.info("%s asks a person", self._deliver.agent.name, extra=about)
        decided = await self._patiently(request)
        if decided is None:
            decided = await self._nobody_answers(request)
        self._open.pop(asked_as, None)
        with anyio.CancelScope(shield=True):  # it counts, whatever its program does meanwhile
            await self._settle(request, decided)
            await self._answers.acted(request.approval_id)
        self._stir()
        return decided

    async def _patiently(self, request: ApprovalRequested | Question) -> Decide | None:
        """The decision, if it comes before it is time to leave."""
        decided: Decide | None = None
        with anyio.move_on_after(self._patience_s(request)):
            async with anyio.create_task_group() as tasks:

                async def draining() -> None:
                    await self.stop.draining.wait()
                    if self._parks:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(draining)
                tasks.start_soon(self._keep_stirring)
                decided = await self._decided(request.approval_id)
                tasks.cancel_scope.cancel()
        return decided

    def _patience_s(self, request: ApprovalRequested | Question) -> float:
        own = _TOOL_PATIENCE_S.get(self._deliver.agent.driver) if self._parks else None
        patience_s = self._limits.approval_park_s
        if isinstance(request, Question) and own is not None:
            patience_s = min(patience_s, own)
        return min(patience_s, self._limits.approval_expire_s)

    async def _keep_stirring(self) -> None:
        while True:
            self._stir()
            await anyio.sleep(_STIR_S)  # no event tells that people still think

    async def _decided(self, approval_id: ApprovalId) -> Decide:
        assert self._answers is not None
        while True:
            number = self._answers.marks.changes
            for one in await self._answers.asked(self._deliver.delivery_id):
                if one.request.approval_id == approval_id and one.decided:
                    return one.decided
            await self._answers.changed_beyond(number)

    async def _nobody_answers(self, request: ApprovalRequested | Question) -> Decide:
        """Leaves with the request open, or refuses in nobody's name.

        Raises:
            ParkedError: it has left.
        """
        if self._parks and self._deliver.agent.unattended != "deny":
            self.stop.park()
            if isinstance(request, Question):
                raise ParkedError
            await anyio.sleep_forever()  # who asks for leave is gone with its process
        waited = _words(self._patience_s(request))
        return Decide(
            approval_id=request.approval_id,
            delivery_id=self._deliver.delivery_id,
            decision=Resolution.EXPIRED.value,
            reason=f"nobody answered within {waited}",
            actor=_NOBODY,
            decided_at=now(),
        )

    async def _settle(self, request: ApprovalRequested | Question, decided: Decide) -> None:
        """Says what was decided, and keeps what was allowed for longer; both on the disk first."""
        rule = None
        if isinstance(request, ApprovalRequested) and decided.decision in _LASTING:
            rule = await self._keep_rule(request, decided)
        await self._reporter.event(
            ApprovalResolved(
                at=now(),
                approval_id=request.approval_id,
                decision=decided.decision,
                by=decided.actor,
                reason=decided.reason,
                answer=decided.answer,
                rule=rule,
            )
        )

    async def _keep_rule(self, request: ApprovalRequested, decided: Decide) -> str | None:
        assert self._answers is not None
        given = rules.rule_for(
            request.tool,
            request.action,
            request.input,
            self._cwd,
            self._context,
            request.files,
        )
        # Of what was not shown whole no rule was offered, whatever the other side says.
        if given is None or request.rule != given.words:
            return None
        here = decided.decision is ApprovalDecision.CONVERSATION
        rule = given.made(decided.actor, decided.decided_at)
        await self._answers.add_rule(
            f"rule_{request.approval_id[-8:].lower()}",  # the same, if it is made once more
            self._deliver.agent.id,
            self._deliver.message.conversation_id if here else None,
            rule.model_dump_json(),
        )
        return rule.words

    async def _standing(self, wanted: Rule) -> Rule | None:
        """What people allowed before, if it covers this; told once in a run."""
        assert self._answers is not None
        if not rules.applies(wanted.action, tainted=self._tainted):
            return None
        where = (self._deliver.agent.id, self._deliver.message.conversation_id)
        for body in await self._answers.rules(*where):
            rule = Rule.model_validate_json(body)
            if rule.covers(wanted):
                if rule.words not in self._rules_told:
                    self._rules_told.add(rule.words)
                    await self._reporter.event(
                        ApprovalResolved(
                            at=now(), decision=Resolution.RULE, by=rule.by, rule=rule.words
                        )
                    )
                return rule
        return None

    async def _resolved(self, approval_id: ApprovalId, how: Resolution, why: str) -> None:
        assert self._answers is not None
        await self._reporter.event(
            ApprovalResolved(
                at=now(), approval_id=approval_id, decision=how, by=_NOBODY, reason=why
            )
        )
        await self._answers.acted(approval_id)

    def _expiry(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._limits.approval_expire_s)


def _allows(decided: Decide) -> bool:
    return decided.decision in _ALLOW


def _refusal(decided: Decide) -> str:
    if decided.actor == _NOBODY:
        return f"It was not allowed: {decided.reason}. Go on without it."
    why = f": {decided.reason}" if decided.reason else "."
    return f"{decided.actor} did not allow it{why} Do not do it in another way."


def _words(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:g} s"
