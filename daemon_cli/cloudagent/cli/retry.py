from typing import Annotated

import typer

from cloudagent import terminal


def retry(
    message: Annotated[str, typer.Argument(help="The id of a message, msg_….")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Deliver a message again that failed, was given up or was cancelled."""
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        found = ca.messages.retry(message)
    if as_json:
        terminal.show_json("trace", found.model_dump(mode="json"))
        return
    again = [one.id for one in found.deliveries if one.retry_of and one.outcome is None]
    for delivery_id in again:
        terminal.show(delivery_id)
    terminal.say(f"on its way again; `cloudagent trace {found.message_id}` says where it is")
