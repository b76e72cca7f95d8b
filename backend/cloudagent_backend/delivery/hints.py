"""Which hosts have work: a hint that may be lost, because the dispatcher also looks by itself."""

import anyio

from cloudagent_protocol.ids import HostId


class Hints:
    """A set of hosts with a bell; many hints for a host are one."""

    def __init__(self) -> None:
        self._hosts: set[HostId] = set()
        self._rung = anyio.Event()

    def hint(self, host_id: HostId) -> None:
        self._hosts.add(host_id)
        self._rung.set()

    async def take(self, timeout_s: float) -> set[HostId]:
        """The hosts that were hinted at, waiting for the first; none when none came in time."""
        with anyio.move_on_after(timeout_s):
            await self._rung.wait()
        self._rung = anyio.Event()
        hosts, self._hosts = self._hosts, set()
        return hosts
