"""What the notifications `session/update` of the Agent Client Protocol mean. Pure."""

import re
from collections.abc import Collection, Iterator
from typing import Final

from cloudagent_daemon.drivers.base import SERVER, DriverEvent
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.drivers.values import (
    Json,
    as_object,
    as_objects,
    as_text,
    clipped,
    now,
    number,
    short,
)
from cloudagent_daemon.drivers.writing import Writing
from cloudagent_protocol.events import ToolCall, ToolResult, UnknownEvent, Usage

#: Calls that a program may begin without ever ending one, before the oldest are forgotten.
_MAX_CALLS: Final = 1_000
#: Told often, and of no use to us.
_IDLE: Final = frozenset(
    {
        "user_message_chunk",
        "agent_thought_chunk",
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
    }
)
#: How programs title a call of ours; only the beginning counts, what comes after is the model's.
#: `cloudagent_send_message`, `mcp__cloudagent__send_message`, `send_message (cloudagent MCP Server)`.
_OURS: Final = re.compile(
    rf"(?:mcp__?)?{SERVER}(?:__|_|/|\.)(\w+)(?![\w-])|(\w+) \({SERVER} MCP Server\)"
)


def our_tool(call: Json, names: Collection[str]) -> str | None:
    """Which of our own tools, of these names, a `toolCall` calls, if it does.

    The protocol names no tools: there is a title, for people, and a kind.
    """
    if call.get("kind") not in {None, "other"}:
        return None  # whatever it is called: the program knows that it is something else
    found = _OURS.match(as_text(call.get("title")))
    name = found and (found[1] or found[2])
    return name if name in names else None


class Updates:
    """The updates of one turn."""

    def __init__(self, our_names: Collection[str]) -> None:
        self._our_names = our_names
        self.writing = Writing()
        self._input_tokens = 0
        self._output_tokens = 0
        #: What is known of calls that are under way, and those of them that were told.
        self._calls: dict[str, Json] = {}
        self._told: set[str] = set()

    def receive(self, update: Json) -> Iterator[DriverEvent]:
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                self.count(as_object(as_object(update.get("_meta")).get("usage")))
                yield from self.writing.write(as_text(as_object(update.get("content")).get("text")))
            case "tool_call" | "tool_call_update":
                yield from self._tool(update)
            case "usage_update":
                pass  # of the session, not of the turn
            case str(kind) if kind not in _IDLE:
                rest = {key: value for key, value in update.items() if key != "sessionUpdate"}
                kept: Json = {"update": clipped(rest)}
                yield UnknownEvent(type=f"acp.{kind}"[:100], at=now(), **kept)
            case _:
                pass

    def count(self, usage: Json) -> None:
        """Adds the tokens of a request, or of the turn, in the words of the protocol's draft."""
        self._input_tokens += number(usage.get("inputTokens")) or 0
        self._output_tokens += number(usage.get("outputTokens")) or 0

    @property
    def usage(self) -> Usage | None:
        if not self._input_tokens and not self._output_tokens:
            return None
        return Usage(input_tokens=self._input_tokens, output_tokens=self._output_tokens)

    def call(self, said: Json) -> Json:
        """All that is known of a call, with what is said of it now."""
        call_id = short(said.get("toolCallId"))
        known = self._calls.pop(call_id, {})
        self._calls[call_id] = known = {**known, **{k: v for k, v in said.items() if v is not None}}
        if len(self._calls) > _MAX_CALLS:
            self._forget(next(iter(self._calls)))
        return known

    def _tool(self, said: Json) -> Iterator[DriverEvent]:
        call = self.call(said)
        status = call.get("status")
        if status != "pending" or call.get("rawInput"):
            yield from self.tell(call)
        if status in {"completed", "failed"}:
            output, truncated = clip(_output(call))
            yield ToolResult(
                at=now(),
                tool_call_id=short(call.get("toolCallId")),
                output=output,
                is_error=status == "failed",
                truncated=truncated,
            )
            self._forget(short(call.get("toolCallId")))

    def tell(self, call: Json) -> Iterator[DriverEvent]:
        """The call as an event, once: what a program writes before it has a block's end there."""
        call_id = short(call.get("toolCallId"))
        if call_id in self._told:
            return
        self._told.add(call_id)
        yield from self.writing.finish()
        ours = our_tool(call, self._our_names)
        name = f"mcp__{SERVER}__{ours}" if ours else as_text(call.get("title")) or call.get("kind")
        yield ToolCall(
            at=now(),
            tool_call_id=call_id,
            name=short(name) or "tool",
            input=clipped(as_object(call.get("rawInput"))),
        )

    def _forget(self, call_id: str) -> None:
        self._calls.pop(call_id, None)
        self._told.discard(call_id)


def _output(call: Json) -> str:
    """The text of a call's result; of a file's change the path."""
    parts = [_part(part) for part in as_objects(call.get("content"))]
    text = "\n".join(filter(None, parts))
    return (
        text
        or as_text(call.get("rawOutput"))
        or as_text(as_object(call.get("rawOutput")).get("output"))
    )


def _part(part: Json) -> str:
    match part.get("type"):
        case "content":
            content = as_object(part.get("content"))
            return as_text(content.get("text")) or f"[{short(content.get('type'))}]"
        case "diff":
            return f"[changed {as_text(part.get('path'))}]"
        case _:
            return f"[{short(part.get('type'))}]"
