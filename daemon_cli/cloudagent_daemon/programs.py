"""The agent programs of this machine: where they are looked for, when, and who is told of them."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from cloudagent_daemon.about import About
from cloudagent_daemon.drivers.models import Models
from cloudagent_daemon.drivers.table import detect
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.uplink import SpoolUplink
from cloudagent_daemon.service import login_path
from cloudagent_protocol.frames import HostReport

logger = logging.getLogger(__name__)

#: How often a program is looked for that a message waits for.
LOOK_S: Final = 30.0


class Programs:
    """Looks for them, and for the models that they offer.

    Args:
        environment: of children. Its PATH is replaced where the login shell is asked.
        about: keeps what was found.
        say: takes a line for the person at the terminal.
    """

    def __init__(
        self,
        environment: dict[str, str],
        masks: Masks,
        about: About,
        queue: RunQueue,
        uplink: SpoolUplink,
        say: Callable[[str], None],
    ) -> None:
        self._environment = environment
        self._masks = masks
        self._about = about
        self._queue = queue
        self._uplink = uplink
        self._say = say
        self._models, self._models_wanted = Models(), anyio.Event()

    async def ask_login_shell(self) -> None:
        """A service manager's PATH does not know where people install coding agents."""
        shell = login_path.shell_of(self._environment)
        try:
            mask = await self._masks.of_run()
            found = await login_path.ask(shell, self._environment, mask=mask)
        except UnmaskedError as error:
            found = login_path.LoginPath(shell, problem=str(error))
        if found.problem:
            logger.warning("PATH as installed: %s", found.problem, extra={"action": "path"})
        installed = self._environment.get("PATH", "").split(os.pathsep)
        self._environment["PATH"] = login_path.joined(found.entries, installed)

    async def look(self) -> None:
        try:
            mask = await self._masks.of_run()
        except (UnmaskedError, OSError) as error:
            self._say(f"✗ {error}")
        else:
            found = await detect(self._environment, mask)
            self._about.runtimes = self._models.added(found)
            self._queue.found(self._about.runtimes)

    async def tell(self) -> None:
        """Has the backend learn what was found."""
        await self._uplink.report(HostReport(runtimes=self._about.runtimes))

    async def heed_missing(self) -> None:
        """While a message waits for a program that is not there, it is looked for, now and again."""
        while True:
            changed = self._queue.changed
            waits = any(map(self._queue.order.queued, self._queue.missing.all()))
            if waits:
                before = self._about.runtimes
                await self.look()
                if self._about.runtimes != before:
                    await self.tell()
                await anyio.sleep(LOOK_S)  # no event tells of a program that somebody installs
            else:
                await changed.wait()

    def want_models(self) -> None:
        """Has the programs asked what they offer, by `heed_models`."""
        self._models_wanted.set()

    async def heed_models(self) -> None:
        """Told after the programs themselves, which take seconds to say what they offer."""
        while True:
            await self._models_wanted.wait()
            self._models_wanted = anyio.Event()
            with suppress(UnmaskedError, OSError):  # was said when the programs were looked for
                mask, before = await self._masks.of_run(), self._about.runtimes
                await self._models.ask(before, self._environment, mask)
                self._about.runtimes = self._models.added(self._about.runtimes)
                if self._about.runtimes != before:
                    await self.tell()
