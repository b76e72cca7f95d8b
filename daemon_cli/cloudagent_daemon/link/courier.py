"""Brings the files that agents send to the backend, one after the other, while there is a link.

A message that names a file is held by the spool until the file is settled here (`lanes.py`).
"""

import logging
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import crash
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.copies import Copies
from cloudagent_daemon.link.files import FileRefusedError, Files
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_protocol.attachments import size_text
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.ids import AgentId, AttachmentId

logger = logging.getLogger(__name__)

#: After an attempt that failed, at least and at most.
PAUSE_S: Final = (1.0, 30.0)


class Courier:
    """What brings the files; `run` never returns."""

    def __init__(
        self,
        spool: Spool,
        files: Files,
        copies: Copies,
        client: LinkClient,
        keeper: Keeper,
        *,
        pause_s: tuple[float, float] = PAUSE_S,
    ) -> None:
        self._spool = spool
        self._files = files
        self._copies = copies
        self._client = client
        self._keeper = keeper
        self._least_s, self._most_s = pause_s
        #: Files with a copy here, and how far the backend had acknowledged when they were looked at.
        self._kept: set[AttachmentId] = set()
        self._acked = 0

    async def run(self) -> None:
        self._kept = await self._spool.files()
        await run_sync(self._copies.sweep, self._kept)
        pause_s = self._least_s
        while True:
            await self._work_to_do()
            failed = await self._round()
            pause_s = min(self._most_s, pause_s * 2) if failed else self._least_s
            if failed:
                await self._pause(pause_s)

    async def _work_to_do(self) -> None:
        """Until there is a file to bring, and a link: without one it would be in vain."""
        while True:
            committed, changed = self._spool.committed, self._client.changed
            await self._clear()
            if self._spool.marks.to_bring and self._client.connection is not None:
                return
            await (changed if self._spool.marks.to_bring else committed).wait()

    async def _clear(self) -> None:
        """Removes the copies of what the backend has for good: with the message."""
        if self._kept and self._acked != self._spool.marks.acked:
            self._acked = self._spool.marks.acked
            known = await self._spool.files()
            await run_sync(self._copies.drop, self._kept - known)
            self._kept &= known

    async def _round(self) -> bool:
        """Brings what there is; returns whether any of it has to be tried again."""
        failed = False
        for agent_id, file in await self._spool.to_bring():
            self._kept.add(file.id)
            failed = not await self._bring(agent_id, file) or failed
        return failed

    async def _bring(self, agent_id: AgentId, file: Attachment) -> bool:
        about = {"action": "bring", "id": file.id, "agent_id": agent_id}
        try:
            if await run_sync(self._copies.path(file.id).exists):
                await self._files.bring(file, agent_id, self._copies.path(file.id))
                crash.point("after_bring")
                said = "brought %s (%s) to the backend"
                logger.info(said, file.name, size_text(file.size_bytes), extra=about)
            else:  # brought in an earlier life, or gone: the backend knows, and its message tells
                logger.warning("no copy of %s is here any more", file.name, extra=about)
        except FileRefusedError as error:
            logger.warning("%s is not sent: %s", file.name, error, extra=about)
        except UnreachableError as error:
            logger.warning("%s", error, extra=about)
            return False
        await self._keeper.kept(lambda: self._spool.brought(file.id))
        return True

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the link has come anew."""
        changed = self._client.changed
        with anyio.move_on_after(seconds):
            await changed.wait()
