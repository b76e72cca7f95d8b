"""What holds this daemon's work back, heeded as it changes: its standing, its machine, its installation."""

import logging
from typing import Final

from cloudagent_daemon.about import About
from cloudagent_daemon.ending import Ending
from cloudagent_daemon.guards import Guards
from cloudagent_daemon.installation import Installation
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.warm import Warm

logger = logging.getLogger(__name__)

#: What runs may still take when another version is installed: nobody waits for it, and a run that is
#: cut off must be resumed.
UPGRADE_S: Final = 300.0


class Holds:
    """Each of its loops heeds one thing, until cancelled.

    Args:
        one_shot: whether there is no next life.
    """

    def __init__(
        self,
        client: LinkClient,
        queue: RunQueue,
        warm: Warm,
        guards: Guards,
        installation: Installation,
        about: About,
        *,
        one_shot: bool,
    ) -> None:
        self._client = client
        self._queue = queue
        self._warm = warm
        self._guards = guards
        self._installation = installation
        self._about = about
        self._one_shot = one_shot

    async def fence(self) -> None:
        """Starts nothing while another daemon has the host, or the key is no good.

        Once the host is removed, nothing goes on either; what it has to tell stays on the disk.
        """
        client, queue = self._client, self._queue
        while True:
            changed = client.changed
            queue.hold("superseded", held=client.superseded)
            queue.hold("unauthorized", held=client.standing.state == "unauthorized")
            queue.hold("revoked", held=client.revoked)
            barred = client.superseded or client.revoked
            # Those that work now, too: their turns end later than this.
            self._warm.bar("this daemon has no more to do with its host" if barred else None)
            if client.revoked:
                queue.stop_all("the backend, where this machine's key was revoked")
            await changed.wait()

    async def heed_guards(self) -> None:
        """While the machine lacks something, nothing is started on it."""
        while True:
            changed, refusing = self._guards.changed, self._guards.refusing
            self._queue.hold("guards", held=bool(refusing))
            self._client.beat()
            if any(guard.name == "memory" for guard in refusing):
                self._warm.clear("this machine is short of memory")
            for guard in refusing:
                logger.warning("%s", guard.detail, extra={"action": guard.state})
            await changed.wait()

    async def heed_installation(self, ending: Ending) -> None:
        """Another version leads to a restart; with none that works, nothing is started."""
        while True:
            installation = self._installation
            changed = installation.changed
            self._queue.hold("installation", held=bool(installation.holds))
            self._client.beat()
            if installation.state == "changed" and not self._one_shot:
                ending.restart(installation.detail, UPGRADE_S)
            await changed.wait()

    async def tell_pauses(self) -> None:
        """The backend is told at once of an agent that is left alone, and of the end of that."""
        said = self._about.pauses()
        while True:
            changed = self._queue.changed
            if said != (said := self._about.pauses()):
                self._client.beat()
            await changed.wait()
