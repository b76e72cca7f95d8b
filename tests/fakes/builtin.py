"""The built-in agent as the daemon runs it: a real process at a real bridge, without a daemon."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from cloudagent_daemon.agent.wire import TurnRequest
from cloudagent_daemon.bridge.server import Bridge, Session
from cloudagent_daemon.bridge.tools import Asked, Toolbox, ToolError
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.frames import AgentEntry
from cloudagent_protocol.ids import AgentId, ConversationId, MessageId

Event = dict[str, Any]


@dataclass
class AgentDesk:
    """What the tools of a run act on."""

    memory: Path
    sent: list[str] = field(default_factory=list[str])
    silence: str | None = None

    async def send(
        self, text: str, conversation_id: ConversationId | None, paths: Sequence[str] = ()
    ) -> MessageId:
        if conversation_id:
            raise ToolError(f"no conversation {conversation_id}")
        self.sent.append(text)
        return MessageId(f"msg_{len(self.sent)}")

    async def attach(self, path: str) -> Attachment:
        raise ToolError(f"Nothing was attached: {path}")

    async def list_messages(
        self, conversation_id: ConversationId | None, limit: int, before: MessageId | None
    ) -> list[dict[str, Any]]:
        return []

    async def ask_user(self, question: str, options: list[str]) -> str:
        return f"ana answered: {options[0] if options else question}"

    async def list_agents(self) -> list[AgentEntry]:
        return [
            AgentEntry(
                id=AgentId("agent_1"), name="api", driver="builtin", host="mbp", status="idle"
            )
        ]

    async def message_agent(self, wanted: str, text: str) -> Asked:
        if wanted != "api":
            raise ToolError(f"Nothing was sent to {wanted}: there is no such agent.")
        self.sent.append(f"to {wanted}: {text}")
        return Asked(MessageId(f"msg_{len(self.sent)}"), wanted, answers_here=True)

    def stay_silent(self, reason: str) -> None:
        self.silence = reason


@dataclass
class Turn:
    """A turn under way: its events as they come."""

    process: anyio.abc.Process
    lines: BufferedByteReceiveStream
    events: list[Event] = field(default_factory=list[Event])
    #: Seconds from the spawn to each event.
    seconds: list[float] = field(default_factory=list[float])
    began_at: float = field(default_factory=time.perf_counter)

    async def next(self) -> Event | None:
        try:
            line = await self.lines.receive_until(b"\n", 1_000_000)
        except anyio.IncompleteRead:
            return None
        self.events.append(json.loads(line))
        self.seconds.append(time.perf_counter() - self.began_at)
        return self.events[-1]

    async def until(self, kind: str) -> Event:
        while event := await self.next():
            if event["type"] == kind:
                return event
        raise AssertionError(f"no {kind} in {self.events}")

    async def rest(self) -> int:
        """Follows it to its end; the exit code."""
        while await self.next():
            pass
        return await self.process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == kind]

    @property
    def result(self) -> Event:
        assert [e["type"] for e in self.events].count("result") == 1, self.events
        assert self.events[-1]["type"] == "result"
        return self.events[-1]

    @property
    def streamed(self) -> str:
        """What the deltas of block 0 make, as a page would put them together."""
        text = ""
        for delta in self.of("delta"):
            if delta["block"] == 0:
                assert delta["offset"] == len(text)
                text += delta["text"]
        return text


@dataclass
class BuiltinAgent:
    """One agent on one machine; `turn` is a process of it."""

    session: Session
    desk: AgentDesk
    home: Path
    environment: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.home / "workspace"

    @property
    def session_file(self) -> Path:
        return self.home / "sessions" / "one.jsonl"

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.session_file.read_text().splitlines()]

    def request(self, prompt: str, **changes: Any) -> TurnRequest:
        values: dict[str, Any] = {
            "prompt": prompt,
            "system_prompt": "You are Ada.",
            "session_id": "one",
            "resume": self.session_file.exists(),
            "sessions_dir": self.home / "sessions",
            "folder": self.folder,
            "socket": self.session.socket_path,
            "token_file": self.session.token_file,
        }
        return TurnRequest(**values | changes)

    @asynccontextmanager
    async def turn(
        self,
        *prompts: str,
        kind: str | None = "scripted",
        line: bytes | None = None,
        **changes: Any,
    ) -> AsyncGenerator[Turn]:
        argv = [sys.executable, "-P", "-m", "cloudagent_daemon.agent"]
        argv += ["--model-kind", kind] if kind else []
        env = {"PATH": os.environ["PATH"], **self.environment}
        async with await anyio.open_process(argv, env=env, cwd=self.folder, stderr=None) as process:
            assert process.stdin
            assert process.stdout
            self.session.admit(process.pid)
            given = line or b"".join(self.request(p, **changes).line() for p in prompts)
            await process.stdin.send(given)
            await process.stdin.aclose()
            yield Turn(process, BufferedByteReceiveStream(process.stdout))

    async def take(self, *prompts: str, **changes: Any) -> Turn:
        """A whole turn; the process must end well."""
        with anyio.fail_after(30):
            async with self.turn(*prompts, **changes) as turn:
                assert await turn.rest() == 0
        return turn


@asynccontextmanager
async def builtin_agent(home: Path, **environment: str) -> AsyncGenerator[BuiltinAgent]:
    """An agent with its folder in `home`, its tools at a bridge, and nothing else around it."""
    for name in ("workspace", "sessions", "run"):
        (home / name).mkdir()
    bridge = Bridge(None, home / "rt")
    desk = AgentDesk(home / "MEMORY.md")
    async with anyio.create_task_group() as tasks:
        await tasks.start(bridge.serve)
        await bridge.warm_up()
        async with bridge.session(Toolbox(desk), home / "run") as session:
            yield BuiltinAgent(session, desk, home, environment)
        tasks.cancel_scope.cancel()
