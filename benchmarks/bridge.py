"""From spawn to the reply to `initialize`: a coding agent waits about two seconds for its tools.

The shim and the daemon's server, against a bare interpreter that does nothing, and against an MCP
server of the usual kind, which every agent process would import anew.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.to_thread

from benchmarks.measure import Figure, figure, paired, python, seconds_of
from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.bridge.tools import Asked, Toolbox, ToolError
from cloudagent_protocol.frames import AgentEntry
from cloudagent_protocol.ids import ConversationId, MessageId, new_message_id

RUNS = 21
INITIALIZE = (
    b'{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": '
    b'"2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}}\n'
)
MCP_SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("reference")
@server.tool()
def send_message(text: str) -> str:
    return text
server.run("stdio")
"""


class _Desk:
    """The far side of the tools; nothing is called here."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    async def attach(self, path: str) -> NoReturn:
        raise ToolError(path)

    async def send(
        self, text: str, conversation_id: ConversationId | None, paths: Sequence[str] = ()
    ) -> MessageId:
        return new_message_id()

    async def list_messages(
        self, conversation_id: ConversationId | None, limit: int, before: MessageId | None
    ) -> list[dict[str, Any]]:
        return []

    async def list_agents(self) -> list[AgentEntry]:
        return []

    async def message_agent(self, wanted: str, text: str) -> Asked:
        return Asked(new_message_id(), wanted, answers_here=True)

    def stay_silent(self, reason: str) -> None: ...

    async def ask_user(self, question: str, options: list[str]) -> str:
        return ""


@contextmanager
def serving_bridge(folder: Path) -> Generator[Sequence[str]]:
    """A bridge in a thread of its own; gives the command that an agent would start."""
    command: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        bridge = Bridge(None, folder)
        async with anyio.create_task_group() as tasks:
            await tasks.start(bridge.serve)
            await bridge.warm_up()
            run_dir = folder / "run"
            run_dir.mkdir()
            async with bridge.session(Toolbox(_Desk(folder / "MEMORY.md")), run_dir) as session:
                session.admit(os.getpid())
                command.extend(session.command)
                ready.set()
                await anyio.to_thread.run_sync(done.wait)
            tasks.cancel_scope.cancel()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    ready.wait()
    try:
        yield command
    finally:
        done.set()
        thread.join()


def seconds_to_initialize(argv: Sequence[str]) -> float:
    """Seconds from the spawn of an MCP server to its answer."""
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(INITIALIZE)
        process.stdin.flush()
        answer = process.stdout.readline()
        seconds = time.perf_counter() - began
        process.kill()
    assert b'"result"' in answer, answer
    return seconds


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ca-") as name, serving_bridge(Path(name)) as shim:
        env = dict(os.environ)
        bare = paired(
            lambda: seconds_to_initialize(shim),
            lambda: seconds_of(python("-I", "-S", "-c", "pass"), env=env, cwd=Path(name)),
            runs=RUNS,
        )
        usual = paired(
            lambda: seconds_to_initialize(shim),
            lambda: seconds_to_initialize(python("-c", MCP_SERVER)),
            runs=RUNS // 3,
        )
    return [
        figure(
            "bridge: spawn to initialize", "python -I -S -c pass", bare, goal="<= 3x", max_ratio=3
        ),
        figure(
            "bridge: spawn to initialize",
            "a server on mcp",
            usual,
            goal="<= 1/15",
            max_ratio=1 / 15,
        ),
    ]
