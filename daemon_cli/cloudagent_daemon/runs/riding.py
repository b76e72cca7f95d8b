"""Which messages were put into another one's turn, and what becomes of them with it. No I/O.

One that the agent took up belongs to that turn, also when the agent leaves because it waits for people:
then it stays aboard, and the turn that goes on is that of both again.
"""

from collections.abc import Iterator

from cloudagent_daemon.link.tables import Waiting
from cloudagent_daemon.runs.ports import Ride
from cloudagent_protocol.ids import DeliveryId


class Riding:
    """Of one machine; `into` is the delivery whose turn it is."""

    def __init__(self) -> None:
        #: Those of turns under way, as the backend wants them last.
        self._rides: dict[DeliveryId, list[Ride]] = {}
        self._wanted: dict[DeliveryId, Waiting] = {}
        #: Those of turns that have left.
        self._aboard: dict[DeliveryId, dict[DeliveryId, Waiting]] = {}

    def put_in(self, into: DeliveryId, ride: Ride, waiting: Waiting) -> None:
        """It was put into the turn under way."""
        self._rides.setdefault(into, []).append(ride)
        self._wanted[waiting.deliver.delivery_id] = waiting

    def heard(self, waiting: Waiting) -> None:
        """What the backend wants of a delivery now, if it rides."""
        if waiting.deliver.delivery_id in self._wanted:
            self._wanted[waiting.deliver.delivery_id] = waiting

    def stay(self, into: DeliveryId, waiting: Waiting) -> None:
        """It is part of a turn that has left, or what has changed about it."""
        self._aboard.setdefault(into, {})[waiting.deliver.delivery_id] = waiting

    def aboard(self, into: DeliveryId) -> list[Waiting]:
        return list(self._aboard.get(into, {}).values())

    def begin(self, into: DeliveryId) -> list[Waiting]:
        """The turn goes on, with all that is aboard."""
        aboard = self._aboard.pop(into, {})
        for waiting in aboard.values():
            self.put_in(into, Ride(waiting.deliver, taken=True), waiting)
        return list(aboard.values())

    def end(self, into: DeliveryId) -> Iterator[tuple[Ride, Waiting]]:
        """The turn is over, or has left."""
        for ride in self._rides.pop(into, []):
            yield ride, self._wanted.pop(ride.deliver.delivery_id)

    def forget(self, delivery_id: DeliveryId) -> list[Waiting]:
        """It is over for the backend: it rides no more, and what is aboard of it is alone."""
        for aboard in self._aboard.values():
            aboard.pop(delivery_id, None)
        return list(self._aboard.pop(delivery_id, {}).values())
