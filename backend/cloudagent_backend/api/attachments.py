"""Files that go with messages: people's uploads, and every way to read one."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query
from fastapi import Path as PathPart
from fastapi.responses import FileResponse, Response
from starlette.requests import Request

from cloudagent_backend.api.auth import CurrentMachine, CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import DoneOnce
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.delivery.errors import Refused, not_found
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.store import agents, attachments
from cloudagent_backend.store.attachments import AttachmentRow, Brought
from cloudagent_protocol.attachments import MEDIA_TYPES, PICTURES, TEXT, file_name
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId, AttachmentId, new_attachment_id

router = APIRouter(prefix="/v1/attachments", tags=["attachments"])
machines = APIRouter(
    prefix="/v1/daemon/attachments",
    tags=["daemon"],
    responses=documented(ErrorCode.UNAUTHORIZED, ErrorCode.RATE_LIMITED),
)

_ID: Final = PathPart(pattern="^att_[0-9A-HJKMNP-TV-Z]{26}$")
_NAME: Final = Query(max_length=1_000, description="What the file is called; it may be changed.")
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_TAKES: Final = documented(
    ErrorCode.BAD_REQUEST,
    ErrorCode.TOO_LARGE,
    ErrorCode.INVALID,
    ErrorCode.RATE_LIMITED,
    ErrorCode.CONFLICT,
)
_FILE: Final[dict[int | str, dict[str, Any]]] = (
    {
        status: {
            "description": what,
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in [*sorted(MEDIA_TYPES), f"{TEXT}; charset=utf-8", *more]
            },
        }
        for status, what, more in (
            (200, "The file.", []),
            (206, "The part of the file that was asked for.", ["multipart/byteranges"]),
            (416, "It has no such part.", []),
        )
    }
    | {304: {"description": "It is the one that you have."}}
    | documented(ErrorCode.NOT_FOUND, ErrorCode.GONE)
)
#: A file is never a page: no script of it runs, no other site learns what it is.
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    # What an id names never changes; who may see it is asked each time.
    "Cache-Control": "private, no-cache",
}


@router.post("", status_code=201, responses=_TAKES, openapi_extra=_BODY)
async def upload_attachment(
    request: Request,
    user: CurrentUser,
    world: CurrentWorld,
    name: Annotated[str, _NAME] = "file",
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Attachment:
    """Upload a file; the body is its bytes. Then send its `id` with a message, within a day.

    Its kind is told by its first bytes, whatever `Content-Type` says. PNG, JPEG, GIF and WebP are
    shown; everything else is only ever saved.
    """
    said = f"POST {request.url.path}\n{name}\n".encode()
    brought = Brought(new_attachment_id(), user.user_id, file_name(name))
    row = await world.intake.take(
        request.stream(),
        brought,
        lambda content, work: DoneOnce(
            user.user_id,
            idempotency_key,
            hashlib.sha256(said + content.sha256.encode()).digest(),
            201,
        )(work, lambda row: row.resource),
    )
    return row.resource


@router.get("/{attachment_id}", responses=_FILE, response_class=Response)
async def download_attachment(
    attachment_id: AttachmentId,
    user: CurrentUser,
    world: CurrentWorld,
    if_none_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The bytes of a file: one that you uploaded, or that came with a message of yours."""
    row = await world.database.read(lambda c: attachments.load(c, user.user_id, attachment_id))
    return await _answer(world, row, if_none_match)


@router.delete(
    "/{attachment_id}",
    status_code=204,
    responses=documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT),
)
async def delete_attachment(
    attachment_id: AttachmentId, user: CurrentUser, world: CurrentWorld
) -> None:
    """Remove a file: its bytes go from the server's disk, and its message says that it was removed.

    A machine that has not fetched it is not given it any more, and its agent is told so. What a machine
    has fetched before stays there, and an agent may have read it.
    """
    await world.intake.forget(await world.service.remove_file(user.user_id, attachment_id))


# --- machines -----------------------------------------------------------------------------


@machines.put(
    "/{attachment_id}",
    responses=_TAKES | documented(ErrorCode.NOT_FOUND),
    openapi_extra=_BODY,
)
async def bring_attachment(
    attachment_id: Annotated[AttachmentId, _ID],
    request: Request,
    host: CurrentMachine,
    world: CurrentWorld,
    agent_id: AgentId,
    name: Annotated[str, _NAME] = "file",
) -> Attachment:
    """Bring a file of an agent's, before the message that it goes with; the id is made on the machine.

    The same again changes nothing.
    """
    agent = await world.database.read(lambda c: agents.load(c, host.user_id, agent_id))
    if agent is None or not Machine.of(host).serves(agent):
        raise not_found()
    brought = Brought(attachment_id, host.user_id, file_name(name), host.id, agent_id)
    return (await world.intake.take(request.stream(), brought)).resource


@machines.get("/{attachment_id}", responses=_FILE, response_class=Response)
async def fetch_attachment(
    attachment_id: AttachmentId,
    host: CurrentMachine,
    world: CurrentWorld,
    if_none_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The bytes of a file that goes with a message to this machine, or that it brought."""
    row = await world.database.read(lambda c: attachments.load_for_host(c, host.id, attachment_id))
    return await _answer(world, row if row and row.user_id == host.user_id else None, if_none_match)


# --- the file -----------------------------------------------------------------------------


async def _answer(world: World, row: AttachmentRow | None, known: str | None) -> Response:
    if row is None:
        raise not_found()
    if row.removed_us is not None:
        raise Refused(ErrorCode.GONE, f"{row.name} was removed by who owns it, after it was sent.")
    place = world.intake.blobs.place_of(row.sha256)
    if not await run_sync(_is_whole, place, row.size_bytes):
        raise Refused(
            ErrorCode.NOT_FOUND,
            f"The bytes of {row.name} are not on the backend's disk any more.",
            next="Restore the folder beside its database from the backup that the database is of.",
        )
    shown = "inline" if row.media_type in PICTURES else "attachment"
    headers = {
        **_HEADERS,
        "Content-Disposition": f"{shown}; filename*=UTF-8''{quote(row.name, safe='')}",
        "ETag": f'"{row.sha256}"',
    }
    if known and f'"{row.sha256}"' in known:
        return Response(status_code=304, headers=headers)
    return FileResponse(place, media_type=row.media_type, headers=headers)


def _is_whole(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
