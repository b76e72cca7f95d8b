from typing import Annotated

import typer

from cloudagent import terminal
from cloudagent.cli.names import complete_agents


def interrupt(
    agent: Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete_agents)],
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="Kill its processes at once, instead of asking it to stop first."
        ),
    ] = False,
) -> None:
    """Stop what an agent is doing now. Messages that wait for it stay in its queue."""
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        handle = ca.agents.get(agent)
        stopped = handle.interrupt(now=now)
    for run in stopped:
        terminal.show(run.id)
    if not stopped:
        terminal.say(terminal.safe(f"{handle.name} is not at work"))
