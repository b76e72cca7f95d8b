"""The machine key in a config.json, which a login may replace while the daemon lives."""

import logging
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import config
from cloudagent_daemon.config import ConfigError

logger = logging.getLogger(__name__)

#: Of a file that is not there.
_NONE: Final = (0, 0, 0)


class KeyFile:
    """Gives the key for each connection; looks into the file only when that has changed.

    A key of another host, or for another server, is not used: this daemon's memory belongs to the
    host that it was started for.
    """

    def __init__(self, path: Path, server_url: str, host_id: str | None, machine_key: str) -> None:
        self._path = path
        self._server_url = server_url
        self._host_id = host_id
        self._key = machine_key
        self._seen: tuple[int, int, int] | None = None
        #: Why the file, as it is now, is not used; empty if it is.
        self.note = ""
        #: Set, and replaced, when `note` changes.
        self.changed = anyio.Event()

    async def current(self) -> str:
        await self.renewed()
        return self._key

    async def renewed(self) -> bool:
        """Looks whether there is another key; it is the current one from now on."""
        before = self.note
        renewed = await run_sync(self._look)
        if self.note != before:
            self.changed.set()
            self.changed = anyio.Event()
        return renewed

    def _look(self) -> bool:
        seen = self._mark()
        if seen == self._seen:
            return False
        self._seen = seen
        found, self.note = self._read()
        if self.note:
            logger.warning("%s", self.note, extra={"action": "key_not_taken"})
        if found is None or found == self._key:
            return False
        self._key = found
        logger.info("another machine key was found", extra={"action": "key_renewed"})
        return True

    def _read(self) -> tuple[str | None, str]:
        """The key in the file, or why there is none for us."""
        try:
            stored = config.read_file(self._path)
        except ConfigError as error:
            return None, str(error)
        if stored is None:
            return None, f"{self._path} is gone; the key of this daemon's start is used"
        if (stored.server_url, stored.host_id) != (self._server_url, self._host_id):
            where = f"{stored.host_id} at {stored.server_url}"
            return None, f"{self._path} is now for {where}: stop this daemon and start it again"
        return stored.machine_key, ""

    def _mark(self) -> tuple[int, int, int]:
        """What changes whenever the file is written or replaced."""
        try:
            info = self._path.stat()
        except OSError:
            return _NONE
        return info.st_ino, info.st_mtime_ns, info.st_size
