"""Every error as a problem (RFC 9457): what happened, and what the reader can do about it.

ApiError (what a route refuses) is a `Refused` (what delivery refuses); the framework's own errors
are turned into the same shape here.
"""

import logging
import sqlite3
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.store.database import DatabaseError, is_full
from cloudagent_protocol.errors import STATUS, ErrorCode, Problem

logger = logging.getLogger(__name__)

_OF_STATUS: Final = {
    400: ErrorCode.BAD_REQUEST,
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.TOO_LARGE,
    415: ErrorCode.BAD_REQUEST,
    422: ErrorCode.INVALID,
    429: ErrorCode.RATE_LIMITED,
    503: ErrorCode.UNAVAILABLE,
}
_NEXT: Final = {
    ErrorCode.BAD_REQUEST: "Send a body of valid JSON in UTF-8.",
    ErrorCode.INVALID: "See /openapi.json for what this takes.",
    ErrorCode.UNAUTHORIZED: "Sign in, or send a valid token as `Authorization: Bearer ...`.",
    ErrorCode.NOT_FOUND: "Check the id, and that you are signed in as its owner.",
    ErrorCode.METHOD_NOT_ALLOWED: "The header `Allow` lists what can be done here.",
    ErrorCode.INTERNAL: "Try again; if it stays, look for the request_id in the backend's log.",
}
_DETAIL: Final = {
    400: "The request could not be read.",
    404: "There is no such thing here.",
    405: "This cannot be done with that method.",
}
#: Schema errors told in one problem, at most.
_MAX_ERRORS: Final = 5


class ApiError(Refused):
    """A request that is not done; `headers` go out with the problem."""

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        next: str | None = None,  # noqa: A002  the problem's own field name
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, detail, next=next, more=more)
        self.headers = dict(headers or {})


def request_id_of(connection: HTTPConnection) -> str | None:
    return connection.scope.get("state", {}).get("request_id")


def problem(
    code: ErrorCode,
    detail: str,
    *,
    next: str | None = None,  # noqa: A002  the problem's own field name
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> Response:
    status = STATUS[code]
    body = Problem(
        **(more or {}),
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        next=next or _NEXT.get(code),
        request_id=request_id,
    )
    sent = dict(headers or {})
    if status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    return Response(
        body.model_dump_json(exclude_none=True),
        status,
        headers=sent,
        media_type="application/problem+json",
    )


def documented(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        STATUS[code]: {
            "description": HTTPStatus(STATUS[code]).phrase,
            "content": {"application/problem+json": schema},
        }
        for code in codes
    }


def install(app: FastAPI) -> None:
    # Of both kinds at once, for which Starlette has no type: requests, and sockets before they open.
    app.add_exception_handler(Refused, cast("Any", _refused))
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    for error in (sqlite3.OperationalError, DatabaseError):
        app.add_exception_handler(error, _store_failed)


async def _refused(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, Refused)
    response = problem(
        error.code,
        error.detail,
        next=error.next,
        request_id=request_id_of(connection),
        headers=error.headers if isinstance(error, ApiError) else None,
        more=error.more,
    )
    if isinstance(connection, WebSocket):  # not accepted yet: its handshake fails with this answer
        await connection.send_denial_response(response)
        return None  # it was sent: what is returned would be sent a second time
    return response


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _OF_STATUS.get(error.status_code, ErrorCode.BAD_REQUEST)
    detail = _DETAIL.get(error.status_code, str(error.detail))
    return problem(code, detail, request_id=request_id_of(request), headers=error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    """Where the request does not fit its schema, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return problem(
            ErrorCode.BAD_REQUEST, "The body is not JSON.", request_id=request_id_of(request)
        )
    told = [
        f"{'.'.join(_plain(part) for part in one['loc'])}: {one['msg']}"
        for one in found[:_MAX_ERRORS]
    ]
    return problem(ErrorCode.INVALID, "; ".join(told), request_id=request_id_of(request))


def _store_failed(request: Request, error: Exception) -> Response:
    """A full disk, a lock that is held for long, or the end of the server."""
    logger.error("the store failed: %s", error, extra={"action": "serve"})
    detail = "The database cannot do this now."
    next_ = "Try again in a moment; if it stays, the backend's log says why."
    if is_full(error):
        detail = "The disk of the backend's database is full; nothing of this was kept."
        next_ = "Make room there, then send it again."
    return problem(ErrorCode.UNAVAILABLE, detail, next=next_, request_id=request_id_of(request))


def _plain(part: object) -> str:
    """A field's name as it can be sent: a caller may have made it up of anything."""
    return str(part)[:100].encode(errors="replace").decode()
