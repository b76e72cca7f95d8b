"""Files of a message, brought to this machine before its agent begins: all of them, or no run.

They lie in `<agent>/attachments/<message>/`, under names that we made, for `KEPT_S` after they came.
"""

import logging
import os
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import Picture
from cloudagent_daemon.link.files import FileRefusedError, FileRemovedError, Files
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.ports import StopSignal, Uplink
from cloudagent_daemon.runs.report import now
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.attachments import (
    PICTURES,
    SNIFFED_BYTES,
    file_name,
    media_type_of,
    size_text,
)
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.events import Reason
from cloudagent_protocol.frames import Deliver, DeliveryReport

logger = logging.getLogger(__name__)

#: How long a message waits for its files, and its run for what did not come until then; and at most
#: between two attempts.
PATIENCE_S: Final = 600.0
IN_RUN_S: Final = 5.0
_PAUSE_S: Final = 30.0
#: Of a picture that a model is shown, and of all of a message: Anthropic's API takes 5 MB of base 64 each,
#: and the line in which claude gives the message back has to be one that we read (`worker.py`).
PICTURE_BYTES: Final = 3_750_000
PICTURES_BYTES: Final = 7_500_000
KEPT_S: Final = 30 * 86_400
_MESSAGE: Final = re.compile(r"msg_[A-Za-z0-9]{1,40}")


@dataclass(frozen=True)
class Enclosed:
    """A file that is here, whole."""

    path: Path
    media_type: str
    size_bytes: int


@dataclass(frozen=True)
class Removed:
    """A file that its owner took away before this machine had it, or before this run."""

    name: str


def words(files: Sequence[Enclosed | Removed]) -> str:
    """What is added to the prompt: where the files are, and which were taken away. Empty without files."""
    here = [
        f"- {one.path} ({one.media_type}, {size_text(one.size_bytes)})"
        for one in files
        if isinstance(one, Enclosed)
    ]
    gone = [f"- {one.name}" for one in files if isinstance(one, Removed)]
    parts = [""]
    if here:
        parts.append(_list("Files that came with this message, on this machine:", here))
    if gone:
        parts.append(
            _list("Removed from this message by a person, and not to be had any more:", gone)
        )
    return "\n\n".join(parts)


def _list(head: str, lines: Sequence[str]) -> str:
    return "[" + "\n".join((head, *lines)) + "]"


def pictures(files: Sequence[Enclosed | Removed]) -> list[Picture]:
    """Those that a model may be shown; of others, and of what is beyond the bounds, it has the path. Blocks."""
    shown: list[Picture] = []
    left = PICTURES_BYTES
    for one in files:
        if isinstance(one, Removed):
            continue
        if one.media_type in PICTURES and one.size_bytes <= min(PICTURE_BYTES, left):
            body = one.path.read_bytes()
            # Told by the bytes that are here: what a backend says of them is not taken over.
            if (media_type := media_type_of(body[:SNIFFED_BYTES])) in PICTURES:
                left -= len(body)
                shown.append(Picture(one.path, media_type, b64encode(body).decode()))
    return shown


class Porter:
    """Brings the files of a message."""

    def __init__(
        self, files: Files | None, uplink: Uplink, keeper: Keeper, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._files = files
        self._uplink = uplink
        self._keeper = keeper
        self._patience_s = patience_s

    async def bring(
        self, deliver: Deliver, workspace: Workspace, stop: StopSignal
    ) -> list[Enclosed | Removed] | Failure:
        """All files of the message; why the run cannot begin, if one cannot be had and was not removed."""
        wanted = deliver.message.attachments or []
        if not wanted:
            return []
        if not _MESSAGE.fullmatch(deliver.message.id):
            return Failure(Reason.ATTACHMENT_MISSING, "Its message has no usable id.")
        folder = workspace.attachments / deliver.message.id
        await self._keeper.in_thread(_prepare, folder)
        places = [folder / name for name in names(wanted)]
        missing = await run_sync(_missing, wanted, places)
        if missing:
            await self._tell(deliver, [one for one, _ in missing])
        removed = {one.id for one in wanted if one.removed_at}
        with anyio.move_on_after(self._patience_s):
            for one, place in missing:
                try:
                    failed = await self._one(one, place, stop)
                except FileRemovedError:
                    removed.add(one.id)
                else:
                    if failed:
                        return failed
            return [
                Removed(place.name)
                if one.id in removed
                else Enclosed(place, one.media_type, one.size_bytes)
                for one, place in zip(wanted, places, strict=True)
            ]
        why = f"The files of the message did not come within {self._patience_s:g} s."
        return Failure(Reason.ATTACHMENT_MISSING, why)

    async def _one(self, one: Attachment, place: Path, stop: StopSignal) -> Failure | None:
        """Raises FileRemovedError: nobody is given it any more."""
        part, pause_s = place.with_name(f".{one.id}.part"), 1.0
        if self._files is None:
            return Failure(Reason.ATTACHMENT_MISSING, f"{one.name} cannot be fetched here.")
        while not stop.requested:
            try:
                await self._files.fetch(one, part)
            except FileRemovedError:
                raise
            except FileRefusedError as error:
                return Failure(Reason.ATTACHMENT_MISSING, f"{one.name} cannot be had: {error}")
            except UnreachableError as error:
                logger.warning("%s", error, extra={"action": "fetch", "id": one.id})
                with anyio.move_on_after(pause_s):
                    await stop.wait()
                pause_s = min(_PAUSE_S, pause_s * 2)
            else:
                await self._keeper.in_thread(part.replace, place)
                return None
        return Failure(Reason.INTERRUPTED, "It was stopped while its files came.")

    async def _tell(self, deliver: Deliver, missing: Sequence[Attachment]) -> None:
        count, size = len(missing), size_text(sum(one.size_bytes for one in missing))
        what = "a file" if count == 1 else f"{count} files"
        await self._uplink.report(
            DeliveryReport(
                delivery_id=deliver.delivery_id,
                at=now(),
                reason=Reason.FETCHING,
                detail=f"fetching {what} ({size}) before it begins",
            )
        )


def names(files: Sequence[Attachment]) -> list[str]:
    """A safe name for each, none twice: whatever the backend says."""
    made: list[str] = []
    for one in files:
        name, number = file_name(one.name), 1
        while name.casefold() in {other.casefold() for other in made}:
            number += 1
            name = f"{number}-{file_name(one.name)}"
        made.append(name)
    return made


def _missing(wanted: Sequence[Attachment], places: Sequence[Path]) -> list[tuple[Attachment, Path]]:
    """Those that did not come before; a file has its name only once it is whole.

    Of one that is known to have been removed the copy goes as well.
    """
    for one, place in zip(wanted, places, strict=True):
        if one.removed_at:
            place.unlink(missing_ok=True)
    return [
        (one, place)
        for one, place in zip(wanted, places, strict=True)
        if not one.removed_at and not (place.is_file() and place.stat().st_size == one.size_bytes)
    ]


def _prepare(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(folder)
    for other in folder.parent.iterdir():
        if time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
