"""Answers those who ask the running daemon (control.py); only the same user may."""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.to_thread import run_sync

from cloudagent_daemon.control import CHECK_S, SOCKET
from cloudagent_daemon.listening import serve
from cloudagent_daemon.sockets import clear, peer_of, place

logger = logging.getLogger(__name__)

#: How long somebody may take to put the question, and to read the answer.
PEER_S: Final = 5.0
MAX_QUESTION_BYTES: Final = 4_096
#: Connections at once; further ones are closed without a word.
MAX_OPEN: Final = 16

Answer = Callable[[], Awaitable[dict[str, Any]]]


class ControlServer:
    """The socket, and what is answered there.

    Args:
        answers: by verb. Each is asked by one at a time, and within `CHECK_S`.
        state_dir: where `control.ask` looks.
        runtime_dir: takes the socket if that path is too long for one.
    """

    def __init__(self, answers: Mapping[str, Answer], state_dir: Path, runtime_dir: Path) -> None:
        self._answers = answers
        self._turns = {verb: anyio.Lock() for verb in answers}
        self._state_dir = state_dir
        self._runtime_dir = runtime_dir
        self._open = 0

    async def serve(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listens until cancelled; ready once the socket is there."""
        path, pointer = await run_sync(place, SOCKET, self._state_dir, self._runtime_dir)
        try:
            async with await anyio.create_unix_listener(path, mode=0o600) as listener:
                task_status.started()
                await serve(listener, self._connected)
        finally:
            clear(path, pointer, self._state_dir, self._runtime_dir)

    async def _connected(self, stream: anyio.abc.SocketStream) -> None:
        self._open += 1
        try:
            async with stream:
                _, uid = peer_of(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 (no Django here)
                if uid == os.getuid() and self._open <= MAX_OPEN:
                    await self._serve(stream)
        finally:
            self._open -= 1

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        try:
            with anyio.fail_after(PEER_S):
                buffered = BufferedByteReceiveStream(stream)
                line = await buffered.receive_until(b"\n", MAX_QUESTION_BYTES)
            said = json.dumps(await self._answer(_verb(line)))
            with anyio.fail_after(PEER_S):
                await stream.send(said.encode() + b"\n")
        except (TimeoutError, anyio.IncompleteRead, anyio.DelimiterNotFound):
            logger.debug("somebody came and did not ask", extra={"action": "control"})
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("somebody asked and left", extra={"action": "control"})

    async def _answer(self, verb: str) -> dict[str, Any]:
        answer = self._answers.get(verb)
        if answer is None:
            return {"error": f"this daemon knows no {verb!r} (it knows {', '.join(self._answers)})"}
        try:
            with anyio.fail_after(CHECK_S):
                async with self._turns[verb]:
                    return {"answer": await answer()}
        except TimeoutError:
            return {"error": f"{verb} took more than {CHECK_S:g} s"}
        except Exception as error:
            # The edge of a request: a fault here must not end the daemon.
            logger.exception("%s failed", verb, extra={"action": "control"})
            return {"error": f"{verb} failed: {type(error).__name__}: {error}"}


def _verb(line: bytes) -> str:
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(cast("dict[str, Any]", said).get("ask", "")) if isinstance(said, dict) else ""
