"""Takes a file in, as it comes: never whole in memory, never longer than agreed, kept or not there."""

import errno
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, TypeAlias

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect

from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.config import Settings
from cloudagent_backend.store import attachments, clock
from cloudagent_backend.store.attachments import AttachmentRow, Brought
from cloudagent_backend.store.blobs import Blobs, Content, Draft
from cloudagent_backend.store.database import Database
from cloudagent_protocol.attachments import size_text
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import UserId

logger = logging.getLogger(__name__)

#: Bytes that are put on the disk at once.
_PIECE_BYTES: Final = 262_144
_DRAIN_BYTES: Final = 16_777_216
_DRAIN_S: Final = 2.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Wraps the keeping of a file that has this content: the caller's idempotency.
Once: TypeAlias = Callable[
    [Content, Callable[[sqlite3.Connection], AttachmentRow]],
    Callable[[sqlite3.Connection], AttachmentRow],
]


def _as_it_is(
    _: Content, work: Callable[[sqlite3.Connection], AttachmentRow]
) -> Callable[[sqlite3.Connection], AttachmentRow]:
    return work


class Intake:
    """Where files come in, of people and of machines."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._under_way: Counter[UserId] = Counter()
        self.blobs = blobs

    async def take(
        self, pieces: AsyncGenerator[bytes], brought: Brought, once: Once = _as_it_is
    ) -> AttachmentRow:
        """The file, durable, once all of its bytes have come.

        Raises:
            ApiError: it is empty, too large or too slow, or its owner or the disk has no more room.
        """
        user_id = brought.user_id
        await self._check_room(user_id, 0)
        self._under_way[user_id] += 1
        try:
            content = await self._written(pieces, user_id)
        finally:
            self._under_way[user_id] -= 1
            self._under_way += Counter()  # forgets who has none any more
        row = await self._database.write(once(content, lambda c: self.insert(c, brought, content)))
        if row.sha256 != content.sha256 or row.user_id != user_id:
            raise ApiError(ErrorCode.CONFLICT, "Another file has this id.", next="Use a new id.")
        return row

    def insert(self, c: sqlite3.Connection, brought: Brought, content: Content) -> AttachmentRow:
        if not self.blobs.is_here(content):  # the same was removed a moment ago
            raise ApiError(
                ErrorCode.UNAVAILABLE,
                "The same file was being removed while this one came; it was not kept.",
                next="Send it again.",
            )
        return attachments.insert(c, brought, content)

    async def forget(self, sha256: str) -> None:
        """Remove content from the disk, unless another file has the same."""

        def work(c: sqlite3.Connection) -> None:
            if attachments.unnamed(c, [sha256]):
                self.blobs.forget(sha256)

        await self._database.write(work)

    async def tidy(self) -> None:
        """Forget what was never sent, and remove content that nothing names any more."""
        before_us = clock.now_us() - self._settings.unsent_s * 1_000_000
        gone = await self._database.write(lambda c: attachments.forget_unsent(c, before_us))
        if gone:
            logger.info("removed %d files that were not sent", gone, extra={"action": "tidy"})
        digests = await run_sync(self.blobs.digests)
        unnamed = await self._database.read(lambda c: attachments.unnamed(c, digests))
        await run_sync(self.blobs.remove, unnamed)
        await run_sync(self.blobs.clear_drafts)

    async def _check_room(self, user_id: UserId, more: int) -> None:
        if self._under_way[user_id] >= self._settings.uploads_at_once and not more:
            raise ApiError(
                ErrorCode.RATE_LIMITED,
                f"{self._settings.uploads_at_once} files are being uploaded already.",
                next="Wait until one of them is there.",
                headers={"Retry-After": "5"},
            )
        most = self._settings.attachments_of_user_bytes
        taken = await self._database.read(lambda c: attachments.bytes_of_user(c, user_id))
        if taken + max(more, 1) > most:
            raise ApiError(
                ErrorCode.STORAGE_FULL,
                f"Your files take {size_text(taken)}, and {size_text(most)} are allowed.",
                next="Remove files that you have sent and no longer need, or ask who runs this server for more"
                " (CLOUDAGENT_BACKEND_ATTACHMENTS_OF_USER_MB).",
            )

    async def _written(self, pieces: AsyncGenerator[bytes], user_id: UserId) -> Content:
        draft: Draft | None = None
        try:
            draft = await run_sync(self.blobs.draft)
            async with aclosing(pieces):
                await self._fill(draft, pieces)
            await self._check_room(user_id, draft.size_bytes)
            content = await run_sync(draft.keep)
        except BaseException as error:
            if draft:
                with anyio.CancelScope(shield=True):
                    await run_sync(draft.drop)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _no_room() from error
            raise
        return content

    async def _fill(self, draft: Draft, pieces: AsyncGenerator[bytes]) -> None:
        silence_s, most_s = self._settings.upload_silence_s, self._settings.upload_deadline_s
        waiting = bytearray()
        ends_at = anyio.current_time() + most_s
        try:
            while True:
                with anyio.fail_at(min(ends_at, anyio.current_time() + silence_s)):
                    piece = await anext(pieces, None)
                waiting += piece or b""
                if draft.size_bytes + len(waiting) > self._settings.attachment_bytes:
                    await _drain(pieces)
                    raise self._too_large()
                if waiting and (piece is None or len(waiting) >= _PIECE_BYTES):
                    await run_sync(draft.write, bytes(waiting))
                    waiting.clear()
                if piece is None:
                    break
        except TimeoutError as error:
            raise ApiError(
                ErrorCode.BAD_REQUEST,
                f"The file did not arrive: nothing came for {silence_s:g} s, or it took more than"
                f" {most_s:g} s.",
                next="Send it again, over a better connection.",
                headers={"Connection": "close"},
            ) from error
        except ClientDisconnect as error:
            raise ApiError(ErrorCode.BAD_REQUEST, "The upload was cut off.") from error
        if not draft.size_bytes:
            raise ApiError(ErrorCode.INVALID, "The file is empty.", next="Send another one.")

    def _too_large(self) -> ApiError:
        return ApiError(
            ErrorCode.TOO_LARGE,
            f"The file is larger than {size_text(self._settings.attachment_bytes)}.",
            next="Send a smaller one, or put it where the agent can fetch it.",
            headers={"Connection": "close"},
        )


async def _drain(pieces: AsyncGenerator[bytes]) -> None:
    """Read on for a moment: who is still sending when we close would never see our answer."""
    dropped = 0
    with anyio.move_on_after(_DRAIN_S):
        async for piece in pieces:
            dropped += len(piece)
            if dropped > _DRAIN_BYTES:
                break


def _no_room() -> ApiError:
    return ApiError(
        ErrorCode.UNAVAILABLE,
        "The backend's disk is full; nothing of the file was kept.",
        next="Make room there, then send it again.",
    )
