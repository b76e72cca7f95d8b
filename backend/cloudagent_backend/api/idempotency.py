"""`Idempotency-Key`: a POST that is sent again is answered again, and done once.

The answer is kept in the very transaction that does the work, so there is no moment at which one
exists without the other, and a second request that comes meanwhile simply waits for the first.
An answer that shows a secret once is not kept: sent again, the request is a conflict, which says
how to get another secret. Requests that end in an error are not kept either; they may be retried.
Routes under /v1/auth ignore the header: nobody is known yet who could own the key.
"""

import hashlib
import sqlite3
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, Header
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.store import idempotency
from cloudagent_backend.store.idempotency import Answer
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import UserId

T = TypeVar("T")


class _Answered(Exception):  # noqa: N818  it is no error, the caller gets the first answer
    """The request was done before; nothing was done now."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class DoneOnce:
    """Makes one request's work happen once, if the request has a key."""

    def __init__(self, user_id: UserId, key: str | None, request_hash: bytes, status: int) -> None:
        self._user_id = user_id
        self._key = key
        self._request_hash = request_hash
        self._status = status

    def __call__(
        self,
        work: Callable[[sqlite3.Connection], T],
        show: Callable[[T], BaseModel],
        *,
        secret: bool = False,
    ) -> Callable[[sqlite3.Connection], T]:
        """`work`, to be given to `Database.write`; `show` gives the answer that is kept.

        The returned function raises what the application answers with if it was done before.
        """
        key = self._key
        if key is None:
            return work

        def once(c: sqlite3.Connection) -> T:
            if known := idempotency.find(c, self._user_id, key):
                self._answer_again(known)
            done = work(c)
            body = None if secret else show(done).model_dump_json()
            answer = Answer(self._request_hash, self._status, body)
            idempotency.keep(c, self._user_id, key, answer)
            return done

        return once

    def before(self, c: sqlite3.Connection) -> None:
        """For what is done outside of a transaction: raises what `once` would, if it was done before."""
        if self._key is not None and (known := idempotency.find(c, self._user_id, self._key)):
            self._answer_again(known)

    def _answer_again(self, known: Answer) -> None:
        if known.request_hash != self._request_hash:
            raise ApiError(
                ErrorCode.IDEMPOTENCY_MISMATCH,
                "This Idempotency-Key was used for another request.",
                next="Use a new key for each new request.",
            )
        if known.body is None:
            raise ApiError(
                ErrorCode.CONFLICT,
                "This was done before, and its secret is shown only once.",
                next="Rotate the host's key, or delete the token and make a new one.",
            )
        raise _Answered(known)


async def _done_once(
    request: Request,
    user: CurrentUser,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Sent again within a day, the request is answered again and done once.",
        ),
    ] = None,
) -> DoneOnce:
    said = f"{request.method} {request.url.path}\n".encode() + await request.body()
    status: int = request.scope["route"].status_code or 200
    return DoneOnce(user.user_id, idempotency_key, hashlib.sha256(said).digest(), status)


Once = Annotated[DoneOnce, Depends(_done_once)]


def install(app: FastAPI) -> None:
    app.add_exception_handler(_Answered, _again)


async def _again(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Answered)
    return Response(
        error.answer.body,
        error.answer.status,
        headers={"Idempotency-Replayed": "true"},
        media_type="application/json",
    )
