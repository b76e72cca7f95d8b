"""The clients of both model APIs, against servers on loopback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from cloudagent_daemon.agent.config import Config, read
from cloudagent_daemon.agent.errors import ModelError
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Picture,
    Result,
    Results,
    User,
)
from cloudagent_daemon.agent.models.anthropic import AnthropicModel
from cloudagent_daemon.agent.models.base import Model, Reply, Request, Stop
from cloudagent_daemon.agent.models.openai import OpenAIModel
from cloudagent_daemon.agent.tools.base import ToolSpec
from fakes.canned import Canned, canned_server, refusal, sse
from fakes.model import StubModel

TOOL = ToolSpec("send_message", "Send.", {"type": "object", "properties": {}})
KEY = "test-key-0123456789"
BOTH = pytest.mark.parametrize("make", [AnthropicModel, OpenAIModel])
Make = Callable[[Config, str], Model]


def config_for(url: str) -> Config:
    return read(
        {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": KEY,
        }
    )


async def ask(make: Make, url: str, *history: Any) -> tuple[Reply, list[tuple[int, str]]]:
    said: list[tuple[int, str]] = []
    model = make(config_for(url), "some-model")
    try:
        request = Request("Be kind.", history or (User("hi"),), [TOOL])
        reply = await model.complete(request, lambda block, text: said.append((block, text)))
    finally:
        await model.aclose()
    return reply, said


async def failing(make: Make, answer: Canned) -> ModelError:
    async with canned_server(answer) as server:
        with pytest.raises(ModelError) as caught:
            await ask(make, server.url)
    return caught.value


SHOWN = User(
    "look", (Picture(Path("a.png"), "image/png", "QQ=="), Picture(Path("gone.png"), "image/png"))
)


# --- both, against the scripted service ---


@BOTH
async def test_text_streams_piece_by_piece(make: Make) -> None:
    with StubModel() as stub:
        reply, said = await ask(make, stub.url, User("@@say hello world\n@@stream 4"))
    assert len(said) == 4
    assert {block for block, _ in said} == {0}
    assert reply.texts == ("hello world",) == ("".join(text for _, text in said),)
    assert (reply.stop, reply.message.calls) == (Stop.END, ())
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (10, 5)


@BOTH
async def test_the_first_piece_waits_for_nothing_and_the_second_for_the_gap(make: Make) -> None:
    first, said = anyio.Event(), list[str]()

    def on_text(_: int, text: str) -> None:
        said.append(text)
        first.set()

    with StubModel() as stub:
        model = make(config_for(stub.url), "some-model")
        request = Request("Be kind.", (User("@@say ab\n@@stream 2 600"),), [TOOL])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.complete, request, on_text)
            with anyio.fail_after(20):
                await first.wait()
            tasks.cancel_scope.cancel()
        await model.aclose()
    assert said == ["a"]


@BOTH
async def test_a_tool_call_comes_back_with_its_arguments(make: Make) -> None:
    with StubModel() as stub:
        script = '@@say look\n@@call send_message {"text": "hé"}'
        reply, _ = await ask(make, stub.url, User(script))
    (call,) = reply.message.calls
    assert (call.name, call.input, call.problem) == ("send_message", {"text": "hé"}, None)
    assert reply.message.text == "look"
    assert reply.stop is Stop.TOOLS


@BOTH
async def test_the_service_understands_a_history_with_calls_and_results(make: Make) -> None:
    history = (
        User("earlier"),
        Assistant("(early answer)"),
        User("@@call send_message {}\n@@recall"),
        Assistant("", (Call("call_1", "send_message", {"text": "x"}),)),
        Results((Result("call_1", "Sent.", is_error=True),)),
    )
    with StubModel() as stub:
        reply, _ = await ask(make, stub.url, *history)
    assert reply.message.text == "earlier"


@BOTH
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "invalid_request"),
        (401, "authentication"),
        (402, "billing"),
        (403, "authentication"),
        (404, "invalid_request"),
        (413, "context_overflow"),
        (429, "rate_limit"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "overloaded"),
        (529, "overloaded"),
    ],
)
async def test_each_refusal_has_its_reason(make: Make, status: int, reason: str) -> None:
    assert (await failing(make, Canned("no JSON", status))).reason == reason


@BOTH
async def test_the_services_own_error_type_is_finer_than_its_status(make: Make) -> None:
    overflow = {"code": "context_length_exceeded", "message": "too long"}
    assert (await failing(make, refusal(400, overflow))).reason == "context_overflow"
    quota = {"code": "insufficient_quota", "type": "insufficient_quota", "message": "pay"}
    assert (await failing(make, refusal(429, quota))).reason == "billing"
    long = {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8"}
    assert (await failing(make, refusal(400, long))).reason == "context_overflow"


@BOTH
async def test_the_wait_that_a_service_asks_for_is_passed_on(make: Make) -> None:
    error = await failing(make, refusal(429, {"message": "slow"}, retry_after="7.5"))
    assert error.retry_after_s == 7.5
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert (await failing(make, refusal(429, {}, retry_after=date))).retry_after_s == 0
    assert (await failing(make, refusal(429, {}, retry_after="soon"))).retry_after_s is None


@BOTH
async def test_an_error_text_never_shows_the_key(make: Make) -> None:
    error = await failing(make, refusal(401, {"message": f"bad key {KEY}"}))
    assert KEY not in str(error)
    assert "bad key" in str(error)


@BOTH
async def test_odd_error_bodies_are_errors_all_the_same(make: Make) -> None:
    for body in ("[]", '{"error": "plain"}', '{"error": []}', "<html>", ""):
        assert (await failing(make, Canned(body, 500))).reason == "server_error"


@BOTH
async def test_a_service_that_is_not_there_is_a_connection_failure(make: Make) -> None:
    with pytest.raises(ModelError) as caught:
        await ask(make, "http://127.0.0.1:9")
    assert caught.value.reason == "connection"
    assert "127.0.0.1:9" in str(caught.value)


@BOTH
async def test_an_answer_that_is_no_stream_is_a_connection_failure(make: Make) -> None:
    page = Canned("<html>", headers={"content-type": "text/html"})
    assert (await failing(make, page)).reason == "connection"
    assert (await failing(make, sse("{not json"))).reason == "connection"


# --- Anthropic's ---


def anthropic(*events: dict[str, Any], **how: Any) -> Canned:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3}}}
    return sse(start, *events, **how)


def text_block(text: str, index: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "type": "content_block_start",
            "index": index,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": index,
            "delta": {"type": "text_delta", "text": text},
        },
        {"type": "content_block_stop", "index": index},
    ]


def tool_block(arguments: str, index: int = 0) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": "toolu_1", "name": "send_message", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": arguments}
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]


def stopped(reason: str) -> list[dict[str, Any]]:
    delta = {"type": "message_delta", "delta": {"stop_reason": reason}}
    return [delta | {"usage": {"output_tokens": 9}}, {"type": "message_stop"}]


async def test_anthropic_is_asked_as_its_api_wants() -> None:
    answer = anthropic(*text_block("ok"), *stopped("end_turn"))
    async with canned_server(answer) as server:
        await ask(AnthropicModel, server.url)
    (request,) = server.requests
    assert request["path"] == "/v1/messages"
    assert request["headers"]["x-api-key"] == KEY
    assert request["headers"]["anthropic-version"] == "2023-06-01"
    assert request["body"]["stream"] is True
    assert request["body"]["max_tokens"] == 16_000
    assert request["body"]["system"][0]["text"] == "Be kind."
    assert request["body"]["tools"][0]["input_schema"] == TOOL.schema


async def test_anthropic_is_shown_a_picture_before_the_words_and_none_that_is_gone() -> None:
    answer = anthropic(*text_block("ok"), *stopped("end_turn"))
    async with canned_server(answer) as server:
        await ask(AnthropicModel, server.url, SHOWN)
    [message] = server.requests[0]["body"]["messages"]
    source = {"type": "base64", "media_type": "image/png", "data": "QQ=="}
    image, text = message["content"]
    assert image == {"type": "image", "source": source}
    assert text["text"] == "look"


async def test_a_bearer_token_may_stand_in_for_the_key() -> None:
    async with canned_server(anthropic(*text_block("ok"), *stopped("end_turn"))) as server:
        config = read({"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_AUTH_TOKEN": "tok"})
        model = AnthropicModel(config, "m")
        await model.complete(Request("s", [User("hi")], []), lambda block, text: None)
        await model.aclose()
    headers = server.requests[0]["headers"]
    assert headers["authorization"] == "Bearer tok"
    assert "x-api-key" not in headers


@pytest.mark.parametrize("cut", [False, True])
async def test_an_anthropic_stream_without_its_end_is_no_answer(cut: bool) -> None:
    error = await failing(AnthropicModel, anthropic(*text_block("half an ans"), cut=cut))
    assert error.reason == "connection"


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", Stop.END),
        ("stop_sequence", Stop.END),
        ("max_tokens", Stop.LENGTH),
        ("refusal", Stop.REFUSAL),
        ("a_new_one", Stop.END),
    ],
)
async def test_anthropics_stop_reasons(reason: str, stop: Stop) -> None:
    async with canned_server(anthropic(*text_block("x"), *stopped(reason))) as server:
        reply, _ = await ask(AnthropicModel, server.url)
    assert reply.stop is stop
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 9)


async def test_two_text_blocks_are_two_and_unknown_ones_are_skipped() -> None:
    thinking = {"type": "thinking", "thinking": ""}
    events = [
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": thinking},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta"}},
        *text_block("one", 1),
        *text_block("two", 2),
        {"type": "from_the_future"},
    ]
    async with canned_server(anthropic(*events, *stopped("end_turn"))) as server:
        reply, said = await ask(AnthropicModel, server.url)
    assert reply.texts == ("one", "two")
    assert said == [(0, "one"), (1, "two")]


@BOTH
@pytest.mark.parametrize("arguments", ['{"text": "cut o', "[1]", "nonsense", '"x"'])
async def test_arguments_that_cannot_be_read_are_told_to_the_model(
    make: Make, arguments: str
) -> None:
    function = {"name": "send_message", "arguments": arguments}
    answer = (
        anthropic(*tool_block(arguments), *stopped("tool_use"))
        if make is AnthropicModel
        else sse(chunk(tool_calls=[{"index": 0, "id": "c", "function": function}]), DONE)
    )
    async with canned_server(answer) as server:
        reply, _ = await ask(make, server.url)
    (call,) = reply.message.calls
    assert call.input == {}
    assert call.problem
    assert "JSON" in call.problem


async def test_an_error_in_the_middle_of_a_stream_has_its_reason() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    error = await failing(AnthropicModel, anthropic(*text_block("a"), overloaded))
    assert error.reason == "overloaded"
    unreadable = {"type": "content_block_delta"}
    assert (await failing(AnthropicModel, anthropic(unreadable))).reason == "model_error"


# --- OpenAI's ---


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


DONE = chunk("stop")


async def test_openai_is_asked_as_its_api_wants() -> None:
    async with canned_server(sse(chunk(content="ok"), DONE, "[DONE]")) as server:
        await ask(OpenAIModel, server.url)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["body"]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert request["body"]["tools"][0]["function"]["parameters"] == TOOL.schema
    assert "max_tokens" not in request["body"]


async def test_openai_is_shown_a_picture_as_a_data_url() -> None:
    async with canned_server(sse(chunk(content="ok"), DONE, "[DONE]")) as server:
        await ask(OpenAIModel, server.url, SHOWN, Assistant("ok"), User("and?"))
    _, first, _, second = server.requests[0]["body"]["messages"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}
    assert first["content"] == [{"type": "text", "text": "look"}, image]
    assert second["content"] == "and?"


@pytest.mark.parametrize("cut", [False, True])
async def test_an_openai_stream_without_its_end_is_no_answer(cut: bool) -> None:
    assert (await failing(OpenAIModel, sse(chunk(content="half"), cut=cut))).reason == "connection"


@pytest.mark.parametrize(
    ("finish", "stop"),
    [("length", Stop.LENGTH), ("content_filter", Stop.REFUSAL), ("tool_calls", Stop.TOOLS)],
)
async def test_openais_finish_reasons(finish: str, stop: Stop) -> None:
    async with canned_server(sse(chunk(content="x"), chunk(finish))) as server:
        reply, _ = await ask(OpenAIModel, server.url)
    assert reply.stop is stop


async def test_a_refusal_in_words_is_a_refusal() -> None:
    async with canned_server(sse(chunk(refusal="I will not."), DONE)) as server:
        reply, _ = await ask(OpenAIModel, server.url)
    assert reply.stop is Stop.REFUSAL
    assert reply.message.text == "I will not."


async def test_calls_grow_in_pieces_and_servers_without_indexes_or_ids_are_understood() -> None:
    pieces = [
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        chunk(tool_calls=[{"index": 1, "id": "a", "function": {"name": "g"}}]),
    ]
    async with canned_server(sse(*pieces, DONE)) as server:
        reply, _ = await ask(OpenAIModel, server.url)
    first, second = reply.message.calls
    assert (first.name, first.input, second.name, second.input) == ("f", {"x": 1}, "g", {})
    assert first.id != second.id
    bare = [
        chunk(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{"}}]),
        chunk(tool_calls=[{"function": {"arguments": "}"}}]),
        chunk(tool_calls=[{"id": "b", "function": {"name": "g", "arguments": "{}"}}]),
    ]
    async with canned_server(sse(*bare, DONE)) as server:
        reply, _ = await ask(OpenAIModel, server.url)
    assert [call.name for call in reply.message.calls] == ["f", "g"]
    assert [call.problem for call in reply.message.calls] == [None, None]


async def test_openai_errors_and_oddities_in_a_stream() -> None:
    assert (await failing(OpenAIModel, sse({"error": {"code": "server_error"}}))).reason == (
        "server_error"
    )
    assert (await failing(OpenAIModel, sse({"error": "just words"}))).reason == "model_error"
    assert (await failing(OpenAIModel, sse({"choices": ["?"]}))).reason == "model_error"


async def test_text_torn_between_surrogates_comes_out_whole() -> None:
    halves = json.dumps("😀")[1:-1]
    first, second = halves[:6], halves[6:]
    raw = '{"choices":[{"delta":{"content":"%s"},"finish_reason":null}]}'
    stream = sse(raw % first, raw % second, raw % "\\ud800", DONE)
    async with canned_server(stream) as server:
        reply, _ = await ask(OpenAIModel, server.url)
    assert reply.message.text == "😀\ufffd"
    reply.message.text.encode()
