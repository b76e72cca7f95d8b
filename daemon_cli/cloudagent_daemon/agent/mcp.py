"""Tools of an MCP server: the daemon's bridge, over its Unix socket, or a program's, over its pipes.

As much of MCP as one peer needs, written by hand because this program starts anew for every
message, and `import mcp` costs 1.4 s of CPU. The daemon uses that package for its side.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.to_thread

from cloudagent_daemon.agent import config
from cloudagent_daemon.agent.errors import AgentError, ToolError
from cloudagent_daemon.agent.tools.base import ToolSpec

PROTOCOL: Final = "2025-06-18"
#: How long the bridge may take to have its tools ready: the daemon may just be importing `mcp`.
READY_S: Final = 30.0
#: How long a call may take; the longest waits for the backend's answer.
CALL_S: Final = 120.0
#: How long a program may take to leave once it is told to.
LEAVE_S: Final = 2.0
#: Bytes of one message.
MAX_LINE_BYTES: Final = 16 * 1_048_576


class McpTools:
    """A server's tools, one call at a time.

    Args:
        who: the server, in messages.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str
    ) -> None:
        self._who = who
        self._reader = reader
        self._writer = writer
        self._requests = 0
        self.specs: list[ToolSpec] = []

    async def greet(self, token: str | None = None) -> None:
        """Presents the token, if the server wants one, shakes hands, learns the tools."""
        if token:
            await self._send({"token": token})
        client = {"name": "cloudagent-builtin", "version": "1"}
        hello = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client}
        await self._request("initialize", hello)
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        listed = await self._request("tools/list", {})
        self.specs = [
            ToolSpec(tool["name"], tool.get("description", ""), tool["inputSchema"])
            for tool in listed["tools"]
        ]

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        try:
            with anyio.fail_after(CALL_S):
                result = await self._request("tools/call", {"name": name, "arguments": arguments})
        except TimeoutError as error:
            # Its late answer carries an old id and is skipped.
            raise ToolError(f"{name} did not answer in {CALL_S:.0f} s.") from error
        except (OSError, ValueError) as error:
            raise ToolError(f"{self._who} failed: {error}") from error
        parts = cast("list[dict[str, Any]]", result.get("content") or [])
        text = "\n".join(str(part["text"]) for part in parts if part.get("type") == "text")
        if result.get("isError"):
            raise ToolError(text or f"{name} failed.")
        return text

    async def _request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Asks and awaits the answer.

        Raises:
            OSError: the connection is gone.
            ValueError: the peer refuses, or does not speak MCP.
        """
        self._requests += 1
        asked = {"jsonrpc": "2.0", "id": self._requests, "method": method, "params": params}
        await self._send(asked)
        while True:
            message = await self._receive()
            if "method" in message:
                await self._serve(message)
            elif message.get("id") == self._requests:
                break
        if error := message.get("error"):
            raise ValueError(error.get("message", "refused"))
        result = message.get("result")
        if not isinstance(result, dict):
            raise ValueError("an answer without a result")  # noqa: TRY004 (a fault of the text)
        return cast("dict[str, Any]", result)

    async def _serve(self, message: dict[str, Any]) -> None:
        """Answers what the server asks of us: we are alive, and can nothing else."""
        if "id" not in message:
            return
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        await self._send(answer)

    async def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()

    async def _receive(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("it closed the connection")
        value: Any = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("a message that is no object")  # noqa: TRY004 (a fault of the text)
        return cast("dict[str, Any]", value)


@asynccontextmanager
async def connect(socket: Path, token_file: Path) -> AsyncGenerator[McpTools]:
    """The bridge's tools, ready.

    Raises:
        AgentError: they cannot be had.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            token = await anyio.to_thread.run_sync(token_file.read_text, "ascii")
            with anyio.fail_after(READY_S):
                reader, writer = await asyncio.open_unix_connection(socket, limit=MAX_LINE_BYTES)
                tools = McpTools(reader, writer, "The daemon's bridge")
                await tools.greet(token.strip())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"The daemon's tools at {socket} cannot be used: {error!r}"
            raise AgentError("tools_unavailable", detail) from error
        yield tools
    finally:
        if writer is not None:
            writer.close()


@dataclass(frozen=True)
class Server:
    """A program that is an MCP server on its standard input and output."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


@asynccontextmanager
async def spawned(server: Server, folder: Path) -> AsyncGenerator[McpTools]:
    """The tools of a program, ready; it ends with the block.

    Raises:
        AgentError: they cannot be had.
    """
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *server.argv,
                env={**config.without_models(), **server.env},
                cwd=folder,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
            )
            reader, writer = process.stdout, process.stdin
            assert reader
            assert writer
            tools = McpTools(reader, writer, f"The MCP server {server.name}")
            with anyio.fail_after(READY_S):
                await tools.greet()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"The MCP server {server.name} ({server.argv[0]}) cannot be used: {error!r}"
            raise AgentError("tools_unavailable", detail) from error
        yield tools
    finally:
        if process is not None:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The end of its input is how a server on pipes is told to go (MCP, Lifecycle: Shutdown)."""
    if process.stdin:
        process.stdin.close()
    for signal_it in (process.terminate, process.kill):
        with anyio.move_on_after(LEAVE_S):
            await process.wait()
            return
        with suppress(ProcessLookupError):
            signal_it()
    await process.wait()
