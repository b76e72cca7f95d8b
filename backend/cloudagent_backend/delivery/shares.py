"""Which queued deliveries a host takes in now; a rule without I/O.

The window bounds what a host has in flight. It is shared between the host's agents, so that the
thousand messages of one never hold up the first message of another.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from operator import attrgetter

from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import DeliveryMode


def allot(
    window: int, in_flight: Mapping[AgentId, int], waiting: Mapping[AgentId, Sequence[DeliveryRow]]
) -> list[DeliveryRow]:
    """The deliveries to lease, in the order of their seq.

    A message that interrupts does not wait for what it interrupts: it may go beyond the window, up to
    twice its size. An agent with nothing in flight always gets one. Each further place within the
    window goes to the agent that has fewest in flight.

    Args:
        window: deliveries that the host may have in flight.
        in_flight: how many deliveries each agent has on its way to the machine, or on it.
        waiting: each agent's line, in the order of its seq.
    """
    held = Counter(in_flight)
    lines = {agent_id: deque(line) for agent_id, line in waiting.items() if line}
    chosen: list[DeliveryRow] = []

    def take(agent_id: AgentId) -> None:
        line = lines[agent_id]
        chosen.append(line.popleft())
        held[agent_id] += 1
        if not line:
            del lines[agent_id]

    for agent_id in list(lines):
        while _interrupts(lines.get(agent_id)) and held.total() < 2 * window:
            take(agent_id)
        if agent_id in lines and not held[agent_id]:
            take(agent_id)
    while lines and held.total() < window:
        take(min(lines, key=lambda agent_id: (held[agent_id], lines[agent_id][0].seq)))
    return sorted(chosen, key=attrgetter("seq"))


def _interrupts(line: deque[DeliveryRow] | None) -> bool:
    return bool(line) and line[0].mode is DeliveryMode.INTERRUPT
