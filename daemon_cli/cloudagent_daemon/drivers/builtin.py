"""The drivers `builtin` and `scripted`: our own agent program (`cloudagent_daemon.agent`).

It is a child like any other; only, we wrote both ends of its lines (`agent/wire.py`).
"""

import signal
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cloudagent_daemon.agent.config import VARIABLES, ModelKind, read
from cloudagent_daemon.agent.errors import AgentError
from cloudagent_daemon.agent.history import Picture
from cloudagent_daemon.agent.wire import TurnRequest
from cloudagent_daemon.drivers.base import (
    Capabilities,
    Command,
    DriverEvent,
    Job,
    TextDelta,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.lines import clip, parse_object
from cloudagent_daemon.drivers.resets import plausible
from cloudagent_daemon.drivers.values import number
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import (
    Ready,
    Reason,
    Retry,
    Text,
    ToolCall,
    ToolResult,
    UnknownEvent,
    Usage,
    UsageReported,
)
from cloudagent_protocol.resources import Runtime
from cloudagent_protocol.version import DISTRIBUTION


class BuiltinDriver:
    """Our agent, with a hosted model or with the scripted one."""

    resumes = True
    warm = False

    def __init__(self, name: str, kind: ModelKind | None = None) -> None:
        self.name = name
        #: None: by the agent's model and what is configured.
        self._kind: ModelKind | None = kind

    def open(self, job: Job) -> "BuiltinSession":
        return BuiltinSession(job, self._kind)

    async def detect(self, environment: Mapping[str, str], mask: Mask = NO_MASK) -> Runtime:
        """Always there; whether a model is configured is a matter of the environment.

        An agent's own `env` may still configure one, which is not known here.
        """
        runtime = Runtime(name=self.name, version=DISTRIBUTION, path=sys.executable)
        if self._kind == "scripted":
            return runtime
        try:
            read(environment).choose(None)
        except AgentError as error:
            return runtime.model_copy(update={"logged_in": False, "problem": str(error)})
        return runtime.model_copy(update={"logged_in": True})


class BuiltinSession:
    """One process of our agent."""

    capabilities = Capabilities()

    def __init__(self, job: Job, kind: ModelKind | None) -> None:
        self._job = job
        self._kind: ModelKind | None = kind
        self._session_id = job.session_id or job.new_session_id
        #: Whether that session must exist: it does from its first turn on.
        self._resume = job.session_id is not None

    def launch(self) -> Command:
        # -P: a module in the agent's folder must not stand in for one of ours.
        argv = (sys.executable, "-P", "-m", "cloudagent_daemon.agent")
        chosen = ("--model-kind", self._kind) if self._kind else ()
        return Command(argv + chosen, inherits=VARIABLES)

    def prompt(self, turn: Turn) -> bytes:
        job = self._job
        request = TurnRequest(
            prompt=turn.prompt,
            system_prompt=job.system_prompt,
            session_id=self._session_id,
            resume=self._resume,
            sessions_dir=job.sessions_dir,
            folder=job.cwd,
            socket=job.tools.socket,
            token_file=job.tools.token_file,
            model=job.agent.model,
            files=job.home / "attachments",
            pictures=tuple(Picture(one.path, one.media_type) for one in turn.pictures),
        )
        self._resume = True
        return request.line()

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        event = parse_object(line)
        if event is None:
            return []
        try:
            return _meaning(event, datetime.now(UTC))
        except (KeyError, TypeError, ValueError):
            return []  # not ours: a library's print, or a line that was cut

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        return None  # each message has a process of its own

    def steer(self, turn: Turn) -> bytes:
        return b""

    def interrupt(self) -> bytes | signal.Signals:
        return signal.SIGTERM


def _meaning(event: dict[str, Any], at: datetime) -> list[DriverEvent]:
    match event.pop("type", None):
        case "ready":
            return [Ready(at=at, session_id=event["session_id"], model=event["model"])]
        case "delta":
            return [TextDelta(**event)]
        case "text":
            return [Text(at=at, **event)]
        case "tool_call":
            return [ToolCall(at=at, tool_call_id=event.pop("id"), **event)]
        case "tool_result":
            return [ToolResult(at=at, tool_call_id=event.pop("id"), **event)]
        case "retry":
            return [Retry(at=at, **event)]
        case "result":
            return _end(event, at)
        case str(kind):
            return [UnknownEvent(type=kind, at=at, **event)]
        case _:
            return []


def _end(event: dict[str, Any], at: datetime) -> list[DriverEvent]:
    usage = Usage(input_tokens=event["input_tokens"], output_tokens=event["output_tokens"])
    end = TurnEnd(
        reason=None if event["ok"] else Reason(event["reason"]),
        detail=clip(event["detail"], 2_000)[0],
        session_id=event["session_id"] or None,
        usage=usage,
        final_text=event["text"],
        resets_at=_reset(event.get("retry_after_s"), at),
    )
    return [UsageReported(at=at, usage=usage), end] if usage.input_tokens else [end]


def _reset(wait_s: Any, at: datetime) -> datetime | None:
    """When the model's service may be asked again, by its own word."""
    seconds = number(wait_s)
    return plausible(at + timedelta(seconds=seconds), at) if seconds else None


BUILTIN: Final = BuiltinDriver("builtin")
SCRIPTED: Final = BuiltinDriver("scripted", "scripted")
