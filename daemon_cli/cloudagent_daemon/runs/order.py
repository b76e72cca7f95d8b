"""Which delivery may run next; a rule without I/O.

Per agent, deliveries start in the order of their seq. Per conversation one run is alive, whoever
runs it; where that one waits for people, perhaps for days, what follows in its conversation waits
too, and lets the agent's other conversations pass. What is left is fair between agents: what interrupts comes first, then the agent that was
served longest ago; and the last free place goes only to an agent that has none, so that the many
messages of one never hold up the first message of another.
"""

from typing import Protocol

from cloudagent_daemon.link.tables import Waiting
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId
from cloudagent_protocol.resources import DeliveryMode


class Withholds(Protocol):
    """Whether nothing of an agent may start now."""

    def __call__(self, agent_id: AgentId, *, at_work: bool) -> bool: ...


def _nobody(agent_id: AgentId, *, at_work: bool) -> bool:
    return False


class Order:
    """The deliveries of one machine that wait or run.

    Args:
        max_runs: runs at once, over all agents.
        withholds: of whom nothing may start; what waits keeps its place.
    """

    def __init__(self, max_runs: int, withholds: Withholds = _nobody) -> None:
        self._max_runs = max_runs
        self._withholds = withholds
        self._waiting: dict[AgentId, dict[DeliveryId, Waiting]] = {}
        self._running: dict[DeliveryId, Deliver] = {}
        self._parked: dict[DeliveryId, Waiting] = {}
        #: Those whose files are not here yet; each holds its place in its agent's line, and no other.
        self._fetching: set[DeliveryId] = set()
        #: Those that were put into another one's turn.
        self._riding: set[DeliveryId] = set()
        self._served: dict[AgentId, int] = {}
        self._starts = 0

    @property
    def running(self) -> int:
        return len(self._running)

    def queued(self, agent_id: AgentId) -> int:
        """How many deliveries wait for this agent."""
        return len(self._waiting.get(agent_id, {}))

    def waits(self, deliver: Deliver) -> bool:
        """Whether this delivery is known, and has not begun."""
        return deliver.delivery_id in self._waiting.get(deliver.agent.id, {})

    def put(self, waiting: Waiting) -> None:
        """A delivery that shall run, or what has changed about one that waits."""
        if waiting.deliver.delivery_id in self._running.keys() | self._riding:
            return
        self._parked.pop(waiting.deliver.delivery_id, None)
        line = self._waiting.setdefault(waiting.deliver.agent.id, {})
        line[waiting.deliver.delivery_id] = waiting

    def park(self, waiting: Waiting) -> None:
        """A delivery that has begun and waits for people: its conversation stays taken, its place free."""
        self.remove(waiting.deliver.delivery_id)
        self._parked[waiting.deliver.delivery_id] = waiting

    def fetch(self, delivery_id: DeliveryId) -> None:
        """Its files are not here yet."""
        self._fetching.add(delivery_id)

    def fetched(self, delivery_id: DeliveryId) -> None:
        """They are, or will not come: its run tells."""
        self._fetching.discard(delivery_id)

    @property
    def parked(self) -> list[Waiting]:
        """What waits for people."""
        return list(self._parked.values())

    def parked_as(self, delivery_id: DeliveryId) -> Waiting | None:
        """What waits for people as this delivery."""
        return self._parked.get(delivery_id)

    def remove(self, delivery_id: DeliveryId) -> None:
        """It shall not run any more."""
        self._parked.pop(delivery_id, None)
        for agent_id, line in list(self._waiting.items()):
            line.pop(delivery_id, None)
            if not line:
                del self._waiting[agent_id]

    def ride(self, delivery_id: DeliveryId) -> None:
        """It is part of a run that goes on."""
        self.remove(delivery_id)
        self._riding.add(delivery_id)

    def next(self) -> Waiting | None:
        """The delivery to start now, which counts as running from here on; None: nothing may."""
        free = self._free()
        if not free:
            return None
        return self._start(min(free, key=self._urgency))

    def running_in(self, conversation_id: ConversationId) -> Deliver | None:
        """What runs in a conversation."""
        running = self._running.values()
        return next(
            (one for one in running if one.message.conversation_id == conversation_id), None
        )

    def is_idle(self, conversation_id: ConversationId) -> bool:
        """Whether nothing runs or waits in it, and there is a place for what would come."""
        lines = (line.values() for line in self._waiting.values())
        waiting = [*self._parked.values(), *(one for line in lines for one in line)]
        busy = self.running_in(conversation_id) or conversation_id in map(_conversation, waiting)
        return not busy and self.running < self._max_runs

    @property
    def may_start(self) -> bool:
        """Whether `next` has something."""
        return bool(self._free())

    def _free(self) -> list[Deliver]:
        if self.running >= self._max_runs:
            return []
        busy = {deliver.message.conversation_id for deliver in self._running.values()}
        parked = {waiting.deliver.message.conversation_id for waiting in self._parked.values()}
        at_work = {deliver.agent.id for deliver in self._running.values()}
        last_place = self.running == self._max_runs - 1
        lines = (
            [one.deliver for one in line.values() if _conversation(one) not in parked]
            for line in self._waiting.values()
        )
        heads = (min(line, key=lambda deliver: deliver.delivery_seq) for line in lines if line)
        return [
            head
            for head in heads
            if head.message.conversation_id not in busy
            and head.delivery_id not in self._fetching
            and not (last_place and head.agent.id in at_work)
            and not self._withholds(head.agent.id, at_work=head.agent.id in at_work)
        ]

    def ended(self, delivery_id: DeliveryId) -> None:
        """Its run is over."""
        self._running.pop(delivery_id, None)
        self._riding.discard(delivery_id)

    def _urgency(self, head: Deliver) -> tuple[bool, int]:
        return head.mode is not DeliveryMode.INTERRUPT, self._served.get(head.agent.id, 0)

    def _start(self, deliver: Deliver) -> Waiting:
        waiting = self._waiting[deliver.agent.id][deliver.delivery_id]
        self._starts += 1
        self._served[deliver.agent.id] = self._starts
        self.remove(deliver.delivery_id)
        self._running[deliver.delivery_id] = deliver
        return waiting


def _conversation(waiting: Waiting) -> ConversationId:
    return waiting.deliver.message.conversation_id
