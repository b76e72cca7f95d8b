"""Which delivery may run next; a rule without I/O.

Per agent, deliveries start in the order of their seq. Per conversation one run is alive, whoever
runs it. What is left is fair between agents: the one that was served longest ago comes first.
"""

from cloudagent_daemon.link.tables import Waiting
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId


class Order:
    """The deliveries of one machine that wait or run.

    Args:
        max_runs: runs at once, over all agents.
    """

    def __init__(self, max_runs: int) -> None:
        self._max_runs = max_runs
        self._waiting: dict[AgentId, dict[DeliveryId, Waiting]] = {}
        self._running: dict[DeliveryId, ConversationId] = {}
        self._served: dict[AgentId, int] = {}
        self._starts = 0

    @property
    def running(self) -> int:
        return len(self._running)

    def queued(self, agent_id: AgentId) -> int:
        """How many deliveries wait for this agent."""
        return len(self._waiting.get(agent_id, {}))

    def put(self, waiting: Waiting) -> None:
        """A delivery that shall run, or what has changed about one that waits."""
        if waiting.deliver.delivery_id in self._running:
            return
        line = self._waiting.setdefault(waiting.deliver.agent.id, {})
        line[waiting.deliver.delivery_id] = waiting

    def remove(self, delivery_id: DeliveryId) -> None:
        """It shall not run any more."""
        for agent_id, line in list(self._waiting.items()):
            line.pop(delivery_id, None)
            if not line:
                del self._waiting[agent_id]

    def next(self) -> Waiting | None:
        """The delivery to start now, which counts as running from here on; None: nothing may."""
        free = self._free()
        if not free:
            return None
        chosen = min(free, key=lambda head: self._served.get(head.deliver.agent.id, 0))
        self._start(chosen)
        return chosen

    @property
    def may_start(self) -> bool:
        """Whether `next` has something."""
        return bool(self._free())

    def _free(self) -> list[Waiting]:
        if self.running >= self._max_runs:
            return []
        busy = set(self._running.values())
        heads = (
            min(line.values(), key=lambda waiting: waiting.deliver.delivery_seq)
            for line in self._waiting.values()
        )
        return [head for head in heads if head.deliver.message.conversation_id not in busy]

    def ended(self, delivery_id: DeliveryId) -> None:
        """Its run is over."""
        self._running.pop(delivery_id, None)

    def _start(self, chosen: Waiting) -> None:
        deliver = chosen.deliver
        self._starts += 1
        self._served[deliver.agent.id] = self._starts
        self.remove(deliver.delivery_id)
        self._running[deliver.delivery_id] = deliver.message.conversation_id
