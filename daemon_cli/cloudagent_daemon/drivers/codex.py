"""Codex: `codex app-server`, JSON-RPC on lines, one process per message, its thread resumed.

`initialize`, `thread/start` or `thread/resume`, `turn/start`; then notifications until `turn/completed`, and
questions whether a command may run. Seen with 0.169.0, which calls the interface experimental: what is
not known is skipped, kept, or refused.
"""

import json
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import anyio.to_thread

from cloudagent_daemon.drivers.base import (
    SERVER,
    AwaitTools,
    Capabilities,
    Command,
    Decision,
    DriverError,
    DriverEvent,
    DriverSession,
    Job,
    PermissionAsked,
    PermissionWithdrawn,
    TakenUp,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.codex_items import Items, reason
from cloudagent_daemon.drivers.codex_program import PACKAGE, find_codex
from cloudagent_daemon.drivers.jsonrpc import Answer, Calls
from cloudagent_daemon.drivers.lines import clip, parse_object
from cloudagent_daemon.drivers.probe import own_folder_first, probe, version_of
from cloudagent_daemon.drivers.resets import of_windows, plausible
from cloudagent_daemon.drivers.values import Json, as_object, as_text, now, short
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import Ready, Reason, UsageReported
from cloudagent_protocol.resources import Runtime
from cloudagent_protocol.version import DISTRIBUTION

INHERITS: Final = ("CODEX_*", "OPENAI_*", "AZURE_*", "OPENROUTER_API_KEY", "RUST_LOG")
#: What a mode is in codex's words; `default` is what its own configuration says.
_MODES: Final[dict[str, Json]] = {
    "plan": {"sandbox": "read-only", "approvalPolicy": "on-request"},
    "acceptEdits": {"sandbox": "workspace-write", "approvalPolicy": "on-request"},
    "bypassPermissions": {"sandbox": "danger-full-access", "approvalPolicy": "never"},
}
_LINGER_S: Final = 3.0


class Codex:
    """The driver `codex`."""

    name = "codex"
    resumes = True
    warm = False

    def open(self, job: Job) -> DriverSession:
        return CodexSession(job)

    async def detect(self, environment: Mapping[str, str], mask: Mask = NO_MASK) -> Runtime:
        found = await anyio.to_thread.run_sync(find_codex, environment)
        if found is None:
            why = f"not found; install it with  npm install -g {PACKAGE}"
            return Runtime(name=self.name, problem=why)
        path, program = found
        version, problem = await version_of(
            path, PACKAGE, environment, inherits=INHERITS, mask=mask
        )
        # False is a hint only: a provider of the configuration's own needs no login.
        _, refused = await probe(
            [program, "login", "status"], environment, inherits=INHERITS, mask=mask
        )
        return Runtime(
            name=self.name,
            version=version,
            path=path,
            logged_in=None if problem else refused is None,
            problem=problem,
        )


class CodexSession:
    """One `codex app-server` process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._calls = Calls(version=None)
        self._items = Items()
        self._turn = Turn("")
        self._thread_id: str | None = None
        self._turn_id: str | None = None
        self._ended = False
        #: How much of the account's allowance is used; it is told bit by bit.
        self._limits: Json = {}
        #: It could not reach our tools: then a failure to open the thread is due to that.
        self._toolless = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(steer=True, converses=True, reports_tools=False)

    # --- starting ---

    def launch(self) -> Command:
        words, path = self._program()
        command, *args = self._job.tools.command
        server = {
            "command": command,
            "args": args,
            # It would start its turn without it after a second.
            "required": True,
            "startup_timeout_sec": 20,
            "default_tools_approval_mode": "approve",
            "tool_timeout_sec": 86_400,
        }
        # JSON of text, numbers, truth and lists of text is TOML as well.
        settings = [f"mcp_servers.{SERVER}.{key}={json.dumps(v)}" for key, v in server.items()]
        settings.append("check_for_update_on_startup=false")
        flags = [word for setting in settings for word in ("-c", setting)]
        return Command(
            argv=(*words, "app-server", *flags), env=path, inherits=INHERITS, linger_s=_LINGER_S
        )

    def _program(self) -> tuple[list[str], dict[str, str]]:
        agent = self._job.agent
        if agent.command:
            return list(agent.command), {}
        found = find_codex(self._job.environment)
        if found is None:
            raise DriverError(
                Reason.RUNTIME_MISSING,
                f"Codex is not installed on this machine. Install it with `npm install -g {PACKAGE}"
                "`, log in with `codex login`, and send the message again.",
            )
        path, program = found
        inherited = agent.env.get("PATH") or self._job.environment.get("PATH", "")
        return [program], {"PATH": own_folder_first(path, inherited)}

    def prompt(self, turn: Turn) -> bytes:
        self._turn = turn
        client = {"name": SERVER, "title": SERVER, "version": DISTRIBUTION}
        return self._calls.request("initialize", {"clientInfo": client}, self._initialised).data

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        return None  # each message has a process of its own

    def steer(self, turn: Turn) -> bytes:
        if self._turn_id is None or self._ended:
            return b""

        def then(answer: Answer) -> Iterator[DriverEvent]:
            # Refused, it is not taken up: its turn comes when this one is over.
            if answer.error is None:
                yield TakenUp(turn.id)

        given: Json = {"type": "text", "text": turn.prompt}
        params: Json = {
            "threadId": self._thread_id,
            "expectedTurnId": self._turn_id,
            "input": [given],
        }
        return self._calls.request("turn/steer", params, then).data

    def interrupt(self) -> bytes | signal.Signals:
        if self._turn_id is None or self._ended:
            return b""
        params = {"threadId": self._thread_id, "turnId": self._turn_id}
        return self._calls.request("turn/interrupt", params, lambda _: ()).data

    # --- lines ---

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        message = parse_object(line)
        if message is None or self._ended:
            return ()
        method, request_id = message.get("method"), message.get("id")
        if not isinstance(method, str):
            return self._calls.settle(message)
        params = as_object(message.get("params"))
        if method == "account/rateLimits/updated":
            self._limits.update(as_object(params.get("rateLimits")))
            return ()
        if request_id is not None:
            return self._asked(request_id, method, params)
        if method == "mcpServer/startupStatus/updated":
            if params.get("name") == SERVER and params.get("status") in {"failed", "cancelled"}:
                self._toolless = True
            return ()
        if self._thread_id is None or params.get("threadId") != self._thread_id:
            return ()  # another thread's: of an agent of its own
        if method == "serverRequest/resolved":  # answered, or taken back
            return (PermissionWithdrawn(repr(params.get("requestId"))),)
        if method == "turn/completed":
            return self._completed(as_object(params.get("turn")))
        return self._items.receive(method, params)

    # --- the thread ---

    def _initialised(self, answer: Answer) -> Iterator[DriverEvent]:
        if answer.error is not None:
            yield self._end(Reason.RUNTIME_MISSING, _said(answer.error))
            return
        yield self._calls.notify("initialized")
        agent = self._job.agent
        params: Json = {
            "cwd": str(self._job.cwd),
            "developerInstructions": self._job.system_prompt,
            **_MODES.get(agent.mode, {}),
            **({"model": agent.model} if agent.model else {}),
        }
        if self._job.session_id is None:
            yield self._calls.request("thread/start", params, self._opened)
        else:
            params["threadId"] = self._job.session_id
            yield self._calls.request("thread/resume", params, self._opened)

    def _opened(self, answer: Answer) -> Iterator[DriverEvent]:
        wanted = self._job.session_id
        if answer.error is not None:
            resumed = Reason.SESSION_LOST if wanted else Reason.MODEL_ERROR
            why = Reason.TOOLS_UNAVAILABLE if self._toolless else resumed
            yield self._end(why, _said(answer.error))
            return
        thread_id = short(as_object(answer.result.get("thread")).get("id"))
        if wanted is not None and thread_id != wanted:
            # It may begin another instead, without a word.
            yield self._end(Reason.SESSION_LOST, f"It opened {thread_id} instead of {wanted}.")
            return
        self._thread_id = thread_id
        model = short(answer.result.get("model")) or None
        yield AwaitTools(lambda listed: self._begin(listed, model))

    def _begin(self, has_tools: bool, model: str | None) -> Iterator[DriverEvent]:
        if self._ended:
            return
        if not has_tools:
            yield self._end(Reason.TOOLS_UNAVAILABLE, "Codex did not ask for our tools in time.")
            return
        yield Ready(at=now(), session_id=self._thread_id, model=model)
        given: list[Json] = [{"type": "text", "text": self._turn.prompt}]
        # By path: it makes them as small as its model wants them.
        given += [{"type": "localImage", "path": str(one.path)} for one in self._turn.pictures]
        params = {"threadId": self._thread_id, "input": given}
        yield self._calls.request("turn/start", params, self._started)

    def _started(self, answer: Answer) -> Iterator[DriverEvent]:
        if answer.error is not None:
            yield self._end(Reason.MODEL_ERROR, _said(answer.error))
            return
        self._turn_id = short(as_object(answer.result.get("turn")).get("id"))

    # --- what it asks ---

    def _asked(self, request_id: Any, method: str, params: Json) -> Iterator[DriverEvent]:
        match method:
            case "item/commandExecution/requestApproval":
                command = as_text(params.get("command")) or as_text(params.get("reason"))
                yield self._permission(request_id, command, "execute", params)
            case "item/fileChange/requestApproval":
                # Asked for only beyond what the sandbox allows: more than the mode's "edit".
                yield self._permission(request_id, "edit", "other", params)
            case "mcpServer/elicitation/request":
                yield self._elicited(request_id, params)
            case _:
                yield self._calls.refuse(request_id, method)

    def _permission(self, request_id: Any, tool: str, kind: str, params: Json) -> PermissionAsked:
        def then(decision: Decision) -> Iterator[DriverEvent]:
            if not self._ended:
                said = "accept" if decision.allow else "decline"
                yield self._calls.answer(request_id, {"decision": said})

        told = {key: params.get(key) for key in ("command", "cwd", "reason", "grantRoot")}
        return PermissionAsked(
            short(tool) or kind, kind, told, ours=False, then=then, id=repr(request_id)
        )

    def _elicited(self, request_id: Any, params: Json) -> DriverEvent:
        """Whether a tool may be called; what else a server asks a person is cancelled."""
        if as_object(params.get("_meta")).get("codex_approval_kind") != "mcp_tool_call":
            return self._calls.answer(request_id, {"action": "cancel"})

        def then(decision: Decision) -> Iterator[DriverEvent]:
            if not self._ended:
                said = "accept" if decision.allow else "decline"
                yield self._calls.answer(request_id, {"action": said, "content": {}})

        server = short(params.get("serverName"))
        return PermissionAsked(
            server or "mcp", "other", {}, ours=server == SERVER, then=then, id=repr(request_id)
        )

    # --- the end ---

    def _completed(self, turn: Json) -> Iterator[DriverEvent]:
        yield from self._items.writing.finish()
        if self._items.usage:
            yield UsageReported(at=now(), usage=self._items.usage)
        match turn.get("status"):
            case "completed":
                yield self._end(None, "")
            case "interrupted":
                yield self._end(Reason.INTERRUPTED, "The turn was interrupted.")
            case _:
                error = as_object(turn.get("error"))
                yield self._end(reason(error), _said(error))

    def _end(self, why: Reason | None, detail: str) -> TurnEnd:
        self._ended = True
        return TurnEnd(
            why,
            clip(detail, 2_000)[0],
            session_id=None if why is Reason.SESSION_LOST else self._thread_id,
            usage=self._items.usage,
            final_text="" if why else self._items.writing.last,
            resets_at=plausible(of_windows(self._limits), now())
            if why is Reason.RATE_LIMIT
            else None,
        )


def _said(error: Json) -> str:
    return " ".join(
        filter(None, (as_text(error.get("message")), as_text(error.get("additionalDetails"))))
    )


CODEX: Final = Codex()
