"""One connection, from the handshake to its end.

What comes in goes to the spool and is then acknowledged; what the spool keeps goes out as far as
the window allows.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import anyio
from anyio.lowlevel import checkpoint

from cloudagent_daemon import crash
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.commands import Commands
from cloudagent_daemon.link.deltas import Deltas
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.transport import (
    FrameStream,
    LinkClosedError,
    LinkError,
    NotConnectedError,
)
from cloudagent_protocol.errors import CloseCode, ProtocolError
from cloudagent_protocol.frames import (
    Ack,
    AgentsChanged,
    Answer,
    Command,
    CommandResult,
    Expect,
    Frame,
    Heartbeat,
    Hello,
    Numbered,
    Query,
    Question,
    UnknownFrame,
    Welcome,
    decode,
    encode,
)
from cloudagent_protocol.link import Fresh, Link
from cloudagent_protocol.version import SUPPORTED

logger = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
ANSWER_S: Final = 10.0
#: Frames that may wait for the disk; when they do, no more are read and the network fills up.
UNKEPT: Final = 256
#: Frames that are read from the outbox at once; their texts are in memory meanwhile.
BATCH: Final = 32
#: Pieces of text that come within this time go out as one.
COALESCE_S: Final = 0.04


class _Came(NamedTuple):
    """A frame that is to be kept, and how it came."""

    frame: Ack | Numbered | UnknownFrame
    text: str


class _Question:
    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.answer: Answer | None = None


class Connection:
    """Made by `open_connection`, used once.

    Args:
        alive: what a heartbeat says.
        keeper: what the disk does not take is tried again, unacknowledged; the link stays.
        commands: takes what people ask of the daemon itself.
    """

    def __init__(
        self,
        stream: FrameStream,
        spool: Spool,
        deltas: Deltas,
        welcome: Welcome,
        alive: Callable[[], Heartbeat],
        keeper: Keeper,
        commands: Commands,
    ) -> None:
        self._stream = stream
        self._spool = spool
        self._deltas = deltas
        self._alive = alive
        self._keeper = keeper
        self._commands = commands
        self._hurry = anyio.Event()
        self.welcome = welcome
        self.agents = list(welcome.agents)
        self._link = Link(
            accepted=spool.marks.accepted,
            acked=spool.marks.acked,
            now=time.monotonic(),
            heartbeat_s=welcome.heartbeat_s,
            silence_s=welcome.silence_s,
            lease_s=welcome.lease_s,
        )
        self._acked = anyio.Event()
        #: From the sending of a frame to the word that the backend has kept it; null until then.
        self.round_trip_s: float | None = None
        self._timed: tuple[int, float] | None = None
        self._put, self._take = anyio.create_memory_object_stream[_Came](UNKEPT)
        self._questions: dict[int, _Question] = {}
        self._asked = 0
        self._end: LinkError | None = None

    async def run(self) -> LinkError:
        """Serves the connection; returns why it ended."""
        self._deltas.begin_again()
        try:
            with self._put, self._take:
                async with anyio.create_task_group() as tasks:
                    for step in (
                        self._read,
                        self._keep,
                        self._send_outbox,
                        self._send_deltas,
                        self._beat,
                    ):
                        tasks.start_soon(self._until_the_end, step, tasks.cancel_scope)
        finally:
            for question in self._questions.values():
                question.answered.set()
        return self._end or LinkClosedError(CloseCode.NORMAL)

    def beat(self) -> None:
        """Sends a heartbeat now: what it says has changed."""
        self._hurry.set()

    async def say(self, result: CommandResult) -> None:
        """Answers a command.

        Raises:
            LinkClosedError: the link broke.
        """
        await self._send(result)

    async def ask(self, query: Question) -> Answer:
        """Puts a question.

        Raises:
            NotConnectedError: the link broke, or there was no answer within 10 s.
        """
        self._asked += 1
        number, question = self._asked, _Question()
        self._questions[number] = question
        try:
            with anyio.move_on_after(ANSWER_S):
                await self._send(Query(id=number, query=query))
                await question.answered.wait()
        except LinkClosedError as error:
            raise NotConnectedError(str(error)) from error
        finally:
            del self._questions[number]
        if question.answer is None:
            raise NotConnectedError("the backend did not answer")
        return question.answer

    async def _until_the_end(
        self, step: Callable[[], Awaitable[None]], scope: anyio.CancelScope
    ) -> None:
        try:
            await step()
        except LinkClosedError as error:
            self._end = self._end or error
        except ProtocolError as error:
            self._end = self._end or LinkClosedError(error.close_code, str(error))
            await self._stream.close(error.close_code, str(error))
        scope.cancel()

    # --- in ---

    async def _read(self) -> None:
        while True:
            text = await self._stream.receive()
            self._link.heard(time.monotonic())
            frame = decode(text)
            match frame:
                case Ack(seq=seq):
                    self._time_ack(seq)
                    if self._link.on_ack(seq):
                        self._acked.set()
                        await self._put.send(_Came(frame, text))
                case Numbered(seq=seq) | UnknownFrame(seq=int(seq)):
                    await self._receive(_Came(frame, text), seq)
                case Answer():
                    self._answer(frame)
                case Command():
                    await self._command(frame)
                case Expect():
                    self._commands.expect(frame)
                case Heartbeat() | UnknownFrame():
                    pass
                case _:
                    raise ProtocolError(f"a {frame.type} frame has no place here")

    def _time_ack(self, seq: int) -> None:
        if self._timed and seq >= self._timed[0]:
            self.round_trip_s = time.monotonic() - self._timed[1]
            self._timed = None

    async def _receive(self, came: _Came, seq: int) -> None:
        match self._link.receive(seq):
            case Fresh():
                crash.point("after_receive")
                await self._put.send(came)
            case duplicate:
                await self._send(Ack(seq=duplicate.ack))

    def _answer(self, frame: Answer) -> None:
        # One that nobody waits for any more is late: left aside.
        if question := self._questions.get(frame.id):
            question.answer = frame
            question.answered.set()

    async def _command(self, command: Command) -> None:
        if not self._commands.put(command):
            busy = "it is busy with what was asked of it before"
            await self._send(CommandResult(id=command.id, error=busy))

    async def _keep(self) -> None:
        """Durable first, then acknowledged; acting on it is for whoever follows the spool."""
        while True:
            batch = [await self._take.receive()]
            while len(batch) < UNKEPT and self._take.statistics().current_buffer_used:
                batch.append(self._take.receive_nowait())
            acks = [one.frame.seq for one in batch if isinstance(one.frame, Ack)]
            if acks:
                await self._keeper.kept(partial(self._spool.acked, max(acks)))
            if fresh := [one for one in batch if not isinstance(one.frame, Ack)]:
                await self._accept(fresh)

    async def _accept(self, fresh: Sequence[_Came]) -> None:
        last = fresh[-1].frame.seq or 0
        numbered = [one.frame for one in fresh if isinstance(one.frame, Numbered)]
        texts = [one.text for one in fresh if isinstance(one.frame, Numbered)]
        await self._keeper.kept(lambda: self._spool.receive(numbered, last, texts))
        crash.point("after_persist")
        await checkpoint()  # who follows the inbox goes first: its agent waits for that
        for frame in numbered:
            if isinstance(frame, AgentsChanged):
                self.agents = list(frame.agents)
        await self._send(Ack(seq=self._link.accept(last)))
        crash.point("after_ack")

    # --- out ---

    async def _send_outbox(self) -> None:
        while True:
            while self._link.may_send <= 0:
                self._acked = anyio.Event()
                await self._acked.wait()
            await self._spool.grown_beyond(self._link.sent)
            batch = await self._spool.frames_after(self._link.sent, min(BATCH, self._link.may_send))
            for seq, text in batch:
                self._link.stamp(seq, time.monotonic())
                self._timed = self._timed or (seq, time.monotonic())
                await self._stream.send(text)

    async def _send_deltas(self) -> None:
        while True:
            await self._deltas.wait()
            for delta in self._deltas.take():
                await self._send(delta)
            await anyio.sleep(COALESCE_S)

    async def _beat(self) -> None:
        while True:
            now = time.monotonic()
            self._link.heard(self._stream.heard_at)
            if self._link.dead(now):
                why = f"nothing heard for {self._link.silence_s:g} s"
                raise ProtocolError(why, CloseCode.HEARTBEAT_MISSED)
            if self._link.overdue(now):
                self._link.repeat(now)
                with anyio.move_on_after(self._link.dies_at - now):
                    await self._repeat()
            if self._hurry.is_set() or self._link.heartbeat_due(now):
                self._hurry = anyio.Event()
                # A network that takes nothing must not hide that nothing comes either.
                with anyio.move_on_after(self._link.dies_at - now):
                    await self._send(self._alive())
            with anyio.move_on_after(max(0.0, self._link.next_deadline() - time.monotonic())):
                await self._hurry.wait()

    async def _repeat(self) -> None:
        """What was sent last may be lost on a link that lives: the oldest of it goes out once more."""
        oldest = await self._spool.frames_after(self._link.acked, 1)
        for seq, text in oldest:
            if self._link.acked < seq <= self._link.sent:  # else its ack has come meanwhile
                about = {"action": "repeat"}
                logger.info("frame %d is not acknowledged; sending it again", seq, extra=about)
                self._link.spoke(time.monotonic())
                await self._stream.send(text)

    async def _send(self, frame: Any) -> None:
        self._link.spoke(time.monotonic())
        await self._stream.send(encode(frame))


async def open_connection(
    stream: FrameStream,
    spool: Spool,
    deltas: Deltas,
    hello: Hello,
    alive: Callable[[], Heartbeat],
    keeper: Keeper,
    commands: Commands,
) -> Connection:
    """Shakes hands and brings the spool to the history that counts.

    Raises:
        LinkClosedError: the backend refuses, or does not answer within 10 s.
    """
    try:
        welcome = await _welcome(stream, hello)
        if welcome.epoch != spool.marks.epoch:
            await spool.reset_epoch(welcome.epoch)
        await _resume(spool, welcome)
    except ProtocolError as error:
        await stream.close(error.close_code, str(error))
        raise LinkClosedError(error.close_code, str(error)) from error
    if welcome.drop:
        await spool.drop(welcome.drop)
    return Connection(stream, spool, deltas, welcome, alive, keeper, commands)


async def _welcome(stream: FrameStream, hello: Hello) -> Welcome:
    welcome: Frame | None = None
    with anyio.move_on_after(HANDSHAKE_S):
        await stream.send(encode(hello))
        welcome = decode(await stream.receive())
    if not isinstance(welcome, Welcome):
        got = f"got {welcome.type}" if welcome else f"nothing within {HANDSHAKE_S:g} s"
        raise ProtocolError(f"a welcome must follow the hello; {got}")
    if welcome.protocol not in SUPPORTED:
        raise ProtocolError(
            f"the backend speaks protocol {welcome.protocol}, this daemon {list(SUPPORTED)}",
            CloseCode.UPGRADE_NEEDED,
        )
    return welcome


async def _resume(spool: Spool, welcome: Welcome) -> None:
    try:
        await spool.resume(welcome.last_seq)
    except ProtocolError:
        # One side was restored from a backup. Without an epoch the next hello starts a new one.
        await spool.reset_epoch(None)
        raise
