"""Claude Code: `claude -p` with stream-json both ways, a process for one message or for many.

Seen with 2.1.197; what a newer one prints and we do not know is skipped. What is decided here is
decided by fields (`subtype`, `error`, `api_error_status`, `terminal_reason`), never by wording.

Each message goes in under a UUID of ours. `system/init` begins a turn; the message comes back
(`isReplay`) at its first answer, or where it was put into a turn, or at that turn's end. So results
are not counted: a run is over with the first `result` after all of its messages have come back.
"""

import json
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from cloudagent_daemon.drivers.base import (
    SERVER,
    Adjusted,
    Capabilities,
    Command,
    Decision,
    DriverError,
    DriverEvent,
    DriverSession,
    Job,
    PermissionAsked,
    PermissionWithdrawn,
    Say,
    TakenUp,
    TextDelta,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.claude_tuning import Tuning, agrees
from cloudagent_daemon.drivers.lines import clip, parse_object
from cloudagent_daemon.drivers.probe import find_program as find
from cloudagent_daemon.drivers.probe import own_folder_first, probe
from cloudagent_daemon.drivers.resets import from_number, in_words, plausible
from cloudagent_daemon.drivers.statuses import by_status
from cloudagent_daemon.drivers.values import (
    Json,
    as_object,
    as_objects,
    as_text,
    as_texts,
    clipped,
    now,
    number,
    plain,
    short,
)
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import (
    Ready,
    Reason,
    Retry,
    Text,
    ToolCall,
    ToolResult,
    Usage,
    UsageReported,
)
from cloudagent_protocol.resources import Runtime

PROGRAM: Final = "claude"
INHERITS: Final = (
    "ANTHROPIC_*", "CLAUDE_*", "DISABLE_*", "IS_SANDBOX", "MCP_*", "ENABLE_TOOL_SEARCH",
    "AWS_*", "GOOGLE_*", "CLOUD_ML_REGION", "VERTEX_*",
)  # fmt: skip
_AUTH_STATUS_SINCE: Final = (2, 1, 41)
#: Claude's own default of 10 lets a wrong key or a refusal take three minutes.
_MAX_RETRIES: Final = "4"

#: The `error` of a failed request: those that say more than the HTTP status does, and the rest.
_BY_KIND: Final = {
    "authentication_failed": Reason.AUTHENTICATION,
    "oauth_org_not_allowed": Reason.AUTHENTICATION,
    "billing_error": Reason.BILLING,
    "rate_limit": Reason.RATE_LIMIT,
    "overloaded": Reason.OVERLOADED,
}
_BY_GENERAL_KIND: Final = {
    "invalid_request": Reason.INVALID_REQUEST,
    "model_not_found": Reason.INVALID_REQUEST,
    "server_error": Reason.SERVER_ERROR,
}
_BY_TERMINATION: Final = {
    "prompt_too_long": Reason.CONTEXT_OVERFLOW,
    "blocking_limit": Reason.CONTEXT_OVERFLOW,
    "rapid_refill_breaker": Reason.CONTEXT_OVERFLOW,
    "image_error": Reason.INVALID_REQUEST,
    "max_turns": Reason.MAX_TURNS,
}

#: How a turn ends that was interrupted by us.
_ABORTED: Final = frozenset({"aborted_streaming", "aborted_tools"})
#: What a tool comes to, in the words of `PermissionAsked.kind`; the rest is `other`.
_KINDS: Final = {
    "Read": "read", "NotebookRead": "read", "LS": "read",
    "Glob": "search", "Grep": "search", "WebFetch": "fetch", "WebSearch": "fetch",
    "Edit": "edit", "MultiEdit": "edit", "Write": "edit", "NotebookEdit": "edit",
    "Bash": "execute", "AskUserQuestion": "question", "ExitPlanMode": "switch_mode",
}  # fmt: skip

#: Blocks that a CLI may begin without ever finishing one, before the oldest are given up.
_MAX_BEGUN: Final = 1_000


class ClaudeCode:
    """The driver `claude_code`."""

    name = "claude_code"
    resumes = True
    warm = True

    def open(self, job: Job) -> DriverSession:
        return ClaudeSession(job)

    async def detect(self, environment: Mapping[str, str], mask: Mask = NO_MASK) -> Runtime:
        path = find_program(environment)
        if path is None:
            why = "not found; install it with  npm install -g @anthropic-ai/claude-code"
            return Runtime(name=self.name, problem=why)
        output, problem = await probe([path, "--version"], environment, mask=mask)
        version = output.split()[0][:100] if output.split() else None
        logged_in = None if problem else await _logged_in(path, version or "", environment, mask)
        return Runtime(
            name=self.name, version=version, path=path, logged_in=logged_in, problem=problem
        )


async def _logged_in(
    path: str, version: str, environment: Mapping[str, str], mask: Mask
) -> bool | None:
    """What `claude auth status` says; None where it is not known.

    An agent's own `env` may hold a key, so that `False` is no hindrance, only a hint.
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    # Earlier ones would take the words for a prompt (Claude Code's changelog, 2.1.41).
    if numbers is None or tuple(map(int, numbers.groups())) < _AUTH_STATUS_SINCE:
        return None
    output, _ = await probe([path, "auth", "status"], environment, inherits=INHERITS, mask=mask)
    said = parse_object(output.encode("utf-8", "replace")) or {}
    logged_in = said.get("loggedIn")
    return logged_in if isinstance(logged_in, bool) else None


def find_program(environment: Mapping[str, str]) -> str | None:
    """The absolute path of `claude`, on PATH or where its installers put it."""
    return find(PROGRAM, environment, "~/.claude/local")


class ClaudeSession:
    """One `claude -p` process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._session_id = job.session_id or job.new_session_id
        self._requests = 0
        self._tuning = Tuning(job.agent.model, job.agent.mode)
        #: What it was asked to work with, and the requests that it has not agreed to yet.
        self._wanted = job.agent.model, job.agent.mode
        self._unanswered: dict[str, Json] = {}
        #: Whether any turn has begun in this process, and what all of them have cost.
        self._worked = False
        self._cost_usd = 0.0
        #: Our messages that have not come back; the first of them is worked on, once a turn began.
        self._awaited: list[str] = []
        #: The one whose turn is under way, whether it has come back or not.
        self._current = ""
        #: Whether the run's first turn has begun, and its last has ended.
        self._initialised = False
        self._ended = True
        #: Number of the next text block, and those that were begun and not yet finished.
        self._blocks = 0
        self._begun: deque[_Block] = deque(maxlen=_MAX_BEGUN)
        #: The `error` of the last failed request, and the last text of the model.
        self._error: str | None = None
        self._last_text = ""
        #: When the limit that refused it is over.
        self._resets_at: datetime | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(warm=True, steer=True, converses=True)

    def launch(self) -> Command:
        job = self._job
        config, append = job.run_dir / "mcp.json", job.run_dir / "system-prompt.md"
        words = [
            *self._program(),
            *("-p", "--input-format", "stream-json", "--output-format", "stream-json"),
            *("--verbose", "--include-partial-messages", "--replay-user-messages"),
            *("--permission-prompt-tool", "stdio"),
            *("--mcp-config", str(config), "--strict-mcp-config"),
            *("--append-system-prompt-file", str(append)),
            *("--allowedTools", f"mcp__{SERVER}"),
            *("--permission-mode", job.agent.mode),
            # Files that come with messages may be read without asking.
            *("--add-dir", str(job.home / "attachments")),
        ]
        if job.agent.model:
            words += ["--model", job.agent.model]
        if job.session_id:
            # One word: a value that begins with a dash would be read as a flag.
            words.append(f"--resume={job.session_id}")
        else:
            words.append(f"--session-id={job.new_session_id}")
        return Command(
            argv=tuple(words),
            env={
                **self._path(words[0]),
                "DISABLE_AUTOUPDATER": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": job.environment.get(
                    "CLAUDE_CODE_MAX_RETRIES", _MAX_RETRIES
                ),
            },
            inherits=INHERITS,
            files={config: self._mcp_config(), append: job.system_prompt},
            journal=self._journal(),
        )

    def prompt(self, turn: Turn) -> bytes:
        hello = self._hello()
        self._awaited = [turn.id]
        self._initialised, self._ended = False, False
        self._blocks, self._error, self._last_text = 0, None, ""
        self._begun.clear()
        return hello + _user(turn)

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        requests = self._tuning.requests(model, mode)
        if not requests:
            return None if requests is None else b""
        self._wanted = model, mode
        said = self._hello()
        for request in requests:
            said += self._request(**request)
            self._unanswered[self._request_id] = request
        return said

    def steer(self, turn: Turn) -> bytes:
        if self._ended:
            return b""
        self._awaited.append(turn.id)
        return _user(turn)

    def interrupt(self) -> bytes | signal.Signals:
        if any(one != self._current for one in self._awaited) and self._initialised:
            return signal.SIGTERM  # else it would go on with the next message, after SIGINT, too
        if self._initialised and not self._ended:
            return self._request("interrupt")
        # It has no turn yet, and would begin it after an interrupt. This is the one signal at which
        # claude ends its own tools too.
        return signal.SIGINT

    def _hello(self) -> bytes:
        """Before anything else is said to it."""
        return b"" if self._requests else self._request("initialize", hooks=None)

    def _request(self, subtype: str, **more: Any) -> bytes:
        self._requests += 1
        request = {"subtype": subtype, **more}
        return _line(
            {"type": "control_request", "request_id": self._request_id, "request": request}
        )

    @property
    def _request_id(self) -> str:
        """Of what it was asked last."""
        return f"ca-{self._requests}"

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        message = parse_object(line)
        if message is None:
            return ()
        match message.get("type"):
            case "system":
                return self._system(message)
            case "stream_event" if not message.get("parent_tool_use_id"):
                return self._partial(as_object(message.get("event")))
            case "assistant":
                return self._assistant(message)
            case "user":
                return self._user(message)
            case "rate_limit_event":
                return self._limit(as_object(message.get("rate_limit_info")))
            case "result":
                return self._result(message)
            case kind:
                return self._control(kind, message)

    def _control(self, kind: Any, message: Json) -> Iterable[DriverEvent]:
        match kind:
            case "control_request":
                return self._asked(message)
            case "control_response":
                return self._answered(as_object(message.get("response")))
            case "control_cancel_request":
                return (PermissionWithdrawn(as_text(message.get("request_id"))),)
            case _:
                return ()

    # --- starting ---

    def _program(self) -> list[str]:
        if self._job.agent.command:
            return self._job.agent.command
        if path := find_program(self._job.environment):
            return [path]
        raise DriverError(
            Reason.RUNTIME_MISSING,
            "Claude Code is not installed on this machine. Install it with "
            "`npm install -g @anthropic-ai/claude-code`, run `claude` once to log in, and send "
            "the message again.",
        )

    def _path(self, program: str) -> dict[str, str]:
        if self._job.agent.command:
            return {}
        path = self._job.agent.env.get("PATH") or self._job.environment.get("PATH", "")
        return {"PATH": own_folder_first(program, path)}

    def _mcp_config(self) -> str:
        command, *args = self._job.tools.command
        # alwaysLoad: without it a turn starts before the server is connected, and its tools may
        # be hidden behind a tool search.
        server = {"type": "stdio", "command": command, "args": args, "alwaysLoad": True}
        return json.dumps({"mcpServers": {SERVER: server}})

    def _journal(self) -> Path:
        environment = {**self._job.environment, **self._job.agent.env}
        base = environment.get("CLAUDE_CONFIG_DIR") or f"{environment.get('HOME', '')}/.claude"
        folder = re.sub(r"[^A-Za-z0-9]", "-", str(self._job.cwd))
        return Path(base) / "projects" / folder / f"{self._session_id}.jsonl"

    # --- lines ---

    def _answered(self, answer: Json) -> Iterator[DriverEvent]:
        request = self._unanswered.pop(as_text(answer.get("request_id")), None)
        if request is None:
            return
        if not agrees(request, answer):
            self._unanswered.clear()
            yield Adjusted(False)
        elif not self._unanswered:
            self._tuning.tuned(*self._wanted)
            yield Adjusted(True)

    def _system(self, message: Json) -> Iterator[DriverEvent]:
        self._tuning.heard(message)
        match message.get("subtype"):
            case "init":
                self._session_id = short(message.get("session_id")) or self._session_id
                # With nothing to work on it begins a turn of its own, such as at the end of a task
                # that it had left in the background.
                self._current = self._awaited[0] if self._awaited else ""
                yield TakenUp(self._current)
                if not self._initialised:
                    self._initialised = self._worked = True
                    yield self._ready(message)
            case "api_retry":
                self._error = as_text(message.get("error"))
                yield Retry(
                    at=now(),
                    attempt=number(message.get("attempt")) or 1,
                    reason=self._reason(number(message.get("error_status")), ""),
                    delay_s=(number(message.get("retry_delay_ms")) or 0) / 1000,
                )
            case _:
                pass

    def _ready(self, init: Json) -> DriverEvent:
        states = {
            as_text(server.get("name")): as_text(server.get("status"))
            for server in as_objects(init.get("mcp_servers"))
        }
        if states.get(SERVER) != "connected":
            state = short(states.get(SERVER)) or "missing"
            return TurnEnd(
                Reason.TOOLS_UNAVAILABLE,
                f"Claude Code began its turn without our tools (MCP server {SERVER}: {state}).",
                session_id=self._session_id,
            )
        return Ready(at=now(), session_id=self._session_id, model=short(init.get("model")))

    def _partial(self, event: Json) -> Iterator[DriverEvent]:
        """An event of the model's own stream; a message's text blocks come one after the other."""
        match event.get("type"):
            case "message_start" if self._begun:
                # The answer before was broken off and begins anew: so do its blocks.
                self._blocks = self._begun[0].number
                self._begun.clear()
            case "content_block_start":
                if as_object(event.get("content_block")).get("type") == "text":
                    self._begun.append(_Block(self._blocks))
                    self._blocks += 1
            case "content_block_delta" if self._begun:
                delta = as_object(event.get("delta"))
                text = as_text(delta.get("text"))
                if delta.get("type") == "text_delta" and text:
                    block = self._begun[-1]
                    yield TextDelta(block.number, block.length, text)
                    block.length += len(text)
            case _:
                pass

    def _assistant(self, message: Json) -> Iterator[DriverEvent]:
        inner = as_object(message.get("message"))
        if error := as_text(message.get("error")):
            self._error = error
        synthetic = inner.get("model") == "<synthetic>"  # claude's words, not the model's
        nested = bool(message.get("parent_tool_use_id"))  # a subagent's
        for block in as_objects(inner.get("content")):
            match block.get("type"):
                case "text" if not synthetic and not nested:
                    yield from self._text(as_text(block.get("text")))
                case "tool_use":
                    yield ToolCall(
                        at=now(),
                        tool_call_id=short(block.get("id")),
                        name=short(block.get("name")),
                        input=clipped(as_object(block.get("input"))),
                    )
                case _:
                    pass

    def _text(self, text: str) -> Iterator[DriverEvent]:
        if self._begun:
            number = self._begun.popleft().number
        else:
            number = self._blocks
            self._blocks += 1
        self._last_text = text
        yield Text(at=now(), block=number, text=clip(text, 50_000)[0])

    def _user(self, message: Json) -> Iterator[DriverEvent]:
        if message.get("isReplay") is True:
            turn_id = as_text(message.get("uuid"))
            if turn_id in self._awaited:
                self._awaited.remove(turn_id)
                yield TakenUp(turn_id)
            return
        for block in as_objects(as_object(message.get("message")).get("content")):
            if block.get("type") == "tool_result":
                output, truncated = clip(plain(block.get("content")))
                yield ToolResult(
                    at=now(),
                    tool_call_id=short(block.get("tool_use_id")),
                    output=output,
                    is_error=block.get("is_error") is True,
                    truncated=truncated,
                )

    def _limit(self, told: Json) -> Iterable[DriverEvent]:
        """How much of the account's allowance is left; only that there is none is of interest."""
        if told.get("status") == "rejected":
            self._resets_at = from_number(told.get("resetsAt"))
        return ()

    # --- what it asks ---

    def _asked(self, message: Json) -> Iterator[DriverEvent]:
        request_id, request = message.get("request_id"), as_object(message.get("request"))
        if request.get("subtype") != "can_use_tool":
            refused = f"cloudagent knows no {short(request.get('subtype'))!r}"
            yield _answer("error", request_id, error=refused)
            return
        tool, asked = short(request.get("tool_name")), as_object(request.get("input"))

        def then(decision: Decision) -> Iterator[DriverEvent]:
            if decision.allow:
                given = asked if decision.input is None else decision.input
                said: Json = {"behavior": "allow", "updatedInput": given}
            else:
                said = {"behavior": "deny", "message": decision.why}
            yield _answer("success", request_id, response=said)

        yield PermissionAsked(
            tool,
            _KINDS.get(tool, "other"),
            asked,
            ours=tool.startswith(f"mcp__{SERVER}__"),
            then=then,
            id=as_text(request_id),
            beyond_mode=True,
        )

    # --- the end ---

    def _usage(self, result: Json) -> Usage:
        """What the turn has used; the cost that claude tells is that of the whole process."""
        raw = as_object(result.get("usage"))
        read = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        cost, before = result.get("total_cost_usd"), self._cost_usd
        if number(cost) is not None:
            self._cost_usd = float(cast("float", cost))
        return Usage(
            input_tokens=sum(number(raw.get(name)) or 0 for name in read),
            output_tokens=number(raw.get("output_tokens")) or 0,
            cost_usd=None if number(cost) is None else max(0.0, self._cost_usd - before),
        )

    def _result(self, message: Json) -> Iterator[DriverEvent]:
        reason = self._failure(message)
        usage = self._usage(message)
        yield UsageReported(at=now(), usage=usage)
        if self._awaited and self._initialised:
            # The end of a turn that is not ours, or of ours while another message waits for its own.
            self._last_text = as_text(message.get("result")) or self._last_text
            return
        self._ended = True
        session_id = short(message.get("session_id")) or self._session_id
        said = as_text(message.get("result"))
        yield TurnEnd(
            reason,
            ""
            if reason is None
            else clip(said or " ".join(as_texts(message.get("errors"))), 2_000)[0],
            session_id=None if reason is Reason.SESSION_LOST else session_id,
            usage=usage,
            final_text="" if reason else said or self._last_text,
            resets_at=self._reset(said) if reason is Reason.RATE_LIMIT else None,
        )

    def _reset(self, said: str) -> datetime | None:
        return plausible(self._resets_at or in_words(said, now()), now())

    def _failure(self, result: Json) -> Reason | None:
        subtype = result.get("subtype")
        if subtype == "success" and result.get("is_error") is not True:
            return None
        if subtype == "error_max_turns":
            return Reason.MAX_TURNS
        if subtype == "error_max_budget_usd":
            return Reason.BILLING
        if as_text(result.get("terminal_reason")) in _ABORTED:
            return Reason.INTERRUPTED
        resumed = self._job.session_id is not None
        if resumed and not self._worked and not number(result.get("num_turns")):
            # It was told to resume and ended before any turn began: there is nothing to resume.
            return Reason.SESSION_LOST
        status = number(result.get("api_error_status"))
        return self._reason(status, as_text(result.get("terminal_reason")))

    def _reason(self, status: int | None, termination: str) -> Reason:
        # A failure of the server's that has no HTTP status: there was no answer at all.
        unanswered = status is None and self._error in {"unknown", "server_error"}
        return (
            _BY_TERMINATION.get(termination)
            or _BY_KIND.get(self._error or "")
            or by_status(status)
            or (Reason.CONNECTION if unanswered else None)
            or _BY_GENERAL_KIND.get(self._error or "")
            or Reason.MODEL_ERROR
        )


class _Block:
    """A text block that the model is writing; `length` in code points."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.length = 0


def _answer(subtype: str, request_id: Any, **more: Any) -> Say:
    response = {"subtype": subtype, "request_id": request_id, **more}
    return Say(_line({"type": "control_response", "response": response}))


def _user(turn: Turn) -> bytes:
    content: list[Json] = [{"type": "text", "text": turn.prompt}]
    for one in turn.pictures:
        source = {"type": "base64", "media_type": one.media_type, "data": one.data}
        content.append({"type": "image", "source": source})
    message = {"role": "user", "content": content}
    return _line({"type": "user", "message": message, "uuid": turn.id})


def _line(message: Json) -> bytes:
    # Escaped, so that whatever a text holds is one line of valid UTF-8: any other one kills claude.
    return json.dumps(message).encode() + b"\n"


CLAUDE_CODE: Final = ClaudeCode()
