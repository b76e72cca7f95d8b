"""Keeps a connection to the backend: connects, backs off, notices sleep, tells how it stands."""

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import anyio

from cloudagent_daemon.disk import Keeper, NotKeptError
from cloudagent_daemon.link.backoff import Backoff, is_rejection, is_revoked
from cloudagent_daemon.link.commands import Commands
from cloudagent_daemon.link.connection import Connection, open_connection
from cloudagent_daemon.link.deltas import Deltas
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.transport import (
    LinkClosedError,
    LinkError,
    NotConnectedError,
    Transport,
    UnreachableError,
)
from cloudagent_daemon.rounds import Rounds
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.frames import CommandResult, Heartbeat, Hello, Question

logger = logging.getLogger(__name__)

#: The difference of the two clocks between two rounds that means that the machine slept.
SLEPT_S: Final = 15.0

State: TypeAlias = Literal["connecting", "connected", "unauthorized"]


@dataclass(frozen=True)
class Standing:
    """How the link stands, for `status` and the log."""

    state: State
    #: Unix seconds.
    since: float
    #: Why it is not connected.
    detail: str = ""
    attempt: int = 0
    #: When the next attempt comes, Unix seconds.
    next_at: float | None = None


class LinkClient:
    """The daemon's end of the link.

    Args:
        hello: what to say first; asked anew for each connection.
        alive: what a heartbeat says of this machine.
        wall: the clock on the wall, Unix seconds.
        rounds: when the clocks are compared; never, if there are none.
    """

    def __init__(
        self,
        transport: Transport,
        spool: Spool,
        hello: Callable[[], Awaitable[Hello]],
        alive: Callable[[], Heartbeat],
        *,
        keeper: Keeper | None = None,
        backoff: Backoff | None = None,
        wall: Callable[[], float] = time.time,
        rounds: Rounds | None = None,
    ) -> None:
        self._transport = transport
        self._spool = spool
        self._hello = hello
        self._alive = alive
        self._keeper = keeper or Keeper()
        self._backoff = backoff or Backoff()
        self._wall = wall
        self._rounds = rounds or Rounds()
        self._woke = anyio.Event()
        self._connection: Connection | None = None
        #: Whether another daemon with this key has the host. What waits here is then its to run.
        self.superseded = False
        #: Whether the host was removed: nothing may go on, or begin.
        self.revoked = False
        self.deltas = Deltas()
        #: What people ask of this daemon itself.
        self.commands = Commands()
        self.standing = Standing("connecting", wall())
        #: Set, and replaced, when `standing` changes.
        self.changed = anyio.Event()

    @property
    def connection(self) -> Connection | None:
        """The connection, if there is one at the moment."""
        return self._connection

    async def run(self) -> None:
        """Never returns; the backend may come and go."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_clocks)
            while True:
                began = time.monotonic()
                end = await self._until_woken(self._connect)
                delay = self._backoff.delay(end, time.monotonic() - began) if end else 0.0
                if end:
                    self._show_end(end, delay)
                    with anyio.move_on_after(delay):
                        await self._woke.wait()
                if self._woke.is_set():
                    self._woke = anyio.Event()
                    self._backoff.forget()

    async def ask(self, query: Question) -> dict[str, Any]:
        """Asks the backend.

        Raises:
            NotConnectedError: there is no link, or no answer came; or the backend refuses.
        """
        if self._connection is None:
            raise NotConnectedError(
                f"not connected to the backend: {self.standing.detail or 'yet'}"
            )
        answer = await self._connection.ask(query)
        if answer.error is not None:
            raise NotConnectedError(answer.error)
        return answer.data or {}

    async def reply(self, result: CommandResult) -> None:
        """Answers one of `commands`; on another connection than the command came by it is left aside."""
        if self._connection:
            with suppress(LinkClosedError):
                await self._connection.say(result)

    def beat(self) -> None:
        """Tells the backend now what a heartbeat says, if it is there; a hello says it too."""
        if self._connection:
            self._connection.beat()

    def reconnect(self) -> None:
        """Connects anew, at once: what the last attempt, or this connection, began with has changed."""
        self._show(Standing("connecting", self._wall(), "connecting anew"))
        self._woke.set()

    async def flush(self) -> None:
        """Returns when the backend has all that the outbox holds; set a deadline."""
        while self._spool.marks.unsent:
            await self._spool.committed.wait()

    async def _connect(self) -> LinkError:
        try:
            async with self._transport.connect() as stream:
                hello = await self._hello()
                connection = await open_connection(
                    stream,
                    self._spool,
                    self.deltas,
                    hello,
                    self._alive,
                    self._keeper,
                    self.commands,
                )
                self._connection = connection
                alive = self._alive()
                if (hello.holds, hello.draining) != (alive.holds, alive.draining):
                    connection.beat()  # something changed during the handshake
                self.superseded = self.revoked = False
                self._show(Standing("connected", self._wall()))
                logger.info(
                    "Connected as %s",
                    connection.welcome.host_id,
                    extra={"action": "connected", "session_id": connection.welcome.session_id},
                )
                try:
                    return await connection.run()
                finally:
                    self._connection = None
        except LinkError as error:
            return error
        except NotKeptError as error:  # the handshake itself has something to keep
            return UnreachableError(str(error))
        except Exception as error:
            # The edge of a task: whatever it was, a daemon that stays up can try again.
            logger.exception("the link failed", extra={"action": "link_failed"})
            return UnreachableError(f"{type(error).__name__}: {error}")

    async def _until_woken(self, work: Callable[[], Awaitable[LinkError]]) -> LinkError | None:
        """What `work` returns, or None if the machine slept, or was told to connect anew."""
        end: LinkError | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self._woke.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            end = await work()
            tasks.cancel_scope.cancel()
        return end

    async def _watch_clocks(self) -> None:
        """A machine that sleeps stops the monotonic clock, not the one on the wall."""
        before = self._wall() - time.monotonic()

        def slept() -> bool:
            nonlocal before
            last, before = before, self._wall() - time.monotonic()
            return abs(before - last) > SLEPT_S

        while True:
            await self._rounds.until(slept)
            logger.info("the machine slept; connecting anew", extra={"action": "woke"})
            self._woke.set()

    def _show_end(self, end: LinkError, delay: float) -> None:
        if isinstance(end, LinkClosedError) and end.code == CloseCode.SUPERSEDED:
            self.superseded = True
        self.revoked = self.revoked or is_revoked(end)
        state: State = "unauthorized" if is_rejection(end) else "connecting"
        since = self.standing.since if self.standing.state == state else self._wall()
        logger.warning(
            "not connected (attempt %d, next in %.1f s): %s",
            self._backoff.attempt,
            delay,
            end,
            extra={"action": "disconnected"},
        )
        self._show(Standing(state, since, str(end), self._backoff.attempt, self._wall() + delay))

    def _show(self, standing: Standing) -> None:
        self.standing = standing
        self.changed.set()
        self.changed = anyio.Event()
