"""What takes more than one request, as flows that both clients run."""

from typing import Final

from cloudagent import calls
from cloudagent.calls import Flow
from cloudagent.errors import AmbiguousNameError, NotFoundError, not_found
from cloudagent_protocol.resources import Agent, HostMachine, HostState, Run, RunState

_SHOWN: Final = 10


def resolve_agent(name_or_id: str) -> Flow[Agent]:
    """The agent of this name or id.

    Raises:
        NotFoundError: there is none; the error lists those that are there.
        AmbiguousNameError: several have this name; the error lists their ids.
    """
    agents = yield from calls.collect(calls.list_agents())
    if found := [agent for agent in agents if agent.id == name_or_id]:
        return found[0]
    found = [agent for agent in agents if agent.name == name_or_id]
    found = found or [agent for agent in agents if agent.name.lower() == name_or_id.lower()]
    if len(found) > 1:
        raise AmbiguousNameError(
            f"{len(found)} agents are called “{name_or_id}”",
            why=_listed([f"{agent.id} ({agent.status})" for agent in found]),
            next_step="use the id instead of the name",
        )
    if not found:
        raise _unknown(name_or_id, agents)
    return found[0]


def find_job(name_or_id: str) -> Flow[HostMachine | None]:
    """The ephemeral machine of this name or id that is connected; None if there is none now.

    Raises:
        AmbiguousNameError: several jobs run on a machine of this name; the error lists their ids.
    """
    hosts = yield from calls.collect(calls.list_hosts())
    here = [host for host in hosts if host.parent_id and host.state != HostState.OFFLINE]
    found = [host for host in here if name_or_id in (host.id, host.name)]
    if len(found) > 1:
        raise AmbiguousNameError(
            f"{len(found)} jobs are on a machine called “{name_or_id}”",
            why=_listed([host.id for host in found]),
            next_step="use the id instead of the name: the job's log names it",
        )
    return found[0] if found else None


def interrupt_agent(agent_id: str, *, now: bool = False) -> Flow[list[Run]]:
    """Stop what an agent is at work on, or kill it `now`; the runs that will end."""
    stopped: list[Run] = []
    for conversation in (yield from calls.collect(calls.list_conversations(agent_id))):
        # One run of an agent in a conversation lives at a time: it is among the newest.
        newest = yield from calls.list_runs(conversation.id)(None)
        for run in newest.data:
            if run.agent_id == agent_id and run.state != RunState.FINISHED:
                yield from calls.interrupt_run(run.id, now=now)
                stopped.append(run)
    return stopped


def _unknown(name: str, agents: list[Agent]) -> NotFoundError:
    error = not_found(
        f"there is no agent “{name}”",
        "cloudagent agents" if agents else "cloudagent up   (makes one for this folder)",
    )
    there = _listed([agent.name for agent in agents])
    error.why = f"there are: {there}" if agents else "there are no agents yet"
    return error


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
