"""Messages that are put into the turn under way, and what became of each (`queue.py` by `riding.py`)."""

import anyio

from cloudagent_daemon.drivers.base import Turn
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.attempt import Attempt, UnderWay
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.launches import Launches
from cloudagent_daemon.runs.ports import Ride, StopSignal
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_protocol.events import Steered
from cloudagent_protocol.frames import Deliver


class Steering:
    """The rides of one run."""

    def __init__(
        self,
        deliver: Deliver,
        stop: StopSignal,
        under_way: UnderWay,
        desk: RunDesk,
        launches: Launches,
        reporter: Reporter,
    ) -> None:
        self._deliver = deliver
        self._stop = stop
        self._under_way = under_way
        self._desk = desk
        self._launches = launches
        self._reporter = reporter
        #: By the id that the agent knows them by.
        self._rides: dict[str, Ride] = {}
        #: Nothing is put in while what was is counted, nor after that.
        self._one_at_a_time = anyio.Lock()
        self._closed = False

    @property
    def taken(self) -> list[Deliver]:
        """What the agent has taken up."""
        return [ride.deliver for ride in self._rides.values() if ride.taken]

    async def steer(self, deliver: Deliver, attempt: int) -> Ride | None:
        """Puts a message into the turn; written down first, as a process that is given one is."""
        async with self._one_at_a_time:
            under_way = None if self._closed else self._under_way.attempt
            if under_way is None or not under_way.steerable or not self._fits(deliver):
                return None
            return await self._put_in(under_way, deliver, attempt)

    def _fits(self, deliver: Deliver) -> bool:
        if deliver.message.attachments:  # they are brought before a turn begins
            return False
        mine, wanted = self._deliver.agent, deliver.agent
        return (mine.id, mine.model, mine.mode) == (wanted.id, wanted.model, wanted.mode)

    async def _put_in(self, under_way: Attempt, deliver: Deliver, attempt: int) -> Ride | None:
        turn, ride = Turn(f"{prompts.origin(deliver.message)}{deliver.message.text}"), Ride(deliver)
        self._rides[turn.id] = ride
        await self._desk.join(deliver)
        await self._launches.given_too(under_way.worker, deliver, attempt)
        if under_way.steer(turn):
            return ride
        del self._rides[turn.id]
        await self._desk.part(deliver)
        return None

    async def taken_up(self, turn_id: str) -> None:
        """The agent has taken up what it knows by this id: a ride, or the turn's own message."""
        ride = self._rides.get(turn_id)
        if ride is None or self._stop.parks:  # what it begins with as it leaves is told again
            return
        ride.taken = True
        deliver = ride.deliver
        self._reporter.join(deliver.delivery_id)
        self._desk.work_on(deliver)
        await self._reporter.event(
            Steered(at=now(), delivery_id=deliver.delivery_id, message_id=deliver.message.id)
        )

    async def close(self) -> None:
        """Nothing more is put in; what was and was not taken up is none of this run's."""
        async with self._one_at_a_time:
            self._closed = True
            for ride in self._rides.values():
                if not ride.taken:
                    await self._desk.part(ride.deliver)
