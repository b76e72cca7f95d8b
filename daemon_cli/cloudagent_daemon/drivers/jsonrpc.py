"""JSON-RPC 2.0 without I/O, for drivers: requests out, answers to what follows them.

Whoever receives lines hands each answer to `settle`; what belongs to no request is dropped.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cloudagent_daemon.drivers.base import DriverEvent, Say
from cloudagent_daemon.drivers.values import Json, as_object

METHOD_NOT_FOUND: Final = -32601


@dataclass(frozen=True)
class Answer:
    """What came of a request: `error` is None if it went well."""

    result: Json = field(default_factory=dict[str, Any])
    error: Json | None = None


Then: TypeAlias = Callable[[Answer], Iterable[DriverEvent]]


class Calls:
    """The requests that wait for their answers.

    Args:
        version: the field `jsonrpc` of what is written; None leaves it out, as codex does.
    """

    def __init__(self, version: str | None = "2.0") -> None:
        self._base: Json = {"jsonrpc": version} if version else {}
        self._last = 0
        self._waiting: dict[int, Then] = {}

    def request(self, method: str, params: Json, then: Then) -> Say:
        """A request; `then` gives what follows its answer."""
        self._last += 1
        self._waiting[self._last] = then
        return self._line({"id": self._last, "method": method, "params": params})

    def notify(self, method: str, params: Json | None = None) -> Say:
        return self._line({"method": method, **({"params": params} if params is not None else {})})

    def answer(self, request_id: Any, result: Json) -> Say:
        return self._line({"id": request_id, "result": result})

    def refuse(self, request_id: Any, method: str) -> Say:
        """The answer to a method that we do not have; a peer that gets none would wait for ever."""
        error = {"code": METHOD_NOT_FOUND, "message": f"cloudagent has no {method}"}
        return self._line({"id": request_id, "error": error})

    def settle(self, message: Json) -> Iterable[DriverEvent]:
        """What follows the answer that `message` is."""
        number = message.get("id")
        then = self._waiting.pop(number, None) if isinstance(number, int) else None
        if then is None:
            return ()
        if message.get("error") is not None:
            return then(Answer(error=as_object(message["error"])))
        return then(Answer(as_object(message.get("result"))))

    def _line(self, message: Json) -> Say:
        # ASCII: a lone surrogate of a prompt must not make the line unwritable.
        return Say(json.dumps({**self._base, **message}).encode("ascii") + b"\n")
