"""JSON-RPC 2.0 with whoever holds the other end of standard input and output, one message per line."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import anyio
import anyio.abc
import anyio.to_thread

Json: TypeAlias = dict[str, Any]
#: Answers a request, or takes a notification (its answer goes nowhere).
Handler: TypeAlias = Callable[[Json], Awaitable[Json]]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL: Final = -32603
#: Bytes of one message; an editor that sends a longer one is not understood from there on.
MAX_LINE_BYTES: Final = 64 * 1_048_576


class RefusedError(Exception):
    """A request cannot be done, by us or by the other side; `str()` says why.

    Attributes:
        code: JSON-RPC's, or the protocol's own.
        data: more of it, for a program.
    """

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Peer:
    """Both directions. Only one task may `serve`; everything else may be called from any."""

    def __init__(self) -> None:
        self._last = 0
        #: Of the requests that we made: set with its answer.
        self._waiting: dict[int, tuple[anyio.Event, list[Json]]] = {}

    async def serve(self, handlers: Mapping[str, Handler]) -> None:
        """Until the other side ends its output; requests are answered side by side."""
        async with anyio.create_task_group() as tasks:
            while line := await _read_line():
                if line.strip():
                    self._take(line, handlers, tasks)
            tasks.cancel_scope.cancel()

    async def request(self, method: str, params: Json) -> Json:
        """Asks the other side and waits for its answer, for as long as it takes.

        Raises:
            RefusedError: it will not.
        """
        self._last += 1
        number, answered, slot = self._last, anyio.Event(), list[Json]()
        self._waiting[number] = answered, slot
        try:
            self._write({"id": number, "method": method, "params": params})
            await answered.wait()
        finally:
            self._waiting.pop(number, None)
        if error := slot[0].get("error"):
            raise RefusedError(error.get("code", INTERNAL), str(error.get("message", "refused")))
        result = slot[0].get("result")
        return cast("Json", result) if isinstance(result, dict) else {}

    def notify(self, method: str, params: Json) -> None:
        self._write({"method": method, "params": params})

    def _take(
        self, line: bytes, handlers: Mapping[str, Handler], tasks: anyio.abc.TaskGroup
    ) -> None:
        try:
            message: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._refuse(None, RefusedError(PARSE_ERROR, f"not JSON: {error}"))
            return
        match message:
            case {"method": str(method), "id": (str() | int()) as number}:
                tasks.start_soon(self._answer, number, handlers.get(method), message)
            case {"method": str(method)}:
                if handler := handlers.get(method):
                    tasks.start_soon(self._heed, handler, message)
            case {"id": int(number)} if waiting := self._waiting.get(number):
                waiting[1].append(cast("Json", message))
                waiting[0].set()
            case {"id": _}:
                pass  # the answer to a request that was given up
            case _:
                self._refuse(None, RefusedError(INVALID_REQUEST, "not a JSON-RPC message"))

    async def _answer(self, number: str | int, handler: Handler | None, message: Json) -> None:
        if handler is None:
            why = f"cloudagent has no {message['method']}"
            self._refuse(number, RefusedError(METHOD_NOT_FOUND, why))
            return
        try:
            self._write({"id": number, "result": await handler(_params(message))})
        except RefusedError as error:
            self._refuse(number, error)

    async def _heed(self, handler: Handler, message: Json) -> None:
        # Nobody reads why a notification could not be heeded.
        try:
            await handler(_params(message))
        except RefusedError as error:
            sys.stderr.write(f"cloudagent: {message['method']}: {error}\n")

    def _refuse(self, number: str | int | None, error: RefusedError) -> None:
        said: Json = {"code": error.code, "message": str(error)}
        self._write({"id": number, "error": said | ({"data": error.data} if error.data else {})})

    def _write(self, message: Json) -> None:
        """Waits if nobody reads: there is nothing better to do for an editor that does not."""
        line = json.dumps({"jsonrpc": "2.0", **message}).encode("ascii")
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()


def _params(message: Json) -> Json:
    params = message.get("params")
    return cast("Json", params) if isinstance(params, dict) else {}


async def _read_line() -> bytes:
    """The next line; empty at the end, and for one that is too long to be waited for."""
    line = await anyio.to_thread.run_sync(
        sys.stdin.buffer.readline, MAX_LINE_BYTES, abandon_on_cancel=True
    )
    if len(line) == MAX_LINE_BYTES:
        sys.stderr.write(f"cloudagent: a message of more than {MAX_LINE_BYTES:,} bytes\n")
        return b""
    return line
