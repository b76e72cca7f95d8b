from typing import Annotated

import typer

from cloudagent import terminal


def go_on(
    message: Annotated[str, typer.Argument(help="The id of a message, msg_….")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Let a message go on that a rate limit has cut off, as soon as that is over."""
    from cloudagent.cli import words
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        found = ca.messages.go_on(message)
    if as_json:
        terminal.show_json("trace", found.model_dump(mode="json"))
        return
    for one in found.deliveries:
        if one.retry_of and one.outcome is None:
            terminal.show(one.id)
            if one.waits_until:
                terminal.say(f"resumes {words.moment(one.waits_until)}")
    terminal.say(f"`cloudagent trace {found.message_id}` says where it is")
