"""The client of the bridge, against a peer that does what ours does not."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from cloudagent_daemon.agent import mcp
from cloudagent_daemon.agent.errors import AgentError, ToolError
from cloudagent_daemon.agent.mcp import McpTools, connect

Message = dict[str, Any]
#: What the peer sends when a tool is called: raw lines, or messages to be spelled as JSON.
Play = Callable[[Message], list[Any]]


class Peer:
    def __init__(self, play: Play) -> None:
        self._play = play
        self.received: list[Message] = []

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            buffered = BufferedByteReceiveStream(stream)
            while True:
                try:
                    line = await buffered.receive_until(b"\n", 1_000_000)
                except (anyio.IncompleteRead, anyio.BrokenResourceError):
                    return
                message = json.loads(line)
                self.received.append(message)
                for answer in self._answers(message):
                    if answer is None:
                        return
                    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                    await stream.send(raw + b"\n")

    def _answers(self, message: Message) -> list[Any]:
        match message.get("method"):
            case "initialize":
                return [result(message, {"protocolVersion": mcp.PROTOCOL, "capabilities": {}})]
            case "tools/list":
                return [result(message, {"tools": [{"name": "t", "inputSchema": {}}]})]
            case "tools/call":
                return self._play(message)
            case _:
                return []


def result(message: Message, value: Message) -> Message:
    return {"jsonrpc": "2.0", "id": message["id"], "result": value}


def said(message: Message, text: str, **more: Any) -> Message:
    return result(message, {"content": [{"type": "text", "text": text}], **more})


@asynccontextmanager
async def peer(folder: Path, play: Play) -> AsyncGenerator[tuple[Peer, Callable[[], Any]]]:
    (folder / "token").write_text("secret\n")
    served = Peer(play)
    async with (
        await anyio.create_unix_listener(folder / "s") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, served.serve)
        yield served, lambda: connect(folder / "s", folder / "token")
        tasks.cancel_scope.cancel()


async def call(folder: Path, play: Play) -> str:
    async with peer(folder, play) as (_, open_tools), open_tools() as tools:
        return await tools.call("t", {"a": 1})


async def failing_call(folder: Path, play: Play) -> str:
    async with peer(folder, play) as (_, open_tools), open_tools() as tools:
        with pytest.raises(ToolError) as caught:
            await tools.call("t", {})
    return str(caught.value)


async def test_the_token_comes_first_then_the_handshake(tmp_path: Path) -> None:
    async with (
        peer(tmp_path, lambda m: [said(m, "x")]) as (served, open_tools),
        open_tools() as tools,
    ):
        assert [spec.name for spec in tools.specs] == ["t"]
        assert await tools.call("t", {"a": 1}) == "x"
    assert served.received[0] == {"token": "secret"}
    methods = [message.get("method") for message in served.received[1:]]
    assert methods == ["initialize", "notifications/initialized", "tools/list", "tools/call"]
    assert served.received[-1]["params"] == {"name": "t", "arguments": {"a": 1}}


async def test_what_the_peer_says_in_between_does_not_confuse(tmp_path: Path) -> None:
    def play(message: Message) -> list[Any]:
        return [
            {"jsonrpc": "2.0", "method": "notifications/message", "params": {}},
            {"jsonrpc": "2.0", "id": 900, "method": "ping"},
            {"jsonrpc": "2.0", "id": 901, "method": "sampling/createMessage"},
            {"jsonrpc": "2.0", "id": 1, "result": {"content": []}},
            said(message, "the one"),
        ]

    async with peer(tmp_path, play) as (served, open_tools), open_tools() as tools:
        assert await tools.call("t", {}) == "the one"
        assert await tools.call("t", {}) == "the one"
    answers = {m["id"]: m for m in served.received if "method" not in m and "id" in m}
    assert answers[900]["result"] == {}
    assert answers[901]["error"]["code"] == -32601


async def test_a_failed_call_is_an_error_for_the_model(tmp_path: Path) -> None:
    assert "not so" in await failing_call(tmp_path, lambda m: [said(m, "not so", isError=True)])


@pytest.mark.parametrize(
    "play",
    [
        lambda m: [{"jsonrpc": "2.0", "id": m["id"], "error": {"code": 1, "message": "no"}}],
        lambda m: [b"nonsense"],
        lambda m: [b"[]"],
        lambda m: [result(m, {}) | {"result": None}],
        lambda m: [None],
    ],
)
async def test_a_peer_that_breaks_the_rules_fails_the_call_only(tmp_path: Path, play: Play) -> None:
    assert await failing_call(tmp_path, play)


async def test_a_call_that_is_never_answered_ends_and_its_late_answer_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "CALL_S", 0.05)
    late: list[Message] = []

    def play(message: Message) -> list[Any]:
        late.append(message)
        return [] if len(late) == 1 else [said(m, f"answer {n}") for n, m in enumerate(late)]

    async def both(tools: McpTools) -> str:
        with pytest.raises(ToolError, match="did not answer"):
            await tools.call("t", {})
        monkeypatch.setattr(mcp, "CALL_S", 5)
        return await tools.call("t", {})

    async with peer(tmp_path, play) as (_, open_tools), open_tools() as tools:
        assert await both(tools) == "answer 1"


async def test_a_large_answer_fits(tmp_path: Path) -> None:
    assert len(await call(tmp_path, lambda m: [said(m, "x" * 2_000_000)])) == 2_000_000


async def test_without_a_bridge_there_are_no_tools(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        async with connect(tmp_path / "s", tmp_path / "token"):
            raise AssertionError("connected")
    assert caught.value.reason == "tools_unavailable"
