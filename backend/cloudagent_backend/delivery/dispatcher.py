"""Leases queued deliveries to connected hosts: by hint at once, by poll in any case."""

import logging
import sqlite3
import time
from datetime import timedelta
from typing import Final

import anyio

from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store import clock, deliveries, events
from cloudagent_backend.store.database import Database

logger = logging.getLogger(__name__)

#: Hosts served by one transaction, so that none is long.
_HOSTS_AT_ONCE: Final = 32
#: A log line is kept this long, if the cap of lines does not end it sooner.
_KEPT_US: Final = timedelta(days=7) // timedelta(microseconds=1)
_TRIM_EVERY_S: Final = 600.0


class Dispatcher:
    """The loop between the queue and the hub, and the keeper of the logs' length.

    Args:
        poll_s: how often it looks without a hint.
        events_kept: lines that a person's event log keeps.
    """

    def __init__(
        self, database: Database, service: Service, hub: Hub, *, poll_s: float, events_kept: int
    ) -> None:
        self._database = database
        self._service = service
        self._hub = hub
        self._poll_s = poll_s
        self._events_kept = events_kept

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._trim)
            looked_at = time.monotonic()
            while True:
                # Whether hints came or not: one that was lost must not wait for the others to end.
                left_s = looked_at + self._poll_s - time.monotonic()
                hinted = await self._service.hints.take(max(0.0, left_s))
                if time.monotonic() - looked_at >= self._poll_s:
                    looked_at = time.monotonic()
                    await self._note_left()
                    await self._bury()
                    await self._begin_day()
                    await self._serve(await self._behind())
                else:
                    found = [self._hub.ready(host_id) for host_id in hinted]
                    await self._serve([one for one in found if one])

    async def _behind(self) -> list[ReadyHost]:
        """Those that can take work and have some, however many more are here."""
        try:
            waiting = await self._database.read(deliveries.waiting_hosts)
        except sqlite3.Error:
            logger.exception("the queues were not read", extra={"action": "poll"})
            return []
        # An ephemeral one takes from another host's queue.
        return [
            one
            for one in self._hub.all_ready()
            if one.id in waiting or self._hub.helps(one.id) in waiting
        ]

    async def _note_left(self) -> None:
        try:
            await self._service.note_left()
        except sqlite3.Error:
            logger.exception("a host's leaving is not noted yet", extra={"action": "leave"})

    async def _bury(self) -> None:
        try:
            await self._service.bury()
        except sqlite3.Error:
            logger.exception("a removed host's queue is not ended yet", extra={"action": "bury"})

    async def _begin_day(self) -> None:
        try:
            await self._service.begin_day()
        except sqlite3.Error:
            logger.exception("budgets of yesterday still hold", extra={"action": "begin_day"})

    async def _serve(self, ready: list[ReadyHost]) -> None:
        for start in range(0, len(ready), _HOSTS_AT_ONCE):
            some = ready[start : start + _HOSTS_AT_ONCE]
            try:
                await self._service.lease(some)
            except sqlite3.Error:
                logger.exception("leasing failed; the poll tries again", extra={"action": "lease"})

    async def _trim(self) -> None:
        while True:
            try:
                await self._trim_all()
            except sqlite3.Error:
                logger.exception("trimming failed", extra={"action": "trim_events"})
            await anyio.sleep(_TRIM_EVERY_S)

    async def _trim_all(self) -> None:
        for user_id in await self._database.read(events.users):
            more = True
            while more:
                before_us = clock.now_us() - _KEPT_US
                more = await self._database.write(
                    lambda c, user_id=user_id, before_us=before_us: events.trim(
                        c, user_id, keep=self._events_kept, before_us=before_us
                    )
                )
