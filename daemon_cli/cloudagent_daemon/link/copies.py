"""Copies of files that agents send, as they were at that moment; they stay until the backend has them.

Each is named by its attachment's id and lies in a folder that agents do not see. All functions block.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from cloudagent_protocol.attachments import (
    MAX_ATTACHMENT_BYTES,
    SNIFFED_BYTES,
    media_type_of,
    size_text,
)
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.ids import AttachmentId, new_attachment_id

#: What may wait for the backend, over all agents.
MOST_BYTES: Final = 1_000_000_000
#: A copy that nothing names any more: its message may still be told anew by a later life.
_LEFT_S: Final = 7 * 86_400
_PIECE_BYTES: Final = 1_048_576


class NotCopiedError(Exception):
    """The file cannot be sent; `str()` says why."""


@dataclass(frozen=True)
class Copies:
    """The folder of the copies; it is made with the first one."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def path(self, attachment_id: AttachmentId) -> Path:
        return self.folder / attachment_id

    def keep(self, file: IO[bytes], name: str) -> Attachment:
        """A copy of what the file holds now, on the disk.

        Raises:
            NotCopiedError: it is empty or too large, or too much waits already.
            OSError: it cannot be read, or the disk takes no copy.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._bytes() >= self.most_bytes:
            raise NotCopiedError(
                f"{size_text(self.most_bytes)} of files wait for the backend already"
            )
        attachment_id = new_attachment_id()
        try:
            head, size, digest = self._copy(file, self.path(attachment_id))
        except BaseException:
            self.drop([attachment_id])
            raise
        return Attachment(
            id=attachment_id,
            name=name,
            media_type=media_type_of(head),
            size_bytes=size,
            sha256=digest,
        )

    def drop(self, ids: Iterable[AttachmentId]) -> None:
        for one in ids:
            self.path(one).unlink(missing_ok=True)

    def sweep(self, known: set[AttachmentId]) -> None:
        """Removes what is not needed any more, and was not made lately."""
        before = time.time() - _LEFT_S
        for path in self._all():
            if path.name not in known and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.glob("att_*") if path.is_file()]

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self._all())

    def _copy(self, file: IO[bytes], place: Path) -> tuple[bytes, int, str]:
        head, size, digest = b"", 0, hashlib.sha256()
        with open(place, "xb", opener=_private) as copy:
            while piece := file.read(_PIECE_BYTES):
                size += len(piece)
                if size > MAX_ATTACHMENT_BYTES:
                    raise NotCopiedError(f"it is larger than {size_text(MAX_ATTACHMENT_BYTES)}")
                head = head or piece[:SNIFFED_BYTES]
                digest.update(piece)
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        if not size:
            raise NotCopiedError("it is empty")
        return head, size, digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
