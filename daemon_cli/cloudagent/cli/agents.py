from typing import Annotated

import typer

from cloudagent import terminal


def agents(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List your agents and what they are doing."""
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        found = list(ca.agents.list())
        hosts = {host.id: host.name for host in ca.hosts.list()}
    if as_json:
        terminal.show_json("agents", {"agents": [agent.model_dump(mode="json") for agent in found]})
        return
    if not found:
        terminal.say(
            "There are no agents yet. `cloudagent up` makes one for the folder you are in."
        )
        return
    rows = [("NAME", "STATUS", "DRIVER", "HOST", "FOLDER", "ID")]
    for agent in found:
        host = hosts.get(agent.host_machine_id, agent.host_machine_id)
        rows.append((agent.name, agent.status, agent.driver, host, agent.cwd or "-", agent.id))
    terminal.columns(rows)
