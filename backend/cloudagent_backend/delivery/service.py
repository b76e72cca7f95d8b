"""The verbs of delivery, all of them, for the API: people's, owners' and machines'.

What happens inside the transactions: `queueing.py`, `sending.py`, `stopping.py` (down), `reports.py` (up), `handshake.py`.
"""

from cloudagent_backend.delivery.machines import MachinesVerbs
from cloudagent_backend.delivery.owners import OwnersVerbs
from cloudagent_backend.delivery.people import PeoplesVerbs
from cloudagent_backend.store import deliveries, hosts


class Service(PeoplesVerbs, OwnersVerbs, MachinesVerbs):
    """What people and machines can do with messages, deliveries and runs."""

    async def start(self) -> None:
        """Before serving: whoever was online when the last process ended is not any more."""
        await self._database.write(hosts.all_offline)
        self._removed = dict.fromkeys(await self._database.read(deliveries.of_removed_hosts))
