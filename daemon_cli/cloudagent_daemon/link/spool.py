"""The daemon's memory, on its disk.

An inbox that is durable before it is acknowledged, an outbox that is kept until it is
acknowledged, and the processes that were started. The rows are the truth about every delivery on this machine; the link holds only watermarks.
"""

import logging
import sqlite3
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon.aside import set_aside
from cloudagent_daemon.link import asked, lanes, spool_file, tables
from cloudagent_daemon.link.asked import Asked
from cloudagent_daemon.link.committer import Committer, committing
from cloudagent_daemon.link.tables import Change, Leftover, Waiting, Watermarks
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.errors import CloseCode, ProtocolError
from cloudagent_protocol.events import ApprovalRequested, Finished, Question
from cloudagent_protocol.frames import (
    MAX_FRAME_BYTES,
    DeliveryReport,
    HostReport,
    Numbered,
    RunDiff,
    RunReport,
    Send,
)
from cloudagent_protocol.ids import (
    AgentId,
    ApprovalId,
    AttachmentId,
    ConversationId,
    DeliveryId,
)
from cloudagent_protocol.link import resume

#: Frames of a batch whose changes are read in the transaction that keeps them.
_FEW: Final = 4
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    """All changes after a number."""

    after: int
    #: The committer's, as long as nothing else is written.
    version: int
    changes: list[Change]


class Spool:
    """One profile's memory; made by `open_spool`, shared by the tasks of one event loop.

    A method that changes something returns when the change is on the disk.
    """

    def __init__(self, committer: Committer[Watermarks], note: str | None = None) -> None:
        self._committer = committer
        #: What was wrong with the file at the start, for the log and `status`; or None.
        self.note = note
        #: What came last, as long as nobody has looked.
        self._news: _News | None = None

    @property
    def marks(self) -> Watermarks:
        """Where the two directions stand, on the disk."""
        return self._committer.observed

    @property
    def committed(self) -> anyio.Event:
        """Set after the next change."""
        return self._committer.committed

    # --- inbox ---

    async def receive(
        self, frames: Sequence[Numbered], accepted: int, texts: Sequence[str] = ()
    ) -> None:
        """Keeps a batch of backend frames, of which `accepted` is the last number.

        `texts` is each frame as it came; without it they are written anew.
        """
        news = await self._committer.do(lambda c: _received(c, frames, accepted, texts))
        self._news = news

    async def changes_after(self, number: int) -> list[Change]:
        """What the backend wanted since change `number`: the queue follows the inbox by this.

        After 0 these are all deliveries without an outcome, so that a start is no special case.
        """
        news, self._news = self._news, None
        if news and (news.after, news.version) == (number, self._committer.version):
            return news.changes  # nothing was written since: the disk need not be asked
        return await self._committer.do(lambda c: tables.changes_after(c, number))

    async def changed_beyond(self, number: int) -> None:
        """Returns when there is a change above `number`."""
        while self.marks.changes <= number:
            await self._committer.committed.wait()

    async def held(self) -> list[DeliveryId]:
        """What is not over for the backend: unfinished here, or its ending is not acked yet."""
        return await self._committer.do(tables.held)

    async def drop(self, deliveries: Iterable[DeliveryId]) -> None:
        """Forgets unfinished deliveries that are over at the backend."""
        await self._committer.do(lambda c: tables.drop(c, deliveries))

    async def waiting(self, delivery_id: DeliveryId) -> Waiting | None:
        """A delivery as it is now; None if it is over."""
        return await self._committer.do(lambda c: tables.waiting(c, delivery_id))

    async def ride(self, delivery_id: DeliveryId, into: DeliveryId) -> None:
        """A delivery is part of that one's turn, which has left because it waits for people."""
        await self._committer.do(lambda c: tables.ride(c, delivery_id, into))

    # --- what people are asked ---

    async def asked(self, delivery_id: DeliveryId) -> list[Asked]:
        """What the work on a delivery has asked people and not acted on, the oldest first."""
        return await self._committer.do(lambda c: asked.of(c, delivery_id))

    async def acted_on(self, delivery_id: DeliveryId) -> list[Asked]:
        """What it has asked them before, each with the decision that was acted on."""
        return await self._committer.do(lambda c: asked.acted_on(c, delivery_id))

    async def acted(self, approval_id: ApprovalId) -> None:
        """A decision is acted on now, or the request is not asked any more."""
        await self._committer.do(lambda c: asked.over(c, approval_id))

    async def rules(self, agent_id: AgentId, conversation_id: ConversationId) -> list[str]:
        """What people allowed an agent for longer, as far as it counts in this conversation."""
        return await self._committer.do(lambda c: asked.rules(c, agent_id, conversation_id))

    async def add_rule(
        self, rule_id: str, agent_id: AgentId, conversation_id: ConversationId | None, body: str
    ) -> None:
        """From now on a rule counts; in one conversation, or in all."""
        await self._committer.do(
            lambda c: asked.add_rule(c, rule_id, agent_id, conversation_id, body)
        )

    # --- outbox ---

    async def append(self, frame: RunReport | Send | DeliveryReport | HostReport | RunDiff) -> None:
        """Keeps a frame for the backend until it is acked; a message is held until its files are there.

        Raises:
            ProtocolError: it is too large for the wire.
        """
        body = _body(frame)
        if isinstance(frame, Send):
            await self._committer.do(lambda c: tables.say(c, frame, body))
        elif isinstance(frame, RunReport) and isinstance(frame.event, ApprovalRequested | Question):
            await self._committer.do(lambda c: tables.ask(c, frame, body))
        else:
            await self._committer.do(lambda c: tables.append(c, frame, body))

    async def finish(self, frame: RunReport) -> None:
        """As `append`, for a run's `Finished`: its deliveries end in the same transaction."""
        if not isinstance(frame.event, Finished):
            raise TypeError(f"a run ends with finished, not with {frame.event.type}")
        body = _body(frame)
        await self._committer.do(lambda c: tables.finish(c, frame, body))

    async def frames_after(self, seq: int, limit: int) -> list[tuple[int, str]]:
        """Up to `limit` frames above `seq`: number, and JSON text ready to be sent."""
        rows = await self._committer.do(lambda c: tables.frames_after(c, seq, limit))
        return [(number, f'{{"seq":{number},{body[1:]}') for number, body in rows]

    async def acked(self, seq: int) -> None:
        """The backend has everything up to `seq`."""
        await self._committer.do(lambda c: tables.acked(c, seq))

    async def grown_beyond(self, seq: int) -> None:
        """Returns when the outbox has a frame above `seq`."""
        while self.marks.last <= seq:
            await self._committer.committed.wait()

    async def acked_beyond(self, seq: int) -> None:
        """Returns when the backend has a frame above `seq`."""
        while self.marks.acked <= seq:
            await self._committer.committed.wait()

    # --- files that agents send ---

    async def to_bring(self) -> list[tuple[AgentId, Attachment]]:
        """Files that the backend has not got, each with its agent, the oldest first."""
        return await self._committer.do(lanes.to_bring)

    async def brought(self, attachment_id: AttachmentId) -> None:
        """The backend has the file, or will not have it: messages that waited only for it go out."""
        await self._committer.do(lambda c: lanes.settle(c, attachment_id))

    async def files(self) -> set[AttachmentId]:
        """Files whose copies may still be needed."""
        return await self._committer.do(lanes.known)

    # --- launches ---

    async def record_launch(
        self, delivery_id: DeliveryId, process: Leftover, attempt: int, *, stays: bool = False
    ) -> None:
        """Remembers a process, so that the next life of the daemon can end it.

        It is forgotten with the delivery's end, or by `forget_launches` if it `stays` beyond that.
        """
        await self._committer.do(
            lambda c: tables.record_launch(c, delivery_id, process, attempt, stays=stays)
        )

    async def leftovers(self) -> list[Leftover]:
        """Processes of runs that did not finish."""
        return await self._committer.do(tables.leftovers)

    async def forget_launches(self, launch_ids: Iterable[str]) -> None:
        """These are known to be gone."""
        await self._committer.do(lambda c: tables.forget_launches(c, launch_ids))

    # --- the link ---

    async def reset_epoch(self, epoch: str | None) -> None:
        """Begins a new history: nothing received, the outbox numbered from 1, in its order.

        None forgets which history it is, so that the backend must name a new one.
        """
        await self._committer.do(lambda c: tables.reset_epoch(c, epoch))

    async def resume(self, peer_has: int) -> None:
        """The backend says which of our frames it has.

        Raises:
            ProtocolError: the histories differ; a new epoch is needed.
        """
        marks = self.marks
        acked = resume(outbox_acked=marks.acked, outbox_last=marks.last, peer_has=peer_has)
        if acked > marks.acked:  # else nothing to write: a full disk keeps nobody from connecting
            await self.acked(acked)


@asynccontextmanager
async def open_spool(
    path: Path | None, old_state: Path | None = None, host_id: str | None = None
) -> AsyncGenerator[Spool]:
    """The host's spool in `path`, or in memory; takes over what `old_state` (state.json) knows.

    Raises:
        NewerSpoolError: a newer daemon wrote the file.
        SpoolError: it cannot be opened.
    """
    connection, note = await run_sync(_prepare, path, old_state, host_id)
    if note:
        logger.error("%s", note, extra={"action": "spool_set_aside"})
    async with committing(connection, tables.marks) as committer:
        await committer.do(tables.prune)
        yield Spool(committer, note)


def _prepare(
    path: Path | None, old_state: Path | None, host_id: str | None
) -> tuple[sqlite3.Connection, str | None]:
    connection, note = spool_file.connect(path, host_id)
    if old_state is not None and old_state.exists():
        try:
            spool_file.import_old_state(connection, old_state)
        except (ValueError, AttributeError, RecursionError) as error:
            said = f"{old_state.name} of an earlier daemon could not be read ({error})"
            note = f"{said}; set aside as {set_aside(old_state).name}"
        except OSError as error:
            note = f"{old_state.name} of an earlier daemon could not be read: {error}"
    return connection, note


def _received(
    c: sqlite3.Connection, frames: Sequence[Numbered], accepted: int, texts: Sequence[str]
) -> _News | None:
    """Keeps them; of few ones, what they have changed, which is about to be asked for."""
    if len(frames) > _FEW:
        tables.receive(c, frames, accepted, texts)
        return None
    before = tables.marks(c).changes
    tables.receive(c, frames, accepted, texts)
    return _News(before, c.total_changes, tables.changes_after(c, before))


def _body(frame: Numbered) -> str:
    """The frame as JSON without its number, which is given when it is kept, and may change."""
    body = frame.model_dump_json(exclude_none=True, exclude={"seq"})
    # 32 bytes: room for the number that is put in front.
    if len(body.encode()) + 32 > MAX_FRAME_BYTES:
        raise ProtocolError("frame too large", CloseCode.TOO_LARGE)
    return body
