"""One process of a coding agent: started, fed, read, watched, ended; it may live longer than a turn.

Whose turn it is listens to it. Between two turns nobody does, and then it has nothing to do: what it
does all the same ends it.
"""

import codecs
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any, Final, Protocol, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from cloudagent_daemon import footprint
from cloudagent_daemon.drivers.base import (
    Adjusted,
    AwaitTools,
    Command,
    Decision,
    DriverEvent,
    DriverSession,
    PermissionAsked,
    PermissionWithdrawn,
    Reported,
    Say,
    TakenUp,
    Turn,
)
from cloudagent_daemon.drivers.lines import LineSplitter
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import Child, Ladder, spawn
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.redaction import Redaction
from cloudagent_daemon.runs.report import now
from cloudagent_protocol.events import Reason, Stderr

logger = logging.getLogger(__name__)

#: How often it is asked how much memory it takes.
MEMORY_LOOK_S: Final = 2.0
#: How long a process may take to heed an interrupt.
INTERRUPT_S: Final = 2.0
#: How long its pipes may stay open after the whole tree is gone: they should not at all.
DRAIN_S: Final = 10.0
#: How long a program that does not tell of its tools may take to list ours before its turn begins.
TOOLS_S: Final = 10.0
#: How long one that waits may take to agree to another model or permission mode.
ADJUST_S: Final = 10.0
#: How long one that is not needed any more may take to leave by itself.
DISMISS_S: Final = 2.0
#: Answers that wait for a program to read them. With more it is not read any further either: one
#: that does not read its input for so long is given up for hung.
_OUTBOX: Final = 64
#: A larger line is understood in a thread, so that the daemon's other work goes on.
_LARGE_LINE_BYTES: Final = 262_144
#: What is kept of stderr for the end.
_TAIL_CHARS: Final = 4_000

E = TypeVar("E")


class Listener(Protocol):
    """Whose turn it is."""

    async def take(self, event: Reported | TakenUp) -> None:
        """Takes what happened, in order; the next line waits for it."""
        ...

    @property
    def decide(self) -> Callable[[PermissionAsked], Awaitable[Decision]]: ...

    @property
    def withdrawn(self) -> Callable[[str], Awaitable[None]]:
        """Takes that the program needs no answer to this question any more; `decide` was cancelled."""
        ...

    async def stderr(self, text: str) -> None: ...

    def fail(self, failure: Failure) -> None:
        """The process is ended for this."""
        ...

    def gone(self) -> None:
        """The process is, and all that it started."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to start, and within which bounds."""

    #: What the lines of this process mean.
    session: DriverSession
    #: What `session.launch()` returned.
    command: Command
    env: dict[str, str]
    cwd: Path
    launch_id: str
    #: Set once the process has asked the bridge for our tools.
    tools_listed: anyio.Event
    #: What the process must not see.
    mask: Mask = NO_MASK
    #: Bytes that its whole tree may take; None: as much as there is.
    memory_limit: int | None = None
    memory_look_s: float = MEMORY_LOOK_S
    #: How its end goes.
    ladder: Ladder = field(default_factory=Ladder)


class Worker:
    """A process that works on one turn after the other, or on one only."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.session = plan.session
        #: Set when the process and all that it started are gone.
        self.gone = anyio.Event()
        self.exit_code: int | None = None
        #: What it wrote to stderr last, without keys.
        self.stderr_tail = ""
        #: Whether it was ever given a turn.
        self.worked = False
        #: What went wrong with us, and ended it.
        self.fault: Exception | None = None
        self.alive_at = time.monotonic()
        self.redaction = Redaction(plan.env)
        self._child: Child | None = None
        self._listener: Listener | None = None
        #: Set once there is somebody to listen: until then its pipes keep what it says.
        self._attended = anyio.Event()
        self._outbox, self._to_write = anyio.create_memory_object_stream[bytes](_OUTBOX)
        self._open_pipes = 2
        self._drained = anyio.Event()
        self._enough = anyio.Event()
        #: Set when a turn has ended that leaves it alive, and when nothing else of that is left.
        self._turn_over = anyio.Event()
        self._resting = anyio.Event()
        #: How the end begins: wait a while, send the driver's interrupt, or neither.
        self._linger_s = 0.0
        self._interrupts = False
        self._at_once = True
        self._pumps: TaskGroup | None = None
        self._asking: dict[str, anyio.CancelScope] = {}
        #: What it says of what it was told, and set once it has or is gone.
        self._agreed = False
        self._adjusted = anyio.Event()

    @property
    def child(self) -> Child:
        assert self._child is not None, "it has not been started"
        return self._child

    @property
    def usable(self) -> bool:
        """Whether it could take a further turn."""
        wanted = not (self._enough.is_set() or self.child.hurry.is_set())
        return wanted and not self.gone.is_set() and self.child.exit_code is None

    # --- its life ---

    async def run(self, on_start: Callable[[Child], Awaitable[None]]) -> None:
        """Returns when the process and all that it started are gone.

        A fault of ours, once there is a process, ends it and is left in `fault`.

        Raises:
            SpawnError: it could not be started.
        """
        try:
            async with spawn(
                self.plan.command.argv,
                env=self.plan.env,
                cwd=self.plan.cwd,
                launch_id=self.plan.launch_id,
                mask=self.plan.mask,
                ladder=self.plan.ladder,
            ) as child:
                self._child = child
                await on_start(child)
                await self._live(child)
            self.exit_code = child.exit_code
        except Exception as error:
            if self._child is None:
                raise
            self.fault = error
            self.exit_code = self._child.exit_code
        finally:
            self._outbox.close()
            self._to_write.close()
            self.gone.set()
            self._adjusted.set()
            if self._listener:
                self._listener.gone()

    async def _live(self, child: Child) -> None:
        async with anyio.create_task_group() as watchers:
            if self.plan.memory_limit is not None:
                watchers.start_soon(self._watch_memory, child, self.plan.memory_limit)
            watchers.start_soon(self._end_when_enough, child)
            await self._converse(child)
            watchers.cancel_scope.cancel()

    async def _converse(self, child: Child) -> None:
        await self._attended.wait()
        async with self._to_write, self._outbox, anyio.create_task_group() as pumps:
            self._pumps = pumps
            pumps.start_soon(self._write_stdin, child, self._to_write)
            pumps.start_soon(self._read_stdout, child)
            pumps.start_soon(self._read_stderr, child)
            await child.wait()
            # What it left behind may hold the pipes open, and has no business any more.
            await child.end(at_once=True)
            with anyio.move_on_after(DRAIN_S):
                await self._drained.wait()
            pumps.cancel_scope.cancel()

    def attend(self) -> None:
        """Listens to it before its first turn: it has nothing to say yet, but may end."""
        self._attended.set()

    # --- its turns ---

    async def adjust(self, model: str | None, mode: str) -> bool:
        """Has its next turn done in this model and permission mode; returns whether it will be.

        To be called between two turns, of one that is listened to. If it will not, or does not say so
        in good time, it must not be given that turn.
        """
        data = self.session.adjust(model, mode)
        if not data:
            return data is not None
        self._agreed, self._adjusted = False, anyio.Event()
        if self.usable:
            await self._say(data)
            with anyio.move_on_after(ADJUST_S):
                await self._adjusted.wait()
        return self._agreed and self.usable

    def begin(self, listener: Listener, turn: Turn) -> None:
        """Gives it a turn; if it has gone meanwhile, or is to go, `listener` is told when it has."""
        self._listener = listener
        self.worked = True
        self._turn_over, self._resting = anyio.Event(), anyio.Event()
        self.stderr_tail = ""
        self.sign_of_life()
        if not self._enough.is_set():  # else it would begin with what it cannot finish
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                self._outbox.send_nowait(self.session.prompt(turn))
        if not self.session.capabilities.converses:
            self._outbox.close()
        self._attended.set()
        if self.gone.is_set():
            listener.gone()

    def steer(self, turn: Turn) -> bool:
        """Puts a message into the turn that is under way; returns whether it could."""
        data = self.session.steer(turn) if self.usable else b""
        if not data:
            return False
        try:
            self._outbox.send_nowait(data)
        except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return False
        return True

    async def rest(self, spared: Callable[[], set[int]]) -> None:
        """Its turn is over, and it stays; what it has started for the turn does not.

        Args:
            spared: the processes that belong to it as long as it lives, such as its tool server.
        """
        for scope in list(self._asking.values()):
            scope.cancel()
        self._listener = None
        self._turn_over.set()
        await self.child.sweep(spared())
        self._resting.set()

    def finish_by(self, *, linger_s: float = 0.0, interrupts: bool = False) -> None:
        """It is to end: by itself within `linger_s`, or interrupted first, and then by the ladder."""
        self._linger_s, self._interrupts, self._at_once = linger_s, interrupts, False
        self._enough.set()

    def end_at_once(self) -> None:
        self._enough.set()

    def kill(self) -> None:
        """Ends it with all that it started: what was asked of it before is not waited for."""
        self._enough.set()
        self.child.hurry.set()

    def hear_no_more(self) -> None:
        """Nothing is said to it any more, so that it leaves."""
        self._outbox.close()

    async def close(self) -> None:
        """Ends it, in the middle of a turn or not; returns when it is gone.

        To be shielded by who must have it gone.
        """
        idle = self._listener is None
        self._listener = None
        self.hear_no_more()
        self.finish_by(linger_s=DISMISS_S if idle else 0.0)
        self._attended.set()
        await self.gone.wait()

    def sign_of_life(self) -> None:
        """The agent did something that is seen elsewhere, such as calling a tool."""
        self.alive_at = time.monotonic()

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
        if lines.skipped and self._listener:
            note = f"[{lines.skipped} line(s) of its output were too long and left out]"
            await self._listener.take(Stderr(at=now(), text=note))
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
            case Adjusted():
                self._agreed = event.agreed
                self._adjusted.set()
            case PermissionWithdrawn():
                if scope := self._asking.get(event.id):
                    scope.cancel()
                if self._listener:
                    await self._listener.withdrawn(event.id)
            case PermissionAsked() if self._listener:
                self._start(self._permit, event)
            case _ if self._listener and not isinstance(event, PermissionAsked):
                await self._listener.take(event)
            case _:
                # Nobody has asked it for anything, and nobody would see what it does.
                about = {"action": "warm_restless", "pid": self.child.pid}
                logger.info("a warm process begins to work by itself: ended", extra=about)
                self.end_at_once()

    async def _say(self, data: bytes) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self._outbox.send(data)

    def _start(self, task: Callable[[E], Coroutine[Any, Any, None]], event: E) -> None:
        """Beside the reading, which must go on."""
        assert self._pumps is not None
        self._pumps.start_soon(task, event)

    async def _await_tools(self, asked: AwaitTools) -> None:
        listed = self.plan.tools_listed
        with anyio.move_on_after(TOOLS_S):
            await listed.wait()
        for event in asked.then(listed.is_set()):
            await self._take(event)

    async def _permit(self, asked: PermissionAsked) -> None:
        listener = self._listener
        if listener is None:
            return
        with anyio.CancelScope() as scope:
            if asked.id:
                self._asking[asked.id] = scope
            try:
                decision = await listener.decide(asked)
                self.sign_of_life()
                for event in asked.then(decision):
                    await self._take(event)
            finally:
                self._asking.pop(asked.id, None)

    async def _read_stderr(self, child: Child) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        more = True
        try:
            while more:
                data = await child.read_stderr()
                self.sign_of_life()
                more = bool(data)
                text = self.redaction.feed(decoder.decode(data, final=not more))
                self._keep_tail(text := text if more else text + self.redaction.flush())
                if text and self._listener:
                    await self._listener.stderr(text)
        finally:
            self._keep_tail(self.redaction.flush())
        self._closed()

    def _keep_tail(self, text: str) -> None:
        self.stderr_tail = (self.stderr_tail + text)[-_TAIL_CHARS:]

    def _closed(self) -> None:
        self._open_pipes -= 1
        if not self._open_pipes:
            self._drained.set()

    # --- its end ---

    async def _watch_memory(self, child: Child, limit: int) -> None:
        """Too much is said at once, and ends the process if it is too much at the next look as well."""
        warned = False
        while True:
            await anyio.sleep(self.plan.memory_look_s)  # no event tells of memory
            taken = await anyio.to_thread.run_sync(footprint.exceeds, child.root, limit)
            if taken is None:
                warned = False
                continue
            figures = f"{_mb(taken)} of memory, and {_mb(limit)} are allowed"
            if warned:
                break
            warned = True
            logger.warning("a run takes %s", figures, extra={"action": "run_memory"})
            if self._listener:
                note = f"[its processes take {figures}: it is ended if it goes on so]\n"
                await self._listener.take(Stderr(at=now(), text=note))
        if self._listener:
            self._listener.fail(
                Failure(
                    Reason.OUT_OF_MEMORY,
                    f"The agent and what it started took {figures}; it was ended. The limit is "
                    "`run_memory_mb` or `run_memory_percent` in the machine's config.json.",
                )
            )
        self.finish_by(interrupts=True)

    async def _end_when_enough(self, child: Child) -> None:
        while True:
            await self._enough.wait()
            await child.unless_hurried(lambda: self._linger(child))
            began = time.monotonic()
            if self._interrupts and child.exit_code is None:
                await child.unless_hurried(lambda: self._interrupt(child))
            heeded = self._turn_over.is_set() and self._interrupts
            if not heeded or child.hurry.is_set():
                break
            # It has heeded the interrupt, its turn has ended, and it is as good as before.
            await self._resting.wait()
            self._enough, self._interrupts = anyio.Event(), False
        await child.end(at_once=self._at_once, asked_s=time.monotonic() - began)

    async def _linger(self, child: Child) -> None:
        with anyio.move_on_after(self._linger_s):
            await child.wait()

    async def _interrupt(self, child: Child) -> None:
        how = self.session.interrupt()
        if isinstance(how, Signals):
            await child.interrupt(how, INTERRUPT_S)
        elif how:
            with anyio.move_on_after(INTERRUPT_S):
                await self._say(how)
                await self._gone_or_turn_over(child)

    async def _gone_or_turn_over(self, child: Child) -> None:
        async with anyio.create_task_group() as tasks:

            async def over() -> None:
                await self._turn_over.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(over)
            await child.wait()
            tasks.cancel_scope.cancel()


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"
