"""The agent for a folder: which program thinks for it, and what it is called."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudagent import AsyncAgentHandle, AsyncCloudAgent
from cloudagent.errors import CloudAgentError
from cloudagent_protocol.ids import HostId
from cloudagent_protocol.resources import AgentCreate, Driver, HostMachine, Runtime

#: Chosen only when asked for: it costs nothing to have, so it would always be found.
_NEVER_FIRST: Final = frozenset({Driver.SCRIPTED})
#: Chosen after all others: a coding agent that somebody installed is meant to be used.
_LAST: Final = frozenset({Driver.BUILTIN})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class NoRuntimeError(CloudAgentError):
    """There is no program on this computer that could think; `problems` says why, one a line."""

    def __init__(self, message: str, runtimes: Sequence[Runtime]) -> None:
        super().__init__(message)
        self.problems = [f"{one.name}: {one.problem}" for one in runtimes if one.problem]


def choose_driver(runtimes: Sequence[Runtime], wanted: str | None) -> Driver:
    """The driver for a new agent: the one that is wanted, else the first that can be used.

    Raises:
        NoRuntimeError: there is none.
    """
    known = {driver.value for driver in Driver}
    if wanted is not None:
        found = [runtime for runtime in runtimes if runtime.name == wanted]
        if wanted not in known:
            raise NoRuntimeError(f"there is no runtime {wanted}", [])
        if any(runtime.problem for runtime in found):
            raise NoRuntimeError(f"{wanted} cannot be used", found)
        return Driver(wanted)
    usable = [runtime.name for runtime in runtimes if not runtime.problem and runtime.name in known]
    usable = [name for name in usable if name not in _NEVER_FIRST]
    if not usable:
        raise NoRuntimeError("no coding agent found", runtimes)
    return Driver(min(usable, key=lambda name: name in _LAST))


async def agent_for(
    client: AsyncCloudAgent, host: HostMachine, folder: Path, wanted: str | None
) -> AsyncAgentHandle:
    """The agent of this folder on this host, made if there is none yet.

    Raises:
        NoRuntimeError: none could think.
    """
    agents = [agent async for agent in client.agents.list()]
    for agent in agents:
        here = agent.host_machine_id == host.id and agent.cwd == str(folder)
        if here and agent.driver == (wanted or agent.driver) and not _demo_by_chance(agent, wanted):
            return agent
    driver = choose_driver(host.runtimes, wanted)
    name = _free_name(folder.name or host.name, {agent.name for agent in agents})
    return await client.agents.create(
        AgentCreate(name=name, driver=driver, host_machine_id=HostId(host.id), cwd=str(folder))
    )


def _demo_by_chance(agent: AsyncAgentHandle, wanted: str | None) -> bool:
    """An agent of an earlier `up --demo` does not answer for a real one."""
    return wanted is None and agent.driver == Driver.SCRIPTED


def _free_name(wish: str, taken: set[str]) -> str:
    name = _CONTROL.sub("?", wish).strip()[:90] or "agent"
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(free for free in names if free not in taken)
