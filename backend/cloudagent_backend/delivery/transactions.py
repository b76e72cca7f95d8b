"""Transactions of delivery: the work, then hints and wake-ups after its commit."""

import sqlite3
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias, TypeVar

from cloudagent_backend import crash
from cloudagent_backend.delivery import (
    lending,
    sending,
)
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.hints import Hints
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.delivery.straight import Way
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.ids import (
    HostId,
    UserId,
)

T = TypeVar("T")
#: Wraps the work of one transaction.
Work: TypeAlias = Callable[[sqlite3.Connection], T]
Once: TypeAlias = Callable[[Work[T]], Work[T]]
_DEFAULT: Final = Limits()


def as_it_is(work: Work[T]) -> Work[T]:
    return work


class Transactions:
    """What all verbs of delivery have at hand.

    Args:
        window: deliveries that may be unfinished on a machine at once.
        backlog_cap: unfinished deliveries per host, above which new ones are refused.
        limits: what agents may do by themselves before a person is asked.
    """

    def __init__(
        self,
        database: Database,
        hub: Hub,
        fanout: Fanout,
        *,
        window: int,
        backlog_cap: int,
        limits: Limits = _DEFAULT,
    ) -> None:
        self._database = database
        self._hub = hub
        self._fanout = fanout
        self._backlog_cap = backlog_cap
        self._window = window
        self._limits = limits
        self._relay = Relay(limits, backlog_cap)
        self._way = Way(self._is_open, min(window, backlog_cap), limits.hops)
        #: Hosts that have left, until that is in the store.
        self._left: dict[HostId, Machine] = {}
        #: Hosts that were removed, until what was queued for them is given up.
        self._removed: dict[HostId, None] = {}
        #: Rung when a host has work; the dispatcher listens.
        self.hints: Hints[HostId] = Hints()

    def _with_helpers(self, host_ids: Iterable[HostId]) -> list[HostId]:
        """These hosts, each after the ephemeral ones that help it: a job waits for its work."""
        return [one for host_id in host_ids for one in (*self._hub.helpers(host_id), host_id)]

    def _is_open(self, host_id: HostId) -> bool:
        """Whether a message may leave for the machine at once; ephemeral ones choose before it."""
        return self._hub.ready(host_id) is not None and not self._hub.helpers(host_id)

    def _lease(self, c: sqlite3.Connection, host: ReadyHost) -> list[DeliveryRow]:
        if self._hub.helps(host.id):
            lending.take(c, host.id)
        return sending.lease(c, host, self._window, self._limits)

    def _lease_ready(self, c: sqlite3.Connection, host_ids: Iterable[HostId]) -> None:
        """For machines that are here, so that they need not wait for the dispatcher."""
        for host_id in self._with_helpers(host_ids):
            if ready := self._hub.ready(host_id):
                self._lease(c, ready)

    async def _write(self, work: Work[T], *steps: crash.Step, repeatable: bool = False) -> T:
        """One transaction; a test may kill the process before its commit, or right after."""

        def uncommitted(c: sqlite3.Connection) -> T:
            done = work(c)
            for step in steps:
                crash.point(step, "uncommitted")
            return done

        done = await self._database.write(uncommitted, repeatable=repeatable)
        for step in steps:
            crash.point(step, "committed")
        return done

    def _changed(self, user_id: UserId, host_ids: set[HostId]) -> None:
        self._fanout.notify(user_id)
        for host_id in host_ids:
            self._hub.hint(host_id)
            self.hints.hint(host_id)
