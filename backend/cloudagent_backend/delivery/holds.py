"""What a machine says of its own room: kept with the host, and told on the ladders of what waits."""

import sqlite3
from collections.abc import Sequence

from cloudagent_backend.delivery import ladder, states
from cloudagent_backend.store import deliveries, events, hosts
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.ids import HostId, UserId
from cloudagent_protocol.resources import EventType, Hold, RungName


def heed(
    c: sqlite3.Connection, user_id: UserId, host_id: HostId, host_name: str, holds: Sequence[Hold]
) -> None:
    """The machine starts nothing for these reasons; what it has and has not begun says so."""
    host = hosts.load(c, user_id, host_id)
    if host is None or host.holds == list(holds):
        return
    hosts.set_holds(c, host_id, holds)
    if changed := hosts.load(c, user_id, host_id):
        events.append(c, user_id, EventType.HOST_UPDATED, hosts.resource(changed))
    for row in deliveries.received(c, host_id):
        before = states.hold_of(host.holds, row.agent_id)
        after = states.hold_of(holds, row.agent_id)
        if after and (before is None or before.reason != after.reason):
            ladder.tell(c, wait(c, row, host_name, after))
        elif before and after is None:
            ladder.tell(c, row)


def wait(c: sqlite3.Connection, row: DeliveryRow, host_name: str, hold: Hold) -> DeliveryRow:
    """Put on the ladder why it is not begun."""
    return deliveries.note(
        c, row, NewRung(RungName.WAITING, host_name, hold.detail, reason=hold.reason)
    )
