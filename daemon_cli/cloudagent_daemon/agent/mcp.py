"""The tools of the daemon's bridge, over its Unix socket: as much of MCP as one peer needs.

Written by hand because this program starts anew for every message, and `import mcp` costs 1.4 s
of CPU. The daemon uses that package for its side of the same socket.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.to_thread

from cloudagent_daemon.agent.errors import AgentError, ToolError
from cloudagent_daemon.agent.tools.base import ToolSpec

PROTOCOL: Final = "2025-06-18"
#: How long the bridge may take to have its tools ready: the daemon may just be importing `mcp`.
READY_S: Final = 30.0
#: How long a call may take; the longest waits for the backend's answer.
CALL_S: Final = 120.0
#: Bytes of one message.
MAX_LINE_BYTES: Final = 16 * 1_048_576


class BridgeTools:
    """The bridge's tools, one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = 0
        self.specs: list[ToolSpec] = []

    async def greet(self, token: str) -> None:
        """Presents the token, shakes hands, learns the tools."""
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
            raise ToolError(f"The daemon's bridge failed: {error}") from error
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
async def connect(socket: Path, token_file: Path) -> AsyncGenerator[BridgeTools]:
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
                tools = BridgeTools(reader, writer)
                await tools.greet(token.strip())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"The daemon's tools at {socket} cannot be used: {error!r}"
            raise AgentError("tools_unavailable", detail) from error
        yield tools
    finally:
        if writer is not None:
            writer.close()
