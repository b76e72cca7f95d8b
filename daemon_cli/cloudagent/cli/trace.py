from typing import Annotated

import typer

from cloudagent import terminal


def trace(
    message: Annotated[str, typer.Argument(help="The id of a message, msg_….")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say where a message is: what happened to it, when, and why it waits or failed."""
    from cloudagent.cli import words
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        found = ca.messages.trace(message)
        if as_json:
            terminal.show_json("trace", found.model_dump(mode="json"))
            return
        agents = {agent.id: agent.name for agent in ca.agents.list()}
    terminal.show(found.message_id)
    if found.caused_by:
        depth = f"depth {found.depth} of chain {found.chain_id}"
        terminal.show(terminal.safe(f"caused by {found.caused_by} ({depth})"))
    for delivery in found.deliveries:
        for line in words.ladder(delivery, agents.get(delivery.agent_id, delivery.agent_id)):
            terminal.show(terminal.safe(line))
    if not found.deliveries:
        terminal.say(
            "It is an agent's own message: it goes to people, and was delivered by storing."
        )
