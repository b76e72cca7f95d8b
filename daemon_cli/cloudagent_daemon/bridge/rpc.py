"""Speaks MCP over one connection.

The only module that imports `mcp`, which takes most of a second: `server.py` imports this one in a
thread, off the way to the daemon's first connection. Our own JSON-RPC in its place would save that
second and some 30 MB; `mcp` knows two eras of the protocol and their handshakes, and agents of both
will come.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage

from cloudagent_daemon.bridge.tools import ToolAnswer, offered
from cloudagent_protocol.version import DISTRIBUTION

#: Bytes of one JSON-RPC message; a message text of the largest size fits in any encoding.
MAX_MESSAGE_BYTES: Final = 4 * 1_048_576
#: Claude Code's own id of a tool call: the same when it repeats one over a new connection.
_TOOL_USE_ID: Final = "claudecode/toolUseId"


class Tools(Protocol):
    """Whom the calls of a connection are for."""

    @property
    def listed(self) -> anyio.Event:
        """To be set once the agent has asked which tools there are."""
        ...

    @property
    def reserved(self) -> frozenset[str]:
        """Names of tools that the agent's program keeps for its own."""
        ...

    async def call(self, name: str, arguments: dict[str, Any], key: str) -> ToolAnswer: ...

    def heard(self, key: str) -> None: ...


async def converse(
    stream: anyio.abc.ByteStream,
    buffered: BufferedByteReceiveStream,
    tools: Tools,
    name: str,
    reads: Callable[[], bool],
) -> None:
    """Serves one agent's connection until it closes.

    Args:
        stream: to write to.
        buffered: to read from, behind the token line.
        tools: does the calls.
        name: names the connection, to tell its calls from those of another.
        reads: whether the other end, which has said its last, still takes what is written.
    """
    keys: dict[types.RequestId, str] = {}
    #: Calls whose answers are on their way: the agent has them if it goes on, or leaves in order.
    answered: list[str] = []

    def heard() -> None:
        while answered:
            tools.heard(answered.pop())

    async def list_tools(
        context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools.listed.set()
        return _listed(tools.reserved)

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        heard()
        key = str((params.meta or {}).get(_TOOL_USE_ID) or f"{name}:{context.request_id}")
        if context.request_id is not None:
            keys[context.request_id] = key
        answer = await tools.call(params.name, params.arguments or {}, key)
        # Text only: with `structuredContent` claude would show its model that instead.
        content = types.TextContent(type="text", text=answer.text)
        return types.CallToolResult(content=[content], is_error=answer.is_error)

    def written(request: types.RequestId) -> None:
        if key := keys.pop(request, None):
            answered.append(key)

    server: Server[Any] = Server(
        "cloudagent", version=DISTRIBUTION, on_list_tools=list_tools, on_call_tool=call_tool
    )
    await server.run(
        _Reader(buffered), _Writer(stream, written), server.create_initialization_options()
    )
    # One that was killed may have taken an answer with it; one that is done waits for our end.
    if reads():
        heard()


def _listed(reserved: frozenset[str]) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[
            types.Tool(name=tool.name, description=tool.description, input_schema=tool.schema)
            for tool in offered(reserved)
        ]
    )


class _Stream:
    """What both directions have in common; the socket belongs to the caller."""

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        await self.aclose()
        return None


class _Reader(_Stream):
    def __init__(self, stream: BufferedByteReceiveStream) -> None:
        self._stream = stream

    async def receive(self) -> SessionMessage | Exception:
        try:
            line = await self._stream.receive_until(b"\n", MAX_MESSAGE_BYTES)
        except (anyio.IncompleteRead, anyio.DelimiterNotFound, anyio.BrokenResourceError) as error:
            raise anyio.EndOfStream from error
        try:
            return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError as error:
            return error  # answered by the server as a parse error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class _Writer(_Stream):
    def __init__(
        self, stream: anyio.abc.ByteSendStream, written: Callable[[types.RequestId], None]
    ) -> None:
        self._stream = stream
        self._written = written
        self._turn = anyio.Lock()

    async def send(self, item: SessionMessage, /) -> None:
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        async with self._turn:
            await self._stream.send(line.encode() + b"\n")
        if isinstance(item.message, types.JSONRPCResponse):
            self._written(item.message.id)
