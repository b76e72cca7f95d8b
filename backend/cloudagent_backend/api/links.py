"""All daemons' connections of this process, served by a few tasks however many they are.

Down: the hub hints at sessions whose outbox has grown; one look into the store serves several. Up:
connections hint that frames wait; those of all of them share one transaction. A task and a
transaction for each connection would be most of what an idle one costs, and most of what an
acknowledgement does. (docs/decisions/0013)
"""

import heapq
import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Final

import anyio

from cloudagent_backend.api.answers import answer
from cloudagent_backend.api.connection import Bells, Connection, Inbound, spared
from cloudagent_backend.delivery.hub import Hub, Session
from cloudagent_backend.delivery.service import Service
from cloudagent_backend.store import outbox
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.outbox import OutboxRow
from cloudagent_protocol.frames import Query

logger = logging.getLogger(__name__)

#: Of one look into the store: sessions, and frames of each.
_SESSIONS: Final = 16
_FRAMES: Final = 64
#: A delivery that was sent is said to be so after this time, unless its ack has said more by then.
_SENT_AFTER_S: Final = 1.0
#: Between two looks at the connections' deadlines, at least.
_TICK_S: Final = 0.01
_SETTLE_S: Final = 2.0


class Links:
    def __init__(self, database: Database, service: Service, hub: Hub) -> None:
        self._database = database
        self._service = service
        self._hub = hub
        self.bells = Bells(hub.hints)
        self._connections: dict[Session, Connection] = {}
        #: When each is to be looked at: a heap.
        self._deadlines: list[tuple[float, int, Connection]] = []
        self._begun = 0
        self._has_deadlines = anyio.Event()
        self._empty = anyio.Event()

    def begin(self, connection: Connection) -> None:
        """Look after the connection from now on; its welcome was said."""
        session = connection.session
        self._connections[session] = connection
        self._begun += 1
        deadline = connection.link.next_deadline()
        heapq.heappush(self._deadlines, (deadline, self._begun, connection))
        self._has_deadlines.set()
        connection.begin()
        session.ready = True
        self._hub.hints.hint(session)  # it may be behind, or closed already
        self._service.hints.hint(session.host_id)

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tg:
            for loop in (
                self._sends,
                self._repeats,
                self._applies,
                self._watches,
                self._notes,
                self._sees_off,
            ):
                tg.start_soon(loop)

    async def settle(self) -> None:
        """Until every connection has ended and its host is offline, or for two seconds."""
        with anyio.move_on_after(_SETTLE_S):
            while self._connections:
                self._empty = anyio.Event()
                await self._empty.wait()

    # --- down ---

    async def _sends(self) -> None:
        while True:
            sessions = await self._hub.hints.take()
            found = [one for session in sessions if (one := self._connections.get(session))]
            behind = [one for one in found if self._wants(one)]
            for start in range(0, len(behind), _SESSIONS):
                await self._send_stored(behind[start : start + _SESSIONS])

    def _wants(self, connection: Connection) -> bool:
        """Close it if that was asked for; whether the store may have something, and there is room."""
        session = connection.session
        if session.closed:
            connection.end(session.close_code, session.close_reason)
            return False
        unsaid, session.unsaid = session.unsaid, []
        for command in unsaid:
            connection.say(command)
        fresh, session.fresh = session.fresh, []
        if not session.behind:
            connection.send(fresh)
        return session.behind and connection.room > 0

    async def _send_stored(self, connections: Sequence[Connection]) -> None:
        wanted = [(one, min(one.room, _FRAMES)) for one in connections]
        for connection, _ in wanted:  # before the look: what comes after it is hinted at
            connection.session.behind = False

        def read(c: sqlite3.Connection) -> list[list[OutboxRow]]:
            return [
                outbox.after(c, one.session.host_id, one.link.sent, room) for one, room in wanted
            ]

        with spared("the outbox was not read; closing", {"action": "send"}, connections):
            found = await self._database.read(read)
            for (connection, room), rows in zip(wanted, found, strict=True):
                connection.send(rows)
                connection.session.behind |= len(rows) == room
                if connection.session.behind and connection.room > 0:
                    self._hub.hints.hint(connection.session)

    async def _repeats(self) -> None:
        """Send again what was sent and is not acknowledged on a link that lives."""
        while True:
            connections = [one for one in await self.bells.overdue.take() if not one.ended]

            def read(
                c: sqlite3.Connection, those: Sequence[Connection] = connections
            ) -> list[list[OutboxRow]]:
                return [outbox.after(c, one.session.host_id, one.link.acked, 1) for one in those]

            # They stay: it will be overdue again.
            with spared("the outbox was not read", {"action": "repeat"}):
                found = await self._database.read(read)
                for connection, rows in zip(connections, found, strict=True):
                    for row in rows:
                        connection.repeat(row)

    async def _notes(self) -> None:
        """Say of what is not acknowledged that it was at least sent."""
        while True:
            connections = await self.bells.sent.take()
            await anyio.sleep(_SENT_AFTER_S)
            for connection in connections:
                machine = connection.machine
                if machine.sent and not connection.ended:
                    sent, machine.sent = machine.sent, {}
                    with spared("not noted as sent", connection.about("sent")):
                        await self._service.sent(machine, sent)

    # --- up ---

    async def _applies(self) -> None:
        async with anyio.create_task_group() as tg:
            while True:
                connections = await self.bells.reported.take()
                groups = [(one, group) for one in connections if (group := one.take())]
                await self._apply(groups)
                for connection, group in groups:
                    queries = [frame for frame in group if isinstance(frame, Query)]
                    if queries and not connection.ended:
                        tg.start_soon(self._answer, connection, queries)
                    else:
                        connection.free()

    async def _apply(self, groups: Sequence[tuple[Connection, Sequence[Inbound]]]) -> None:
        """Bring what machines report into the store, in one transaction, and acknowledge it."""
        reported = [
            (connection, frames)
            for connection, group in groups
            if (frames := [frame for frame in group if not isinstance(frame, Query)])
        ]
        closing = [connection for connection, _ in reported]
        with spared("reports were not kept; closing", {"action": "apply"}, closing):
            results = await self._service.apply_all(
                [(connection.machine, frames) for connection, frames in reported]
            )
            for (connection, frames), applied in zip(reported, results, strict=True):
                if isinstance(applied, Exception):
                    about = connection.about("apply")
                    logger.error("a report was not kept; closing", exc_info=applied, extra=about)
                    connection.fail()
                    continue
                connection.acknowledge(frames[: applied.count])
                if applied.error:
                    connection.refuse(applied.error)

    async def _answer(self, connection: Connection, queries: Sequence[Query]) -> None:
        with spared("a query failed; closing", connection.about("answer"), [connection]):
            for query in queries:
                connection.say(await answer(self._service, connection.machine, query))
        connection.free()

    # --- life and death ---

    async def _watches(self) -> None:
        while True:
            await self._has_deadlines.wait()
            now = time.monotonic()
            while self._deadlines and self._deadlines[0][0] <= now:
                _, number, connection = heapq.heappop(self._deadlines)
                if not connection.ended:
                    heapq.heappush(self._deadlines, (connection.look(now), number, connection))
            if self._deadlines:
                # Who comes meanwhile is due later: all have the same intervals.
                await anyio.sleep(max(_TICK_S, self._deadlines[0][0] - now))
            else:
                self._has_deadlines = anyio.Event()

    async def _sees_off(self) -> None:
        async with anyio.create_task_group() as tg:
            while True:
                for connection in await self.bells.ended.take():
                    tg.start_soon(self._see_off, connection)

    async def _see_off(self, connection: Connection) -> None:
        """The host is offline from now on, if this was its newest connection."""
        if self._hub.detach(connection.session):
            with spared("a host's leaving is not noted yet", connection.about("leave")):
                await self._service.leave(connection.machine)
        logger.info("host left", extra=connection.about("detach"))
        self._connections.pop(connection.session, None)
        if not self._connections:
            self._empty.set()
