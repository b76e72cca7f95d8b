"""Bytes of attachments: files that are named after what they hold, in a folder beside the database.

    <database>.attachments/   drafts/   3f/a2… (SHA-256 of the content)

All functions block. A file that is there is whole, on the disk, and never changed; the same bytes lie
there once, whoever brought them. Rows in the database say who may read what.
"""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudagent_protocol.attachments import SNIFFED_BYTES, media_type_of

logger = logging.getLogger(__name__)

#: A file without a row that is younger may be one whose row is being written.
SETTLING_S: Final = 3_600.0


@dataclass(frozen=True)
class Content:
    """Bytes that are on the disk."""

    sha256: str
    size_bytes: int
    media_type: str


class Draft:
    """A file that is being written. Keep it or drop it."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder = folder
        self._path = path
        self._file = open(path, "xb", opener=_private)  # noqa: SIM115  closed by keep and drop
        self._hash = hashlib.sha256()
        self._head = b""
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Raises OSError: the disk is full."""
        self._file.write(data)
        self._hash.update(data)
        self._head = (self._head + data[:SNIFFED_BYTES])[:SNIFFED_BYTES]
        self.size_bytes += len(data)

    def keep(self) -> Content:
        """The content, durable and in its place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        digest = self._hash.hexdigest()
        place = place_of(self._folder, digest)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        # Over what may be there already: its time begins anew, so that no sweep takes it now.
        self._path.replace(place)
        for folder in (place.parent, self._folder):
            _sync(folder)
        return Content(digest, self.size_bytes, media_type_of(self._head))

    def drop(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class Blobs:
    """The folder. It is made with the first file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draft(self) -> Draft:
        drafts = self._folder / "drafts"
        drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Draft(self._folder, drafts / secrets.token_hex(8))

    def place_of(self, sha256: str) -> Path:
        return place_of(self._folder, sha256)

    def remove(self, digests: Iterable[str]) -> None:
        """Remove content that no row names, unless it was brought a moment ago."""
        for digest in digests:
            _remove_old(self.place_of(digest))

    def forget(self, sha256: str) -> None:
        """Remove content at once.

        Only in a write transaction that has seen that no row names it: a row is only ever written in
        another one, which looks whether its content `is_here`.
        """
        place = self.place_of(sha256)
        with suppress(FileNotFoundError):
            place.unlink()
            _sync(place.parent)

    def is_here(self, content: Content) -> bool:
        with suppress(FileNotFoundError):
            return self.place_of(content.sha256).stat().st_size == content.size_bytes
        return False

    def digests(self) -> list[str]:
        """All content that lies here."""
        found = self._folder.glob("[0-9a-f][0-9a-f]/*")
        return [f"{path.parent.name}{path.name}" for path in found]

    def clear_drafts(self) -> None:
        """Remove what an upload left that was cut off with the process."""
        for path in (self._folder / "drafts").glob("*"):
            _remove_old(path)


def files_beside(database: Path) -> Path:
    """The folder that goes with a database: of each its own, as its log of changes is."""
    return database.with_name(f"{database.name}.attachments")


def place_of(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / sha256[2:]


def _remove_old(path: Path) -> None:
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > SETTLING_S:
            path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
