"""The busiest requests, past the framework, whose part of them cost more than taking a message in.

Nothing is decided here. A plain, well-formed request is given to the very function that the route
documents (`api/messages.py`), what that raises to the handlers that the application has; everything
else goes on to the framework, as it came. (docs/decisions/0014)
"""

import hashlib
import inspect
import re
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cloudagent_backend.api.auth import current_user
from cloudagent_backend.api.idempotency import DoneOnce
from cloudagent_backend.api.limits import replay
from cloudagent_backend.api.messages import send_to_agent, send_to_conversation
from cloudagent_backend.api.world import world_of
from cloudagent_protocol.ids import AgentId, ConversationId
from cloudagent_protocol.resources import AgentMessageCreate, MessageCreate

_PATHS: Final = re.compile(r"/v1/(agents|conversations)/([^/]{1,100})/messages")
_CREATED: Final = 201
#: Longer keys are for the framework to refuse.
_MAX_KEY: Final = 255


@dataclass(frozen=True)
class _Route:
    """As much of a route as the metrics look at."""

    path: str


_ROUTES: Final = {
    "agents": _Route("/v1/agents/{agent_id}/messages"),
    "conversations": _Route("/v1/conversations/{conversation_id}/messages"),
}


class Express:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http" and scope["method"] == "POST":
            found = _PATHS.fullmatch(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()
        kind, of = found.groups()
        parsed = _parsed(request, kind, body)
        if parsed is None:
            await self._app(scope, replay(body, receive), send)
            return
        scope["route"] = _ROUTES[kind]
        response = await _answer(request, of, body, parsed)
        await response(scope, receive, send)


def _parsed(request: Request, kind: str, body: bytes) -> AgentMessageCreate | MessageCreate | None:
    """The body, if the request is one that needs no explanation."""
    headers = request.headers
    if headers.get("content-type") != "application/json" or request.scope["query_string"]:
        return None
    if not 0 < len(headers.get("idempotency-key", "-")) <= _MAX_KEY:
        return None
    try:
        if kind == "agents":
            return AgentMessageCreate.model_validate_json(body)
        return MessageCreate.model_validate_json(body)
    except ValidationError:
        return None


async def _answer(
    request: Request, of: str, body: bytes, parsed: AgentMessageCreate | MessageCreate
) -> Response:
    try:
        message = await _send(request, of, body, parsed)
    except Exception as error:
        handler = next(
            (h for kind in type(error).__mro__ if (h := request.app.exception_handlers.get(kind))),
            None,
        )
        if handler is None:
            raise
        answer: Any = handler(request, error)
        return await answer if inspect.isawaitable(answer) else answer
    return Response(message.model_dump_json(), _CREATED, media_type="application/json")


async def _send(
    request: Request, of: str, body: bytes, parsed: AgentMessageCreate | MessageCreate
) -> BaseModel:
    user, world = await current_user(request, None, None), world_of(request)
    key = request.headers.get("idempotency-key")
    said = f"POST {request.url.path}\n".encode() + body if key else b""
    once = DoneOnce(user.user_id, key, hashlib.sha256(said).digest(), _CREATED)
    if isinstance(parsed, AgentMessageCreate):
        return await send_to_agent(AgentId(of), parsed, user, world, once)
    return await send_to_conversation(ConversationId(of), parsed, user, world, once)
