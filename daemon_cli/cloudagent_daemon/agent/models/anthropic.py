"""Anthropic's Messages API, streaming. https://docs.anthropic.com/en/api/messages-streaming."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from cloudagent_daemon.agent.config import Config
from cloudagent_daemon.agent.errors import ModelError
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Entry,
    Picture,
    Results,
    Usage,
    User,
    encodable,
    parse_input,
    seen,
)
from cloudagent_daemon.agent.models.base import Reply, Request, Say, Stop
from cloudagent_daemon.agent.models.http import Client

_VERSION: Final = "2023-06-01"
_STOPS: Final[Mapping[str, Stop]] = {
    "tool_use": Stop.TOOLS,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.LENGTH,
    "refusal": Stop.REFUSAL,
}
#: Marks the end of what the service may keep, so that the next call need not read it again.
_CACHED: Final = {"cache_control": {"type": "ephemeral"}}


class AnthropicModel:
    def __init__(self, config: Config, name: str) -> None:
        service = config.anthropic
        headers = {"anthropic-version": _VERSION}
        if service.api_key:
            headers["x-api-key"] = service.api_key
        if service.auth_token:
            headers["authorization"] = f"Bearer {service.auth_token}"
        self.name = name
        self._max_tokens = config.max_output_tokens
        self._url = f"{service.base_url}/v1/messages"
        self._client = Client(headers, service.secrets)

    async def complete(self, request: Request, say: Say) -> Reply:
        reading = _Reading(say)
        async with (
            self._client.events(self._url, self._body(request)) as events,
            aclosing(events),
        ):
            await self._follow(events, reading)
        return reading.reply()

    async def _follow(self, events: AsyncGenerator[dict[str, Any]], reading: "_Reading") -> None:
        async for event in events:
            if event.get("type") == "error":
                raise self._client.failure(event.get("error"))
            try:
                reading.take(event)
            except (KeyError, TypeError, AttributeError) as error:
                detail = f"The service sent an event that cannot be read ({error!r})."
                raise ModelError("model_error", detail) from error

    async def aclose(self) -> None:
        await self._client.aclose()

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": self._max_tokens,
            "stream": True,
            "system": [{"type": "text", "text": request.system, **_CACHED}],
            "messages": _messages(request.history),
        }
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
                for tool in request.tools
            ]
        return body


class _Reading:
    """A reply as far as it has come."""

    def __init__(self, say: Say) -> None:
        self._say = say
        #: By the service's own index: texts, and calls with their arguments as they grow.
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._usage: dict[str, int] = {}
        self._stop: str | None = None
        self._whole = False

    def take(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._count(event["message"].get("usage"))
            case "content_block_start":
                self._begin(event["index"], event["content_block"])
            case "content_block_delta":
                self._extend(event["index"], event["delta"])
            case "message_delta":
                self._stop = event["delta"].get("stop_reason") or self._stop
                self._count(event.get("usage"))
            case "message_stop":
                self._whole = True
            case _:
                pass  # pings, and what newer versions may send

    def reply(self) -> Reply:
        if not self._whole:
            raise ModelError("connection", "The model's answer broke off before its end.")
        texts = tuple(encodable("".join(parts)) for parts in self._texts.values())
        stop = _STOPS.get(self._stop or "", Stop.END)
        message = Assistant("\n\n".join(filter(None, texts)), tuple(self._parsed_calls()))
        usage = Usage(
            sum(self._usage.get(name, 0) for name in _INPUT), self._usage.get("output_tokens", 0)
        )
        return Reply(texts, message, stop, usage)

    def _begin(self, index: int, block: dict[str, Any]) -> None:
        if block["type"] == "text":
            self._texts[index] = []
            self._add_text(index, block.get("text") or "")
        elif block["type"] == "tool_use":
            self._calls[index] = (block["id"], block["name"], [])

    def _extend(self, index: int, delta: dict[str, Any]) -> None:
        if delta["type"] == "text_delta" and index in self._texts:
            self._add_text(index, delta["text"])
        elif delta["type"] == "input_json_delta" and index in self._calls:
            self._calls[index][2].append(delta["partial_json"])

    def _add_text(self, index: int, text: str) -> None:
        if text:
            self._texts[index].append(text)
            self._say(list(self._texts).index(index), text)

    def _count(self, usage: dict[str, Any] | None) -> None:
        for name, value in (usage or {}).items():
            if isinstance(value, int):
                self._usage[name] = value

    def _parsed_calls(self) -> list[Call]:
        calls: list[Call] = []
        for call_id, name, parts in self._calls.values():
            arguments, problem = parse_input("".join(parts))
            calls.append(Call(call_id, name, arguments, problem))
        return calls


#: Cached tokens are read as well, only cheaper.
_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _messages(history: Sequence[Entry]) -> list[dict[str, Any]]:
    messages = [_message(entry) for entry in history]
    if messages:
        messages[-1]["content"][-1] |= _CACHED
    return messages


def _picture(picture: Picture) -> dict[str, Any]:
    source = {"type": "base64", "media_type": picture.media_type, "data": picture.data}
    return {"type": "image", "source": source}


def _message(entry: Entry) -> dict[str, Any]:
    match entry:
        case User():
            text = {"type": "text", "text": entry.text}
            return {"role": "user", "content": [*map(_picture, seen(entry)), text]}
        case Assistant():
            content: list[dict[str, Any]] = []
            if entry.text:
                content.append({"type": "text", "text": entry.text})
            content += [
                {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}
                for call in entry.calls
            ]
            return {"role": "assistant", "content": content}
        case Results():
            content = [
                {
                    "type": "tool_result",
                    "tool_use_id": result.call_id,
                    "content": result.output or "(empty)",
                    "is_error": result.is_error,
                }
                for result in entry.results
            ]
            return {"role": "user", "content": content}
