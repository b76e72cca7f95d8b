"""One process of a run: started, fed, read, watched, ended. What it meant is judged elsewhere."""

import codecs
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import Signals
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cloudagent_daemon import footprint
from cloudagent_daemon.drivers.base import (
    AwaitTools,
    Command,
    Decision,
    DriverEvent,
    DriverSession,
    PermissionAsked,
    Reported,
    Say,
    TextDelta,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.lines import LineSplitter
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import Child, Ladder, spawn
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.ports import StopSignal
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_daemon.runs.report import now
from cloudagent_protocol.events import Ready, Reason, Stderr, Text, ToolCall

logger = logging.getLogger(__name__)

#: How often it is asked how much memory it takes.
MEMORY_LOOK_S: Final = 2.0
#: How long a process may take to heed an interrupt.
INTERRUPT_S: Final = 2.0
#: How long its pipes may stay open after the whole tree is gone: they should not at all.
DRAIN_S: Final = 10.0
#: How long a program that does not tell of its tools may take to list ours before its turn begins.
TOOLS_S: Final = 10.0
#: Answers that wait for a program to read them. With more it is not read any further either: one
#: that does not read its input for so long is given up for hung.
_OUTBOX: Final = 64
#: A larger line is understood in a thread, so that the daemon's other work goes on.
_LARGE_LINE_BYTES: Final = 262_144
#: What is kept of stderr for the end, and how much of it is shown as it comes.
_TAIL_CHARS: Final = 4_000
_STDERR_EVENTS: Final = 200

E = TypeVar("E")


@dataclass
class Seen:
    """What one process did; filled while it runs."""

    ready: bool = False
    #: The model has written or done something, whether its tools were reported or not.
    worked: bool = False
    end: TurnEnd | None = None
    exit_code: int | None = None
    failure: Failure | None = None
    stderr_tail: str = ""


@dataclass
class Attempt:
    """One process of a run.

    Args:
        session: what the lines of this process mean.
        command: what `session.launch()` returned.
        on_start: told of the process as soon as there is one.
        on_event: handed each event, in order; the next line waits for it.
        stop: ends the attempt when requested.
        hang_timeout_s: silence after which the process is taken for dead.
        tools_listed: set once the process has asked the bridge for our tools.
        decide: whether the agent may do what it asks for.
        mask: what the process must not see.
        memory_limit: bytes that its whole tree may take; null: as much as there is.
        ladder: how its end goes.
    """

    session: DriverSession
    command: Command
    turn: Turn
    env: Mapping[str, str]
    cwd: Path
    launch_id: str
    on_start: Callable[[Child], Awaitable[None]]
    on_event: Callable[[Reported], Awaitable[None]]
    stop: StopSignal
    hang_timeout_s: float
    tools_listed: anyio.Event
    decide: Callable[[PermissionAsked], Awaitable[Decision]]
    mask: Mask = NO_MASK
    memory_limit: int | None = None
    memory_look_s: float = MEMORY_LOOK_S
    ladder: Ladder = field(default_factory=Ladder)
    seen: Seen = field(default_factory=Seen)
    _alive_at: float = field(default_factory=time.monotonic)
    _begun_at: float = field(default_factory=time.monotonic)
    #: When the CLI's journal was written last, as far as that told nothing: seconds of the wall's clock.
    _journal_before: float = 0.0
    _redaction: Redaction = field(init=False)
    _open_pipes: int = 2
    _drained: anyio.Event = field(default_factory=anyio.Event)
    _enough: anyio.Event = field(default_factory=anyio.Event)
    #: How the end begins: wait a while, send the driver's interrupt, or neither.
    _linger_s: float = 0.0
    _interrupts: bool = False
    _at_once: bool = True
    _pumps: TaskGroup | None = None
    _outbox: MemoryObjectSendStream[bytes] | None = None

    def __post_init__(self) -> None:
        self._redaction = Redaction(self.env)

    def sign_of_life(self) -> None:
        """The agent did something that is seen elsewhere, such as calling a tool."""
        self._alive_at = time.monotonic()

    async def run(self) -> Seen:
        """Returns when the process and all that it started are gone.

        Raises:
            SpawnError: it could not be started.
        """
        argv, env = self.command.argv, self.env
        async with spawn(
            argv,
            env=env,
            cwd=self.cwd,
            launch_id=self.launch_id,
            mask=self.mask,
            ladder=self.ladder,
        ) as child:
            await self.on_start(child)
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(self._watch_stop)
                watchers.start_soon(self._watch_silence)
                if self.memory_limit is not None:
                    watchers.start_soon(self._watch_memory, child, self.memory_limit)
                watchers.start_soon(self._end_when_enough, child)
                await self._converse(child)
                watchers.cancel_scope.cancel()
        self.seen.exit_code = child.exit_code
        return self.seen

    async def _converse(self, child: Child) -> None:
        outbox, to_write = anyio.create_memory_object_stream[bytes](_OUTBOX)
        async with to_write, outbox, anyio.create_task_group() as pumps:
            self._pumps, self._outbox = pumps, outbox
            outbox.send_nowait(self.session.prompt(self.turn))
            if not self.session.capabilities.converses:
                outbox.close()
            pumps.start_soon(self._write_stdin, child, to_write)
            pumps.start_soon(self._read_stdout, child)
            pumps.start_soon(self._read_stderr, child)
            await child.wait()
            # What it left behind may hold the pipes open, and has no business any more.
            await child.end(at_once=True)
            with anyio.move_on_after(DRAIN_S):
                await self._drained.wait()
            pumps.cancel_scope.cancel()

    # --- pumps ---

    async def _write_stdin(self, child: Child, to_write: MemoryObjectReceiveStream[bytes]) -> None:
        async for data in to_write:
            await child.write(data)
        await child.close_stdin()

    async def _read_stdout(self, child: Child) -> None:
        lines = LineSplitter()
        while data := await child.read_stdout():
            self.sign_of_life()
            for line in lines.feed(data):
                await self._understand(line)
        for line in lines.flush():
            await self._understand(line)
        if lines.skipped:
            note = f"[{lines.skipped} line(s) of its output were too long and left out]"
            await self.on_event(Stderr(at=now(), text=note))
        self._closed()

    async def _understand(self, line: bytes) -> None:
        if len(line) > _LARGE_LINE_BYTES:
            events = await anyio.to_thread.run_sync(lambda: list(self.session.receive(line)))
        else:
            events = self.session.receive(line)
        for event in events:
            await self._take(event)

    async def _take(self, event: DriverEvent) -> None:
        match event:
            case Say():
                await self._say(event.data)
            case AwaitTools():
                self._start(self._await_tools, event)
            case PermissionAsked():
                self._start(self._permit, event)
            case _:
                await self._report(event)

    async def _say(self, data: bytes) -> None:
        assert self._outbox is not None
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self._outbox.send(data)

    def _start(self, task: Callable[[E], Coroutine[Any, Any, None]], event: E) -> None:
        """Beside the reading, which must go on."""
        assert self._pumps is not None
        self._pumps.start_soon(task, event)

    async def _await_tools(self, asked: AwaitTools) -> None:
        with anyio.move_on_after(TOOLS_S):
            await self.tools_listed.wait()
        for event in asked.then(self.tools_listed.is_set()):
            await self._take(event)

    async def _permit(self, asked: PermissionAsked) -> None:
        decision = await self.decide(asked)
        self.sign_of_life()
        for event in asked.then(decision):
            await self._take(event)

    async def _report(self, event: Reported) -> None:
        if isinstance(event, Ready):
            self.seen.ready = True
        if isinstance(event, Text | ToolCall | TextDelta):
            self.seen.worked = True
        if isinstance(event, TurnEnd):
            event = self._gated(event)
            event = replace(event, detail=self._redaction.clean(event.detail))
            if self.seen.end is None:
                self.seen.end = event
            if event.reason is Reason.TOOLS_UNAVAILABLE:
                self._enough.set()  # at once: it must not work without being able to answer
            else:
                self._finish_by(linger_s=self.command.linger_s)
            assert self._outbox is not None
            self._outbox.close()
        await self.on_event(event)

    def _gated(self, end: TurnEnd) -> TurnEnd:
        reports = self.session.capabilities.reports_tools
        if end.reason is None and reports and not self.seen.ready:
            detail = "The agent ended its turn without ever reporting that it has our tools."
            return TurnEnd(Reason.TOOLS_UNAVAILABLE, detail, session_id=end.session_id)
        return end

    async def _read_stderr(self, child: Child) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        reported = 0
        more = True
        try:
            while more:
                data = await child.read_stderr()
                self.sign_of_life()
                more = bool(data)
                text = self._redaction.feed(decoder.decode(data, final=not more))
                self._keep_tail(text := text if more else text + self._redaction.flush())
                if text and reported < _STDERR_EVENTS:
                    reported += 1
                    await self.on_event(Stderr(at=now(), text=text))
        finally:
            self._keep_tail(self._redaction.flush())
        self._closed()

    def _keep_tail(self, text: str) -> None:
        self.seen.stderr_tail = (self.seen.stderr_tail + text)[-_TAIL_CHARS:]

    def _closed(self) -> None:
        self._open_pipes -= 1
        if not self._open_pipes:
            self._drained.set()

    # --- watchers ---

    async def _watch_stop(self) -> None:
        await self.stop.wait()
        self._finish_by(interrupts=True)

    async def _watch_silence(self) -> None:
        self._journal_before = await self._journal_written_at()
        left = self.hang_timeout_s
        while left > 0:
            # Not a wait for an event: signs of life are many, and each only moves the deadline.
            await anyio.sleep(left)
            left = await self._silence_left()
        self.seen.failure = Failure(
            Reason.HUNG,
            f"The agent gave no sign of life for {self.hang_timeout_s:g} s and was ended.",
        )
        self._finish_by(interrupts=True)

    async def _watch_memory(self, child: Child, limit: int) -> None:
        """Too much is said at once, and ends the run if it is too much at the next look as well."""
        warned = False
        while True:
            await anyio.sleep(self.memory_look_s)  # no event tells of memory
            taken = await anyio.to_thread.run_sync(footprint.exceeds, child.root, limit)
            if taken is None:
                warned = False
                continue
            figures = f"{_mb(taken)} of memory, and {_mb(limit)} are allowed"
            if warned:
                break
            warned = True
            logger.warning("a run takes %s", figures, extra={"action": "run_memory"})
            note = f"[its processes take {figures}: it is ended if it goes on so]\n"
            await self.on_event(Stderr(at=now(), text=note))
        self.seen.failure = Failure(
            Reason.OUT_OF_MEMORY,
            f"The agent and what it started took {figures}; it was ended. The limit is "
            "`run_memory_mb` or `run_memory_percent` in the machine's config.json.",
        )
        self._finish_by(interrupts=True)

    async def _silence_left(self) -> float:
        """How long it may still be silent, in seconds."""
        left = self._alive_at + self.hang_timeout_s - time.monotonic()
        if left > 0 or self.command.journal is None:
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
        if self.command.journal is None:
            return 0.0
        return await anyio.to_thread.run_sync(_written_at, self.command.journal)

    def _finish_by(self, *, linger_s: float = 0.0, interrupts: bool = False) -> None:
        self._linger_s, self._interrupts, self._at_once = linger_s, interrupts, False
        self._enough.set()

    async def _end_when_enough(self, child: Child) -> None:
        await self._enough.wait()
        with anyio.move_on_after(self._linger_s):
            await child.wait()
        began = time.monotonic()
        if self._interrupts and child.exit_code is None:
            await self._interrupt(child)
        await child.end(at_once=self._at_once, asked_s=time.monotonic() - began)

    async def _interrupt(self, child: Child) -> None:
        how = self.session.interrupt()
        if isinstance(how, Signals):
            await child.interrupt(how, INTERRUPT_S)
        elif how:
            with anyio.move_on_after(INTERRUPT_S):
                await self._say(how)
                await child.wait()


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
