"""The pictures that a model is shown: read where they lie, each time; a session has their paths only.

What kind each is was told by its bytes before it came here, or by the editor that sends them as bytes. No address is ever fetched, and nothing outside of
the folder of messages' files is read (docs/decisions/0023).
"""

import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloudagent_daemon.agent.history import Entry, Picture, User
from cloudagent_daemon.agent.tools.beneath import Folder, RefusedError

#: Of one picture: 5 MB of base 64, as Anthropic's API takes it (OpenAI's takes more).
PICTURE_BYTES: Final = 3_750_000
#: Of one message, and again of all messages before it: a request has a limit, too (32 MB).
PICTURES_BYTES: Final = 7_500_000
#: Of a request; beyond it Anthropic's API wants them small.
MOST_PICTURES: Final = 20
#: What both APIs take.
KINDS: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


def read(
    pictures: Iterable[Picture],
    folder: Path | None,
    *,
    most: int = MOST_PICTURES,
) -> tuple[Picture, ...]:
    """Those that are there and within the bounds, with their bytes; of the others the prompt has the path."""
    if folder is None:
        return ()
    seen: list[Picture] = []
    left = PICTURES_BYTES
    for one in pictures:
        wanted = one.path if len(seen) < most else None
        body = _bytes(wanted, folder, min(left, PICTURE_BYTES)) if wanted else None
        if body:
            left -= len(body)
            seen.append(replace(one, data=b64encode(body).decode()))
    return tuple(seen)


def recall(history: Sequence[Entry], folder: Path | None, *, most: int) -> list[Entry]:
    """The history with what its newest pictures show, at most so many; the others are left out of it."""
    shown = [
        one for entry in reversed(history) if isinstance(entry, User) for one in entry.pictures
    ]
    kept = {one.path: one for one in read(shown, folder, most=most)}
    return [
        replace(entry, pictures=tuple(kept[one.path] for one in entry.pictures if one.path in kept))
        if isinstance(entry, User)
        else entry
        for entry in history
    ]


def newest(history: Sequence[Entry], beside: int) -> list[Entry]:
    """The history with its newest pictures that came as bytes, as far as a request has room beside so many others."""
    left, places = PICTURES_BYTES, MOST_PICTURES - beside
    kept: list[Entry] = []
    for entry in reversed(history):
        if isinstance(entry, User) and entry.pictures:
            shown: list[Picture] = []
            for one in entry.pictures:
                left -= size_of(one)
                places -= 1
                if left >= 0 and places >= 0:
                    shown.append(one)
            entry = replace(entry, pictures=tuple(shown))
        kept.append(entry)
    return kept[::-1]


def size_of(picture: Picture) -> int:
    """Bytes that its base 64 stands for."""
    return len(picture.data) * 3 // 4


def _bytes(path: Path, folder: Path, most: int) -> bytes | None:
    try:
        with Folder(folder) as files, os.fdopen(files.open(str(path)), "rb") as file:
            body = file.read(most + 1)
    except (OSError, RefusedError):  # gone, as files of messages go after a time
        return None
    return body if len(body) <= most else None
