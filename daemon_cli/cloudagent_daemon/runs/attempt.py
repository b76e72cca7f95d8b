"""One turn in a process: what was seen of it, and what ends it. What it meant is judged elsewhere."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from cloudagent_daemon.drivers.base import (
    Decision,
    PermissionAsked,
    Reported,
    TakenUp,
    TextDelta,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.report import now
from cloudagent_daemon.runs.worker import Worker
from cloudagent_protocol.events import Ready, Reason, Stderr, Text, ToolCall

#: How much of stderr is shown as it comes.
_STDERR_EVENTS: Final = 200
#: After these a process is as good as before.
_HARMLESS: Final = frozenset({None, Reason.INTERRUPTED})


async def _nothing(_: str) -> None:
    pass


async def _at_once() -> bool:
    return True


def _nobody() -> set[int]:
    return set()


@dataclass
class Seen:
    """What one process did in one turn; filled while it runs."""

    ready: bool = False
    #: The model has written or done something, whether its tools were reported or not.
    worked: bool = False
    #: The messages that it has begun to work on, as far as it tells.
    taken: set[str] = field(default_factory=set[str])
    end: TurnEnd | None = None
    #: None also of one that lives on.
    exit_code: int | None = None
    failure: Failure | None = None
    stderr_tail: str = ""


@dataclass
class Attempt:
    """One turn.

    Args:
        worker: has it; nobody else meanwhile.
        on_event: handed each event, in order; the next line waits for it.
        stop: ends the attempt when requested.
        hang_timeout_s: silence after which the process is taken for dead.
        decide: whether the agent may do what it asks for.
        keeps: whether the process shall stay, if it can, when the turn is over.
        shut: closes the agent's tools, with the end of the turn; returns whether no call is left.
        spared: its processes that stay with it.
        take_up_s: how long it may take to begin with the message; None: as long as may be.
    """

    worker: Worker
    turn: Turn
    on_event: Callable[[Reported], Awaitable[None]]
    stop: StopSignal
    hang_timeout_s: float
    decide: Callable[[PermissionAsked], Awaitable[Decision]]
    on_taken: Callable[[str], Awaitable[None]] | None = None
    #: Told which question its program has taken back (`PermissionAsked.id`).
    withdrawn: Callable[[str], Awaitable[None]] = _nothing
    keeps: bool = False
    shut: Callable[[], Awaitable[bool]] = _at_once
    spared: Callable[[], set[int]] = _nobody
    take_up_s: float | None = None
    seen: Seen = field(default_factory=Seen)
    #: Whether the process lives on, and could take the next turn.
    kept: bool = False
    _begun_at: float = field(default_factory=time.monotonic)
    #: When the CLI's journal was written last, as far as that told nothing: seconds of the wall's clock.
    _journal_before: float = 0.0
    _stderr_events: int = 0
    _taken_up: anyio.Event = field(default_factory=anyio.Event)
    _over: anyio.Event = field(default_factory=anyio.Event)

    def sign_of_life(self) -> None:
        """The agent did something that is seen elsewhere, such as calling a tool."""
        self.worker.sign_of_life()

    async def run(self) -> Seen:
        """Returns when the turn is over: its process gone with all that it started, or `kept`."""
        async with anyio.create_task_group() as watchers:
            self.worker.begin(self, self.turn)  # first: each of the others takes its time
            watchers.start_soon(self._watch_stop)
            watchers.start_soon(self._watch_silence)
            if self.take_up_s is not None:
                watchers.start_soon(self._watch_take_up, self.take_up_s)
            await self._over.wait()
            watchers.cancel_scope.cancel()
        if self.worker.fault:
            raise self.worker.fault
        if not self.kept:
            self.seen.exit_code = self.worker.exit_code
        self.seen.stderr_tail = self.worker.stderr_tail
        return self.seen

    @property
    def steerable(self) -> bool:
        """Whether a message could be put into the turn."""
        ends = self._over.is_set() or self.seen.end or self.seen.failure or self.stop.requested
        return not ends and self.worker.session.capabilities.steer

    def steer(self, turn: Turn) -> bool:
        """Puts a message into the turn; returns whether it could."""
        return self.steerable and self.worker.steer(turn)

    # --- what the process does ---

    async def take(self, event: Reported | TakenUp) -> None:
        match event:
            case TakenUp():
                await self._taken(event.turn_id)
                return
            case Ready():
                self.seen.ready = True
            case Text() | ToolCall() | TextDelta():
                self.seen.worked = True
            case TurnEnd():
                await self._ended(event)
                return
            case _:
                pass
        await self.on_event(event)

    async def _taken(self, turn_id: str) -> None:
        self._taken_up.set()
        if turn_id not in self.seen.taken:
            self.seen.taken.add(turn_id)
            if self.on_taken:
                await self.on_taken(turn_id)

    async def _ended(self, end: TurnEnd) -> None:
        end = self._gated(end)
        end = replace(end, detail=self.worker.redaction.clean(end.detail))
        if self.seen.end is None:
            self.seen.end = end
        # First of all: what it calls from here on is no part of this turn.
        shut = await self.shut()
        if shut and self._leaves_it_usable(end):
            await self.on_event(end)
            self.kept = True
            await self.worker.rest(self.spared)
            self._over.set()
            return
        if end.reason is Reason.TOOLS_UNAVAILABLE:
            self.worker.end_at_once()  # it must not work without being able to answer
        else:
            self.worker.finish_by(linger_s=self.worker.plan.command.linger_s)
        self.worker.hear_no_more()
        await self.on_event(end)

    def _leaves_it_usable(self, end: TurnEnd) -> bool:
        return (
            self.keeps
            and self.worker.session.capabilities.warm
            and end.reason in _HARMLESS
            and self.seen.failure is None
            and self.worker.child.exit_code is None
        )

    def _gated(self, end: TurnEnd) -> TurnEnd:
        reports = self.worker.session.capabilities.reports_tools
        if end.reason is None and reports and not self.seen.ready:
            detail = "The agent ended its turn without ever reporting that it has our tools."
            return TurnEnd(Reason.TOOLS_UNAVAILABLE, detail, session_id=end.session_id)
        return end

    async def stderr(self, text: str) -> None:
        if self._stderr_events < _STDERR_EVENTS:
            self._stderr_events += 1
            await self.on_event(Stderr(at=now(), text=text))

    def fail(self, failure: Failure) -> None:
        self.seen.failure = failure

    def gone(self) -> None:
        self._over.set()

    # --- watchers ---

    async def _watch_stop(self) -> None:
        await self.stop.wait()
        self.worker.finish_by(interrupts=True)
        await self.stop.now.wait()
        self.worker.kill()

    async def _watch_take_up(self, take_up_s: float) -> None:
        with anyio.move_on_after(take_up_s):
            await self._taken_up.wait()
        if not self._taken_up.is_set():
            self.worker.end_at_once()

    async def _watch_silence(self) -> None:
        self._journal_before = await self._journal_written_at()
        left = self.hang_timeout_s
        while left > 0:
            # Not a wait for an event: signs of life are many, and each only moves the deadline.
            await anyio.sleep(left)
            left = await self._silence_left()
        self.fail(
            Failure(
                Reason.HUNG,
                f"The agent gave no sign of life for {self.hang_timeout_s:g} s and was ended.",
            )
        )
        self.worker.finish_by(interrupts=True)

    async def _silence_left(self) -> float:
        """How long it may still be silent, in seconds."""
        left = self.worker.alive_at + self.hang_timeout_s - time.monotonic()
        if left > 0 or self.worker.plan.command.journal is None:
            return left
        written_at = await self._journal_written_at()
        if written_at == self._journal_before:
            return left
        age = time.time() - written_at
        if not 0 <= age <= time.monotonic() - self._begun_at:
            age = 0.0  # the clock was set since; that it was written at all is a sign of life
            self._journal_before = written_at
        return self.hang_timeout_s - age

    async def _journal_written_at(self) -> float:
        journal = self.worker.plan.command.journal
        return 0.0 if journal is None else await anyio.to_thread.run_sync(_written_at, journal)


@dataclass
class UnderWay:
    """Where the parts of a run find the turn under way."""

    attempt: Attempt | None = None

    def sign_of_life(self) -> None:
        if self.attempt is not None:
            self.attempt.sign_of_life()


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
