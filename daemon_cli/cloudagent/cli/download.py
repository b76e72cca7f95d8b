from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudagent import terminal

if TYPE_CHECKING:
    from cloudagent_protocol.content import Attachment


def download(
    message: Annotated[str, typer.Argument(help="The id of a message, msg_….")],
    to: Annotated[
        Path, typer.Option("--to", exists=True, file_okay=False, help="The folder to save them in.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Save the files of a message, under their names; nothing that is there is overwritten."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.attachments import size_text

    saved: list[dict[str, str]] = []
    with CloudAgent() as ca:
        files = ca.messages.get(message).attachments
        for one in files:
            if one.removed_at is not None:
                terminal.say(terminal.safe(f"· {one.name} was removed"))
                continue
            place = _save(to, one, ca.attachments.download(one.id))
            saved.append({"id": one.id, "path": str(place)})
            if not as_json:
                terminal.show(terminal.safe(str(place)))
                terminal.say(terminal.safe(f"· {one.name} ({size_text(one.size_bytes)})"))
    if as_json:
        terminal.show_json("files", {"message_id": message, "files": saved})
    elif not files:
        terminal.say("No files go with this message.")


def _save(folder: Path, file: "Attachment", body: bytes) -> Path:
    """Its name is made anew here: a server's word is no place on this machine."""
    from cloudagent_protocol.attachments import file_name

    name, number = file_name(file.name), 1
    while True:
        place = folder / (name if number == 1 else f"{number}-{name}")
        try:
            with place.open("xb") as saved:
                saved.write(body)
        except FileExistsError:
            number += 1
        else:
            return place
