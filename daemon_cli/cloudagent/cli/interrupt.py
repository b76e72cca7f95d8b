from typing import Annotated

import typer

from cloudagent import terminal
from cloudagent.cli.names import complete_agents


def interrupt(
    agent: Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete_agents)],
) -> None:
    """Stop what an agent is doing now. Messages that wait for it stay in its queue."""
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        handle = ca.agents.get(agent)
        stopped = handle.interrupt()
    for run in stopped:
        terminal.show(run.id)
    if not stopped:
        terminal.say(terminal.safe(f"{handle.name} is not at work"))
