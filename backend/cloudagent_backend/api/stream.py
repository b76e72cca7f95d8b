"""What a person's programs follow: one event log, as Server-Sent Events or over a WebSocket."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Final

import anyio
from fastapi import APIRouter, Header, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.types import Message, Send
from typing_extensions import override

from cloudagent_backend.api.auth import CurrentUser, current_user, principal_of_websocket
from cloudagent_backend.api.errors import ApiError, documented
from cloudagent_backend.api.world import CurrentWorld, World, world_of
from cloudagent_backend.store.events import EventRow
from cloudagent_protocol.errors import CloseCode, ErrorCode
from cloudagent_protocol.ids import UserId
from cloudagent_protocol.resources import EventType

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/events", tags=["events"])

#: A reader that takes nothing for so long is dropped; it resumes from its cursor.
_SEND_DEADLINE_S: Final = 20.0
#: Ids fit into what JavaScript counts exactly.
_MAX_ID: Final = 2**53
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

After = Annotated[
    int | None,
    Query(ge=0, le=_MAX_ID, description="Follow from after this event; from now on without it."),
]


class _EventStream(StreamingResponse):
    """Server-Sent Events; a reader that has stopped reading is let go."""

    media_type = "text/event-stream"

    @override
    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(_SEND_DEADLINE_S):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            logger.info("a follower stopped reading", extra={"action": "follow"})


@router.get("", response_class=_EventStream, responses=documented(ErrorCode.RATE_LIMITED))
async def follow_events(
    request: Request,
    user: CurrentUser,
    world: CurrentWorld,
    after: After = None,
    last_event_id: Annotated[str | None, Header(max_length=30)] = None,
) -> _EventStream:
    """Your events, as they happen.

    The first is a `ping` with the id to resume from, or `resync`: then fetch anew. A
    `Last-Event-ID`, which browsers send when they reconnect, goes before `after`.
    """
    _check_room(world, user.user_id)
    cursor = int(last_event_id) if last_event_id and last_event_id.isdecimal() else after
    rows = _rows(world, user.user_id, cursor, lambda: current_user(request, None, None))
    return _EventStream(_lines(rows), headers=_HEADERS)


async def _lines(rows: AsyncGenerator[EventRow]) -> AsyncGenerator[str]:
    yield "retry: 1000\n\n"
    async with aclosing(rows):
        async for row in rows:
            yield f"id: {row.id}\nevent: {row.type}\ndata: {row.json}\n\n"


@router.websocket("/ws")
async def follow_by_websocket(websocket: WebSocket) -> None:
    """The same log for the page: one Event per text message; `?after=` as above."""
    world = world_of(websocket)
    user = await principal_of_websocket(websocket)
    _check_room(world, user.user_id)
    # Cut: Python reads no number of thousands of digits.
    text = websocket.query_params.get("after", "")[:30]
    after = min(int(text), _MAX_ID) if text.isdecimal() else None
    await websocket.accept()
    try:
        async with anyio.create_task_group() as tg:
            tg.start_soon(_listen, websocket)
            rows = _rows(world, user.user_id, after, lambda: principal_of_websocket(websocket))
            await _speak(websocket, rows)
            tg.cancel_scope.cancel()
    except* (WebSocketDisconnect, TimeoutError):
        logger.debug("a follower left", extra={"action": "follow"})
    else:
        await websocket.close(CloseCode.RESTART if world.fanout.closed else CloseCode.UNAUTHORIZED)


def _check_room(world: World, user_id: UserId) -> None:
    if world.fanout.following(user_id) >= world.settings.followers_per_user:
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            "Too many streams of events are open for this account.",
            next="Close some pages or programs, or share one stream between them.",
            headers={"Retry-After": "10"},
        )


async def _speak(websocket: WebSocket, rows: AsyncGenerator[EventRow]) -> None:
    async with aclosing(rows):
        async for row in rows:
            with anyio.fail_after(_SEND_DEADLINE_S):
                await websocket.send_text(row.json)


async def _listen(websocket: WebSocket) -> None:
    """Notice that the follower has left; what it says means nothing."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))


async def _rows(
    world: World, user_id: UserId, after: int | None, ask: Callable[[], Awaitable[object]]
) -> AsyncGenerator[EventRow]:
    """The user's events until the server stops, or `ask` no longer lets the follower in.

    A stream outlives what opened it: a login that has ended must not be read for hours more.
    """
    async with aclosing(world.fanout.follow(user_id, after)) as rows:
        async for row in rows:
            if row.type == EventType.PING.value:
                try:
                    await ask()
                except ApiError:
                    return
            yield row
