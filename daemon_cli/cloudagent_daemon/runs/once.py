"""One message and no more: watches the life of a job's daemon, tells it, and says when it is over."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.runs.ports import Launch, Parked, Ride, Said, StopSignal, Uplink
from cloudagent_daemon.runs.queue import Runs
from cloudagent_protocol.events import Finished, Outcome, Usage, UsageReported
from cloudagent_protocol.frames import (
    AgentEntry,
    Deliver,
    Delta,
    FindAgent,
    FoundAgent,
    ListAgents,
    ListMessages,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import DeliveryId

#: How long the first connection may take before the backend counts as unreachable.
CONNECT_S: Final = 60.0


@dataclass
class Turn:
    """What is known of the message and its run."""

    deliver: Deliver | None = None
    began_at: float = 0.0
    ended_at: float | None = None
    frame: RunReport | None = None
    finished: Finished | None = None
    usage: Usage | None = None
    #: What the agent said last.
    reply: str | None = None


class OneMessage:
    """A job's one message.

    Args:
        say: takes a line for the person who reads the job's log.
        cwd: where an agent works that has no folder of its own.
        idle_exit_s: how long to wait for the message; None for ever.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        cwd: Path,
        idle_exit_s: float | None,
        wall: Callable[[], float] = time.time,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._say = say
        self._cwd = cwd
        self._idle_exit_s = idle_exit_s
        self._wall = wall
        self._connect_s = connect_s
        self.turn = Turn()
        #: `idle`, `unreachable`, `unauthorized` or `failed`, if no agent had the message.
        self.gave_up: str | None = None
        self.why = ""
        #: Reports that the backend has not got when the daemon ended.
        self.unsent = 0
        self._came = anyio.Event()
        self._over = anyio.Event()
        self._introduced = False
        self._held_back: list[str] = []

    def runs(self, inner: Runs) -> Runs:
        """`inner`, watched."""
        return _Runs(self, inner)

    def uplink(self, inner: Uplink) -> Uplink:
        """`inner`, listened to."""
        return _Uplink(self, inner)

    async def watch(self, client: LinkClient, refusals: Callable[[], str] = str) -> None:
        """Returns when the message has had its turn, or will not come.

        `refusals` tells why this machine starts nothing at the moment; empty if it would.
        """
        if not await self._connected(client):
            return
        limit = f" (limit {words(self._idle_exit_s)})" if self._idle_exit_s else ""
        self._introduce(None if self._came.is_set() else f"ready, waiting for one message{limit}")
        with anyio.move_on_after(self._idle_exit_s):
            await self._until_it_came(client)
        if not self._came.is_set():
            self._give_up_waiting(client, refusals())
            return
        await self._over.wait()

    async def _connected(self, client: LinkClient) -> bool:
        with anyio.move_on_after(self._connect_s):
            while client.connection is None and client.standing.state != "unauthorized":
                await client.changed.wait()
        if client.connection is not None or self._came.is_set():
            return True
        self._give_up_waiting(client)
        return False

    async def _until_it_came(self, client: LinkClient) -> None:
        """Also returns when the host's key opens nothing any more: it was removed."""
        async with anyio.create_task_group() as tasks:

            async def rejected() -> None:
                while client.standing.state != "unauthorized":
                    await client.changed.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(rejected)
            await self._came.wait()
            tasks.cancel_scope.cancel()

    def _give_up_waiting(self, client: LinkClient, refused: str = "") -> None:
        standing = client.standing
        if standing.state == "unauthorized":
            self.gave_up, self.why = "unauthorized", standing.detail
        elif client.connection is None:
            self.gave_up, self.why = "unreachable", standing.detail
        elif refused:
            self.gave_up, self.why = "failed", f"this machine starts nothing: {refused}"
            self._tell(self.why)
        else:
            self.gave_up, self.why = "idle", f"no message within {words(self._idle_exit_s or 0)}"
            self._tell(self.why)

    # --- what happens ---

    def delivered(self, deliver: Deliver) -> Deliver:
        """The message is here; gives it back with the folder to work in."""
        self.turn = Turn(deliver, self._wall())
        self._came.set()
        self._tell(f"{deliver.message.id} delivered to {deliver.agent.name}")
        if deliver.agent.cwd is not None:
            return deliver
        agent = deliver.agent.model_copy(update={"cwd": str(self._cwd)})
        return deliver.model_copy(update={"agent": agent})

    def said(self, frame: Said) -> None:
        match frame:
            case Send():
                self.turn.reply = frame.text
            case RunReport(event=UsageReported() as event):
                self.turn.usage = event.usage
            case _:
                pass

    def finished(self, frame: RunReport) -> None:
        if not isinstance(frame.event, Finished):
            return
        self.turn.frame, self.turn.finished = frame, frame.event
        self.turn.usage = frame.event.usage or self.turn.usage
        self.turn.ended_at = self._wall()
        self._came.set()
        self._tell(_told(self.turn, frame.event))
        if self.turn.deliver is None:  # it was stopped before an agent could have it
            self.over()

    def over(self) -> None:
        """The run is over, its process gone, its end on the way to the backend."""
        self._over.set()

    # --- the job's log ---

    def _introduce(self, line: str | None) -> None:
        """What came before the person was told who runs here is told after it."""
        self._introduced = True
        if line:
            self._tell(line)
        for held in self._held_back:
            self._say(held)

    def _tell(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S', time.localtime(self._wall()))} {text}"
        if self._introduced:
            self._say(line)
        else:
            self._held_back.append(line)


@dataclass(frozen=True)
class _Runs:
    watcher: OneMessage
    inner: Runs

    async def run(
        self, deliver: Deliver, *, attempt: int, stop: StopSignal, aboard: Sequence[Deliver] = ()
    ) -> Finished | Parked:
        deliver = self.watcher.delivered(deliver)
        try:
            return await self.inner.run(deliver, attempt=attempt, stop=stop, aboard=aboard)
        finally:
            self.watcher.over()

    async def steer(self, into: DeliveryId, deliver: Deliver, *, attempt: int) -> Ride | None:
        return None


@dataclass(frozen=True)
class _Uplink:
    watcher: OneMessage
    inner: Uplink = field(repr=False)

    @property
    def full(self) -> bool:
        return self.inner.full

    async def report(self, frame: Said) -> None:
        await self.inner.report(frame)
        self.watcher.said(frame)

    async def finish(self, frame: RunReport) -> None:
        await self.inner.finish(frame)
        self.watcher.finished(frame)

    async def launched(self, launch: Launch) -> None:
        await self.inner.launched(launch)

    async def waits(self, launch_id: str, pid: int, started_at: float) -> None:
        await self.inner.waits(launch_id, pid, started_at)

    async def gone(self, launch_id: str) -> None:
        await self.inner.gone(launch_id)

    async def stays_aboard(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        await self.inner.stays_aboard(delivery_id, into)

    def delta(self, frame: Delta) -> None:
        self.inner.delta(frame)

    async def list_messages(self, query: ListMessages) -> list[dict[str, Any]]:
        return await self.inner.list_messages(query)

    async def list_agents(self, query: ListAgents) -> list[AgentEntry]:
        return await self.inner.list_agents(query)

    async def find_agent(self, query: FindAgent) -> FoundAgent:
        return await self.inner.find_agent(query)


def _told(turn: Turn, event: Finished) -> str:
    """`completed in 2 min 38 s, 41 k tokens in, 3 k out`, or why not."""
    lasted = f" {words((turn.ended_at or 0) - turn.began_at)}" if turn.began_at else ""
    spent = ""
    if turn.usage:
        coming, going = turn.usage.input_tokens, turn.usage.output_tokens
        spent = f", {short(coming)} tokens in, {short(going)} out"
    reason = ": ".join(filter(None, (event.reason and str(event.reason), event.detail)))
    match event.outcome:
        case Outcome.REPLIED | Outcome.AUTO_PUBLISHED:
            return f"completed in{lasted}{spent}"
        case Outcome.SILENT:
            return f"completed in{lasted}{spent}; the agent chose not to reply: {event.detail}"
        case Outcome.CANCELLED:
            return f"stopped after{lasted}{spent}: {reason}" if lasted else f"stopped: {reason}"
        case Outcome.FAILED | Outcome.DEAD:
            return f"failed after{lasted}{spent}: {reason}" if lasted else f"failed: {reason}"


def words(seconds: float) -> str:
    """`8 s`, `2 min`, `2 min 38 s`, `1 h 5 min`."""
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s"))
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown) or "0 s"


def short(tokens: int) -> str:
    """`512`, `3 k`, `1.2 M`."""
    if tokens < 1_000:
        return str(tokens)
    return f"{tokens / 1_000:.0f} k" if tokens < 1_000_000 else f"{tokens / 1_000_000:.1f} M"
