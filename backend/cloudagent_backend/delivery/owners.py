"""What becomes of deliveries when agents and machines change or go, and when a day begins.

Each is one transaction; see `transactions.py`.
"""

import sqlite3
from typing import Final

from cloudagent_backend.delivery import (
    budget_decisions,
    lending,
    removing,
    sending,
)
from cloudagent_backend.delivery.transactions import Transactions
from cloudagent_backend.store import hosts, usage
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.ids import (
    AgentId,
    HostId,
    UserId,
)

#: Deliveries of a removed host that one transaction ends.
_BURIED_AT_ONCE: Final = 500


class OwnersVerbs(Transactions):
    """For who changes, removes and looks after agents and host machines."""

    def agent_changed(self, c: sqlite3.Connection, agent: AgentRow) -> None:
        """For the transaction that changes an agent: a larger budget lets it go on."""
        self._lease_ready(c, budget_decisions.look_again(c, agent))

    async def begin_day(self) -> None:
        """What waited for a budget of yesterday goes on; a cheap look while nothing does."""
        if not await self._database.read(lambda c: usage.over_before(c, usage.today())):
            return
        hosts_of, users = await self._database.write(budget_decisions.new_day)
        for user_id in users:
            self._changed(user_id, hosts_of)

    async def agents_changed(self, host_id: HostId) -> None:
        """The host's agents were made, changed or removed: its daemon is told, and its helpers.

        One that is not here learns its agents by its next welcome; frames for it would pile up.
        """
        told = self._with_helpers([host_id])

        def work(c: sqlite3.Connection) -> None:
            # Asked in here: who comes meanwhile is greeted in a transaction after this one.
            for one in filter(self._hub.here, told):
                sending.change_agents(c, one)

        await self._database.write(work)
        for one in told:
            self._hub.hint(one)

    def agent_removed(self, c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> None:
        """For the transaction that removes an agent of the user's; `agents_changed` follows."""
        removing.remove_agent(c, agent_id)

    def host_removed(
        self, c: sqlite3.Connection, user_id: UserId, host_id: HostId
    ) -> list[HostRow]:
        """For the transaction that removes a host of the user's; `hub.disconnect` and `bury` follow.

        Returns the ephemeral hosts that went with it, for `ephemeral_removed`.
        """
        children = self.children_removed(c, host_id)
        removing.remove_host(c, host_id)
        return children

    async def bury(self, removed: HostId | None = None) -> None:
        """Give up what was queued for a removed host, and for those of before.

        A full backlog takes many transactions, so that nobody waits long for the writer. What is cut
        off by an error or a restart goes on at the dispatcher's next look.
        """
        if removed:
            self._removed[removed] = None
        for host_id in list(self._removed):
            while rows := await self._database.write(
                lambda c, host_id=host_id: removing.bury(c, host_id, _BURIED_AT_ONCE)
            ):
                for user_id in {row.user_id for row in rows}:
                    self._fanout.notify(user_id)
            self._removed.pop(host_id, None)

    def children_removed(self, c: sqlite3.Connection, host_id: HostId) -> list[HostRow]:
        """For a transaction: what was made with the host's key goes; `ephemeral_removed` follows."""
        children = hosts.children(c, host_id)
        for child in children:
            lending.remove_host(c, child)
        return children

    async def remove_ephemeral(self, host: HostRow) -> None:
        """The job is over: what it had not begun goes back to the agents' own host."""
        await self._database.write(lambda c: lending.remove_host(c, host))
        self.ephemeral_removed(host)

    async def reap(self, before_us: int) -> int:
        """Remove ephemeral hosts that have been away since then; returns how many."""

        def work(c: sqlite3.Connection) -> list[HostRow]:
            gone = hosts.away_since(c, before_us)
            for host in gone:
                lending.remove_host(c, host)
            return gone

        if not await self._database.read(lambda c: hosts.away_since(c, before_us)):
            return 0
        gone = await self._database.write(work)
        for host in gone:
            self.ephemeral_removed(host)
        return len(gone)

    def ephemeral_removed(self, host: HostRow) -> None:
        """After the commit that removed it."""
        self._hub.disconnect(host.id, CloseCode.REVOKED)
        self._hub.forget(host.id)
        if host.parent_id:  # what it had not begun waits there again
            self._changed(host.user_id, set(self._with_helpers([host.parent_id])))
