"""Agents whose program is not on the machine: said once, and what comes then waits; a rule without I/O.

The first message to such an agent fails, with the repair. Those that follow would fail alike, one by one,
and be lost for a command that nobody has typed yet. So they wait until the program is found, the agent is
set up otherwise, or a person wants it tried. Nothing of it is kept on the disk: a daemon that starts tries.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cloudagent_protocol.events import Finished, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec, Runtime


@dataclass(frozen=True)
class _Lack:
    agent: AgentSpec
    #: The repair, in the words of the run that failed.
    detail: str


class Missing:
    """The agents of one daemon that lack their program."""

    def __init__(self) -> None:
        self._lacks: dict[AgentId, _Lack] = {}

    def ended(self, agent: AgentSpec, finished: Finished) -> None:
        """A run of the agent has ended so. One that had a process lacks no program, whatever it says."""
        if finished.reason is Reason.RUNTIME_MISSING and finished.exit_code is None:
            self._lacks[agent.id] = _Lack(agent, finished.detail[:500])

    def know(self, agent: AgentSpec) -> None:
        """There is something to do for this agent, which is set up so by now."""
        lack = self._lacks.get(agent.id)
        if lack and (lack.agent.driver, lack.agent.command, lack.agent.env) != (
            agent.driver,
            agent.command,
            agent.env,
        ):
            del self._lacks[agent.id]

    def lift(self, agent_ids: Iterable[AgentId] | None = None) -> None:
        """A person wants these tried at once, or all of them."""
        for agent_id in list(self._lacks) if agent_ids is None else agent_ids:
            self._lacks.pop(agent_id, None)

    def found(self, runtimes: Iterable[Runtime]) -> bool:
        """These programs are there now, as far as they have no problem; returns whether any was missed."""
        usable = {runtime.name for runtime in runtimes if runtime.problem is None}
        back = [one for one, lack in self._lacks.items() if lack.agent.driver in usable]
        self.lift(back)
        return bool(back)

    def withholds(self, agent_id: AgentId) -> bool:
        """Whether nothing of the agent may start now."""
        return agent_id in self._lacks

    def all(self) -> dict[AgentId, str]:
        """Who lacks a program, and the repair."""
        return {agent_id: lack.detail for agent_id, lack in self._lacks.items()}
