"""What of ours a coding agent must not see: it runs as the same user, so no file mode keeps it out.

Hidden are the daemon's folder with the machine key, what `cloudagent up` keeps (its database and the
person's token), and the folders of other agents. The guardian does it (guardian.py, decisions/0009).
"""

import logging
import sys
import uuid
from pathlib import Path
from typing import Final, Literal, TypeAlias

import anyio
import anyio.to_thread

from cloudagent_daemon.config import Settings
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import SpawnError, spawn

logger = logging.getLogger(__name__)

#: `hidden`; `open`: this machine cannot; `off`: its owner does not want it; `nothing`: no file of
#: ours is on the disk.
Cover: TypeAlias = Literal["hidden", "open", "off", "nothing"]
_TRIAL_S: Final = 20.0
#: Exits with 0 if it finds the folder empty.
_LOOK: Final = "import os, sys; sys.exit(bool(os.listdir(sys.argv[1])))"


class UnmaskedError(Exception):
    """The settings demand a mask, and this machine cannot put one on; `str()` is for a person."""


class Masks:
    """Makes a mask for each child; tries once, with a real child, whether this machine can."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trying = anyio.Lock()
        self.cover: Cover | None = None
        #: Why the files are not hidden, for a person.
        self.detail = ""

    async def of_run(self, *kept: Path) -> Mask:
        """The mask for a run's process, which needs what is `kept`; empty where there is none.

        Raises:
            UnmaskedError: the settings demand one.
        """
        if await self.tried() == "hidden":
            return Mask(await anyio.to_thread.run_sync(self._hidden), kept)
        if self._settings.limits.mask == "require" and self.cover == "open":
            raise UnmaskedError(
                f"The daemon's key cannot be hidden from agents on this machine ({self.detail}), and "
                "its settings demand that. Allow unprivileged user namespaces, or set `mask` to auto."
            )
        return NO_MASK

    async def tried(self) -> Cover:
        """Whether files are hidden on this machine."""
        async with self._trying:
            if self.cover is None:
                self.cover = await self._try()
                said = logger.warning if self.cover == "open" else logger.info
                said("own files: %s %s", self.cover, self.detail, extra={"action": "mask"})
            return self.cover

    async def _try(self) -> Cover:
        if self._settings.state_dir is None:
            return "nothing"
        if self._settings.limits.mask == "off":
            self.detail = "switched off in config.json"
            return "off"
        if sys.platform != "linux":
            self.detail = f"{sys.platform} has no mount namespaces"
            return "open"
        self.detail = await _trial(self._settings.state_dir)
        return "open" if self.detail else "hidden"

    def _hidden(self) -> tuple[Path, ...]:
        home = self._settings.home
        assert home is not None, "there is a state_dir"
        ours = [home / "daemon", home / "server", home / "client.json"]
        return tuple(path for path in (*ours, *sorted(home.glob("agents*"))) if path.exists())


async def _trial(folder: Path) -> str:
    """Why a child would see into the folder; empty if it would not."""
    argv = [sys.executable, "-I", "-S", "-c", _LOOK, str(folder)]
    mask = Mask((folder,))
    try:
        with anyio.fail_after(_TRIAL_S):
            async with spawn(
                argv, env={}, cwd=Path("/"), launch_id=uuid.uuid4().hex, mask=mask
            ) as child:
                await child.feed(b"")
                return "" if await child.wait() == 0 else "the mask did not hold"
    except SpawnError as error:
        return str(error.__cause__ or error)
    except TimeoutError:
        return f"the mask was not there within {_TRIAL_S:g} s"
