"""What the loop does, in the words of `session/update`. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from cloudagent_daemon.agent.acp.peer import Json
from cloudagent_daemon.agent.history import Assistant, Entry, Results, User

#: Of our own tools; what an MCP server's do is not known.
_KINDS: Final = {"read_file": "read", "list_files": "search", "search_files": "search"}


class Telling:
    """The events of one turn.

    The protocol knows chunks that are added to each other and no corrections: text of an attempt
    that broke off stays, with a word on it, and the next attempt's follows.

    Args:
        titles: how calls of these tools are titled; others by their name.
    """

    def __init__(self, titles: dict[str, str]) -> None:
        self._titles = titles
        #: The block that was last written of (-1: none was); whether its end is still to come.
        self._block = -1
        self._unfinished = False

    def tell(self, event: Json) -> Iterator[Json]:
        """The updates that an event of the loop comes to."""
        match event:
            case {"type": "delta", "block": int(block), "text": str(text)}:
                yield from self._write(block, text)
            case {"type": "text", "block": int(block), "text": str(text)}:
                if block != self._block:  # a model that does not write piece by piece
                    yield from self._write(block, text)
                self._unfinished = False
            case {"type": "tool_call", "name": str(name)}:
                yield call(event, self._titles, "in_progress" if name in _KINDS else "pending")
            case {"type": "tool_result"}:
                yield result(event)
            case {"type": "retry", "reason": str(reason), "delay_s": float(delay_s)}:
                yield thought(f"[{reason}: asking the model again in {delay_s:.1f} s]\n")
                if self._unfinished:
                    yield chunk("\n[This answer broke off; it follows anew.]")
                    self._block = -2
            case _:
                pass

    def _write(self, block: int, text: str) -> Iterator[Json]:
        between = "\n\n" if self._block not in {-1, block} else ""
        self._block, self._unfinished = block, True
        yield chunk(between + text)


def replayed(history: Iterable[Entry], titles: dict[str, str]) -> Iterator[Json]:
    """A session's history, told to an editor that loads it."""
    for entry in history:
        match entry:
            case User():
                yield chunk(entry.text, "user_message_chunk")
            case Assistant():
                if entry.text:
                    yield chunk(entry.text)
                for one in entry.calls:
                    yield call(vars(one), titles, "in_progress")
            case Results():
                for one in entry.results:
                    yield result({"id": one.call_id, **vars(one)})


def chunk(text: str, kind: str = "agent_message_chunk") -> Json:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}}


def thought(text: str) -> Json:
    return chunk(text, "agent_thought_chunk")


def call(event: Json, titles: dict[str, str], status: str) -> Json:
    name: str = event["name"]
    return {
        "sessionUpdate": "tool_call",
        "toolCallId": event["id"],
        "title": titles.get(name, name),
        "kind": _KINDS.get(name, "other"),
        "status": status,
        "rawInput": event["input"],
    }


def progress(call_id: str) -> Json:
    return {"sessionUpdate": "tool_call_update", "toolCallId": call_id, "status": "in_progress"}


def result(event: dict[str, Any]) -> Json:
    text = {"type": "text", "text": event["output"]}
    return {
        "sessionUpdate": "tool_call_update",
        "toolCallId": event["id"],
        "status": "failed" if event["is_error"] else "completed",
        "content": [{"type": "content", "content": text}],
    }
