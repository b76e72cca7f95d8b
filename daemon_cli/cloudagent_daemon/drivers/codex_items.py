"""What codex's app-server tells of a turn: items, pieces of text, tokens, errors. Pure."""

from collections.abc import Iterator
from typing import Any, Final

from cloudagent_daemon.drivers.base import DriverEvent
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.drivers.statuses import by_status
from cloudagent_daemon.drivers.values import (
    Json,
    as_object,
    as_objects,
    as_text,
    clipped,
    now,
    number,
    plain,
    short,
)
from cloudagent_daemon.drivers.writing import Writing
from cloudagent_protocol.events import Reason, Retry, ToolCall, ToolResult, UnknownEvent, Usage

#: Items that are no acts: what was said to it, and what it thinks.
_IDLE: Final = frozenset({"userMessage", "reasoning", "plan", "hookPrompt", "contextCompaction"})
#: Calls that may be under way at once, before the oldest are forgotten.
_MAX_CALLS: Final = 1_000
_BY_INFO: Final = {
    "unauthorized": Reason.AUTHENTICATION,
    "contextWindowExceeded": Reason.CONTEXT_OVERFLOW,
    "usageLimitExceeded": Reason.RATE_LIMIT,
    "rateLimitExceeded": Reason.RATE_LIMIT,
    "sessionBudgetExceeded": Reason.BILLING,
    "serverOverloaded": Reason.OVERLOADED,
    "internalServerError": Reason.SERVER_ERROR,
    "badRequest": Reason.INVALID_REQUEST,
    "modelNotFound": Reason.INVALID_REQUEST,
}


class Items:
    """The notifications of one turn."""

    def __init__(self) -> None:
        self.writing = Writing()
        self.usage: Usage | None = None
        self._told: dict[str, None] = {}
        self._retries = 0

    def receive(self, method: str, params: Json) -> Iterator[DriverEvent]:
        match method:
            case "item/agentMessage/delta":
                yield from self.writing.write(as_text(params.get("delta")))
            case "item/started":
                yield from self._began(as_object(params.get("item")))
            case "item/completed":
                yield from self._ended(as_object(params.get("item")))
            case "thread/tokenUsage/updated":
                self._count(as_object(as_object(params.get("tokenUsage")).get("last")))
            case "error" if params.get("willRetry") is True:
                self._retries += 1
                error = as_object(params.get("error"))
                detail = clip(as_text(error.get("message")), 500)[0]
                yield Retry(at=now(), attempt=self._retries, reason=reason(error), detail=detail)
            case _:
                pass

    def _began(self, item: Json) -> Iterator[DriverEvent]:
        kind = as_text(item.get("type"))
        if kind == "agentMessage" or kind in _IDLE:
            return
        yield from self.writing.finish()
        if (call := _called(kind, item)) is None:
            return
        name, given = call
        self._told[short(item.get("id"))] = None
        if len(self._told) > _MAX_CALLS:
            del self._told[next(iter(self._told))]
        yield ToolCall(
            at=now(),
            tool_call_id=short(item.get("id")),
            name=short(name) or kind,
            input=clipped(given),
        )

    def _ended(self, item: Json) -> Iterator[DriverEvent]:
        kind = as_text(item.get("type"))
        if kind == "agentMessage":
            yield from self.writing.finish(as_text(item.get("text")))
            return
        if kind in _IDLE:
            return
        if _called(kind, item) is None:
            yield UnknownEvent(type=f"codex.{kind}"[:100], at=now(), **_kept(item))
            return
        item_id = short(item.get("id"))
        if item_id not in self._told:
            yield from self._began(item)
        self._told.pop(item_id, None)
        output, truncated = clip(_output(kind, item))
        yield ToolResult(
            at=now(),
            tool_call_id=item_id,
            output=output,
            is_error=item.get("status") in {"failed", "declined"} or item.get("error") is not None,
            truncated=truncated,
        )

    def _count(self, last: Json) -> None:
        """Adds the tokens of a request; those that were cached are among the input's."""
        before = self.usage or Usage()
        self.usage = Usage(
            input_tokens=before.input_tokens + (number(last.get("inputTokens")) or 0),
            output_tokens=before.output_tokens + (number(last.get("outputTokens")) or 0),
        )


def reason(error: Json) -> Reason:
    """Of a `TurnError`, by its `codexErrorInfo`: a word, or a kind of failure with its HTTP status."""
    info: Any = error.get("codexErrorInfo")
    if isinstance(info, str):
        return _BY_INFO.get(info, Reason.MODEL_ERROR)
    for kind, told in as_object(info).items():
        status = number(as_object(told).get("httpStatusCode"))
        if found := by_status(status):
            return found
        if status is None and kind in {"httpConnectionFailed", "responseStreamConnectionFailed"}:
            return Reason.CONNECTION
    return Reason.MODEL_ERROR


def _called(kind: str, item: Json) -> tuple[str, Json] | None:
    """The name and the input of an item that is a call; None if it is none that is known."""
    match kind:
        case "commandExecution":
            return "shell", {"command": item.get("command"), "cwd": item.get("cwd")}
        case "fileChange":
            paths = [as_text(change.get("path")) for change in as_objects(item.get("changes"))]
            return "edit", {"paths": paths}
        case "mcpToolCall":
            name = f"mcp__{as_text(item.get('server'))}__{as_text(item.get('tool'))}"
            return name, as_object(item.get("arguments"))
        case "dynamicToolCall":
            return as_text(item.get("tool")), as_object(item.get("arguments"))
        case "webSearch":
            return "web_search", {"query": item.get("query")}
        case _:
            return None


def _output(kind: str, item: Json) -> str:
    match kind:
        case "commandExecution":
            return as_text(item.get("aggregatedOutput"))
        case "mcpToolCall" if item.get("error") is not None:
            return as_text(as_object(item.get("error")).get("message"))
        case "mcpToolCall":
            return plain(as_object(item.get("result")).get("content"))
        case "fileChange":
            return as_text(item.get("status"))
        case _:
            return ""


def _kept(item: Json) -> Json:
    return {"item": clipped(item)}
