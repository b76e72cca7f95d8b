"""OpenAI's chat completions, streaming, as many other servers speak them too.

https://platform.openai.com/docs/api-reference/chat-streaming. Read leniently: servers leave out
indexes, ids, usage and the closing `[DONE]`; what none may leave out is the `finish_reason`.
"""

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final
from uuid import uuid4

from cloudagent_daemon.agent.config import Config
from cloudagent_daemon.agent.errors import ModelError
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Entry,
    Results,
    Usage,
    User,
    encodable,
    parse_input,
    seen,
)
from cloudagent_daemon.agent.models.base import Reply, Request, Say, Stop
from cloudagent_daemon.agent.models.http import Client

_STOPS: Final[Mapping[str, Stop]] = {
    "tool_calls": Stop.TOOLS,
    "length": Stop.LENGTH,
    "content_filter": Stop.REFUSAL,
}


class OpenAIModel:
    def __init__(self, config: Config, name: str) -> None:
        service = config.openai
        headers = {"authorization": f"Bearer {service.api_key}"} if service.api_key else {}
        self.name = name
        self._url = f"{service.base_url}/chat/completions"
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
        async for chunk in events:
            if error := chunk.get("error"):
                raise self._client.failure(error)
            try:
                reading.take(chunk)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                detail = f"The service sent a chunk that cannot be read ({error!r})."
                raise ModelError("model_error", detail) from error

    async def aclose(self) -> None:
        await self._client.aclose()

    def _body(self, request: Request) -> dict[str, Any]:
        system = {"role": "system", "content": request.system}
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [system, *_messages(request.history)],
        }
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.schema,
                    },
                }
                for tool in request.tools
            ]
        return body


class _Reading:
    """A reply as far as it has come."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._text: list[str] = []
        self._calls: dict[int, _GrowingCall] = {}
        self._usage = Usage()
        self._stop: str | None = None
        self._refused = False

    def take(self, chunk: dict[str, Any]) -> None:
        if usage := chunk.get("usage"):
            self._usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])
        choices: list[dict[str, Any]] = chunk.get("choices") or []
        for choice in choices[:1]:
            delta: dict[str, Any] = choice.get("delta") or {}
            self._refused |= bool(delta.get("refusal"))
            if text := (delta.get("content") or delta.get("refusal")):
                self._text.append(text)
                self._say(0, text)
            calls: list[dict[str, Any]] = delta.get("tool_calls") or []
            for call in calls:
                self._grow(call)
            self._stop = choice.get("finish_reason") or self._stop

    def reply(self) -> Reply:
        if self._stop is None:
            raise ModelError("connection", "The model's answer broke off before its end.")
        text = encodable("".join(self._text))
        message = Assistant(text, tuple(self._parsed_calls()))
        stop = Stop.REFUSAL if self._refused else _STOPS.get(self._stop, Stop.END)
        return Reply((text,) if text else (), message, stop, self._usage)

    def _grow(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if index is None:  # then a new id begins a new call
            last = len(self._calls) - 1
            index = last if last >= 0 and not piece.get("id") else last + 1
        call = self._calls.setdefault(index, _GrowingCall())
        function: dict[str, Any] = piece.get("function") or {}
        call.id = piece.get("id") or call.id
        call.name = function.get("name") or call.name
        call.arguments.append(function.get("arguments") or "")

    def _parsed_calls(self) -> Iterable[Call]:
        seen: set[str] = set()
        for growing in self._calls.values():
            arguments, problem = parse_input("".join(growing.arguments))
            # Some servers call every call alike, or nothing.
            call_id = growing.id if growing.id not in seen | {""} else f"call_{uuid4().hex[:20]}"
            seen.add(call_id)
            yield Call(call_id, growing.name, arguments, problem)


class _GrowingCall:
    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


def _messages(history: Iterable[Entry]) -> Iterable[dict[str, Any]]:
    for entry in history:
        match entry:
            case User():
                yield {"role": "user", "content": _content(entry)}
            case Assistant():
                yield _assistant(entry)
            case Results():
                for result in entry.results:
                    output = result.output or "(empty)"
                    # This API has no flag for a failed call.
                    output = f"Error: {output}" if result.is_error else output
                    yield {"role": "tool", "tool_call_id": result.call_id, "content": output}


def _content(entry: User) -> str | list[dict[str, Any]]:
    pictures = [
        {"type": "image_url", "image_url": {"url": f"data:{one.media_type};base64,{one.data}"}}
        for one in seen(entry)
    ]
    # Plain without: not every server takes a list.
    return [{"type": "text", "text": entry.text}, *pictures] if pictures else entry.text


def _assistant(entry: Assistant) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": entry.text or None}
    if entry.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input)},
            }
            for call in entry.calls
        ]
    return message
