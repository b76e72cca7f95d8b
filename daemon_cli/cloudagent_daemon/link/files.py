"""Files that go with messages, over HTTP with the machine key (docs/protocol.md §14)."""

import hashlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final

import httpx2
from anyio.to_thread import run_sync

from cloudagent_daemon.link.http import body_of, client, why_no_answer
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.link.way import Way
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.ids import AgentId

_PATH: Final = "/v1/daemon/attachments"
_PIECE_BYTES: Final = 262_144
_ID: Final = re.compile(r"att_[A-Za-z0-9]{1,40}")
#: Refusals that may pass: the key is being renewed, or the server is busy.
_PASSING: Final = frozenset({401, 408, 425, 429})


class FileRefusedError(Exception):
    """The backend will not give or take the file; `str()` says why."""


class FileRemovedError(FileRefusedError):
    """Its owner removed it after it was sent."""


class Files:
    """Fetches files from the backend, and brings it others; of any other address it knows nothing.

    Args:
        key: asked for each request.
        ready: waits until the way is there; it may raise `UnreachableError`.
    """

    def __init__(
        self,
        way: Way,
        key: Callable[[], Awaitable[str]],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._way = way
        self._key = key
        self._ready = ready

    async def fetch(self, wanted: Attachment, part: Path) -> None:
        """Fills `part`, from where it was cut off before; it is whole by size and hash on return.

        Raises:
            FileRefusedError: the backend does not have it, or not for this machine;
                FileRemovedError if it had it once.
            UnreachableError: it may be tried again.
        """
        have = await run_sync(_size_of, part)
        if have > wanted.size_bytes:
            await run_sync(part.unlink)
            have = 0
        if have < wanted.size_bytes:
            await self._receive(wanted, part, have)
        if await run_sync(_digest_of, part) != (wanted.size_bytes, wanted.sha256):
            whole = await run_sync(_size_of, part) >= wanted.size_bytes
            if whole:
                await run_sync(part.unlink)
            raise UnreachableError(f"{wanted.name} came {'damaged' if whole else 'in part'}")

    async def bring(self, file: Attachment, agent_id: AgentId, copy: Path) -> None:
        """Sends the bytes of a file of an agent's; the same again changes nothing.

        Raises:
            FileRefusedError: the backend will not take it.
            UnreachableError: it may be tried again.
        """
        if self._ready:
            await self._ready()
        headers = {
            "Authorization": f"Bearer {await self._key()}",
            "Content-Length": str(file.size_bytes),
        }
        named = {"agent_id": agent_id, "name": file.name}
        try:
            async with client(self._way) as http:
                answer = await http.put(
                    _path(file), params=named, headers=headers, content=_pieces(copy)
                )
        except (httpx2.HTTPError, OSError) as error:
            why = why_no_answer(error, self._way)
            raise UnreachableError(f"{file.name} could not be brought: {why}") from error
        if answer.status_code != 200:
            raise _refusal(self._way, answer)

    async def _receive(self, wanted: Attachment, part: Path, have: int) -> None:
        if self._ready:
            await self._ready()
        # As it is: a part of a file that was packed on the way is of no use.
        headers = {"Authorization": f"Bearer {await self._key()}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            async with (
                client(self._way) as http,
                http.stream("GET", _path(wanted), headers=headers) as answer,
            ):
                if answer.status_code not in (200, 206):
                    await answer.aread()
                    raise _refusal(self._way, answer)
                await _save(answer, part, have if answer.status_code == 206 else 0, wanted)
        except (httpx2.HTTPError, OSError) as error:
            why = why_no_answer(error, self._way)
            raise UnreachableError(f"{wanted.name} did not come: {why}") from error


def _path(file: Attachment) -> str:
    """Raises FileRefusedError: its id is none, and would name something else there."""
    if not _ID.fullmatch(file.id):
        raise FileRefusedError(f"{file.id[:60]!r} is no attachment's id")
    return f"{_PATH}/{file.id}"


async def _pieces(copy: Path) -> AsyncGenerator[bytes]:
    with await run_sync(copy.open, "rb") as file:
        while piece := await run_sync(file.read, _PIECE_BYTES):
            yield piece


async def _save(answer: httpx2.Response, part: Path, at: int, wanted: Attachment) -> None:
    """Raises UnreachableError: more comes than was announced."""
    async for piece in answer.aiter_bytes(_PIECE_BYTES):
        if at + len(piece) > wanted.size_bytes:
            raise UnreachableError(f"{wanted.name} is larger than was announced")
        await run_sync(_write, part, at, piece)
        at += len(piece)


def _refusal(way: Way, answer: httpx2.Response) -> Exception:
    said = str(body_of(answer).get("detail") or answer.reason_phrase)
    told = f"{way.server_url} answers {answer.status_code}: {said}"
    if answer.status_code == 410:
        return FileRemovedError(told)
    if 400 <= answer.status_code < 500 and answer.status_code not in _PASSING | {416}:
        return FileRefusedError(told)
    return UnreachableError(told)


def _write(part: Path, at: int, piece: bytes) -> None:
    with part.open("r+b" if at else "wb") as file:
        file.seek(at)
        file.write(piece)
        file.truncate()


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest_of(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()
    except FileNotFoundError:
        return 0, ""
