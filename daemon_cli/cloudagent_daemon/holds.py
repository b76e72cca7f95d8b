"""What holds this daemon's work back, heeded as it changes: its standing, its machine, its installation.

Each heeds one thing, until cancelled.
"""

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


async def fence(client: LinkClient, queue: RunQueue, warm: Warm) -> None:
    """Starts nothing while another daemon has the host, or the key is no good.

    Once the host is removed, nothing goes on either; what it has to tell stays on the disk.
    """
    while True:
        changed = client.changed
        queue.hold("superseded", held=client.superseded)
        queue.hold("unauthorized", held=client.standing.state == "unauthorized")
        queue.hold("revoked", held=client.revoked)
        barred = client.superseded or client.revoked
        # Those that work now, too: their turns end later than this.
        warm.bar("this daemon has no more to do with its host" if barred else None)
        if client.revoked:
            queue.stop_all("the backend, where this machine's key was revoked")
        await changed.wait()


async def heed_guards(guards: Guards, queue: RunQueue, warm: Warm, client: LinkClient) -> None:
    """While the machine lacks something, nothing is started on it."""
    while True:
        changed, refusing = guards.changed, guards.refusing
        queue.hold("guards", held=bool(refusing))
        client.beat()
        if any(guard.name == "memory" for guard in refusing):
            warm.clear("this machine is short of memory")
        for guard in refusing:
            logger.warning("%s", guard.detail, extra={"action": guard.state})
        await changed.wait()


async def heed_installation(
    installation: Installation, queue: RunQueue, client: LinkClient, ending: Ending | None
) -> None:
    """Another version leads to a restart; with none that works, nothing is started.

    Without `ending` there is no next life, and nothing to restart.
    """
    while True:
        changed = installation.changed
        queue.hold("installation", held=bool(installation.holds))
        client.beat()
        if installation.state == "changed" and ending:
            ending.restart(installation.detail, UPGRADE_S)
        await changed.wait()


async def tell_pauses(about: About, queue: RunQueue, client: LinkClient) -> None:
    """The backend is told at once of an agent that is left alone, and of the end of that."""
    said = about.pauses()
    while True:
        changed = queue.changed
        if said != (said := about.pauses()):
            client.beat()
        await changed.wait()
