"""Programs that speak the Agent Client Protocol, version 1 (agentclientprotocol.com), over stdio.

`initialize`, `session/new` (or `session/resume`, `session/load`), `session/prompt`; meanwhile the program
tells what it does (`session/update`) and asks what it may do (`session/request_permission`). The prompt
waits until the program has listed our tools. One process per message, its session resumed where the
program can.

Written by hand: `agent-client-protocol` owns the pipes and drops what its models do not know (docs/decisions/0017).
"""

import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import anyio

from cloudagent_daemon.drivers.acp_programs import PROGRAMS, Program
from cloudagent_daemon.drivers.acp_updates import Updates, our_tool
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
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.jsonrpc import METHOD_NOT_FOUND, Answer, Calls
from cloudagent_daemon.drivers.lines import clip, parse_object
from cloudagent_daemon.drivers.probe import find_program, own_folder_first, version_of
from cloudagent_daemon.drivers.statuses import by_status
from cloudagent_daemon.drivers.values import (
    Json,
    as_object,
    as_objects,
    as_text,
    now,
    number,
    short,
)
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import Ready, Reason, Stderr, UsageReported
from cloudagent_protocol.resources import Runtime
from cloudagent_protocol.version import DISTRIBUTION

VERSION: Final = 1
#: The protocol's own error code for "log in first".
_AUTH_REQUIRED: Final = -32000
#: After its turn's end it is told so by the end of its input; some stay all the same.
_LINGER_S: Final = 3.0
#: Updates that a session with a past cannot be told without.
_SPOKEN: Final = frozenset({"user_message_chunk", "agent_message_chunk", "tool_call"})
_STOPS: Final = {
    "max_tokens": (Reason.MODEL_ERROR, "The model reached the most tokens that it may write."),
    "max_turn_requests": (Reason.MAX_TURNS, "It asked its model as often as it may in a turn."),
    "refusal": (Reason.MODEL_ERROR, "The model refused to go on."),
    "cancelled": (Reason.INTERRUPTED, "The turn was cancelled."),
}


class Acp:
    """The driver `acp` for any program by the agent's command, or one for a program that is known."""

    warm = False

    def __init__(self, program: Program | None = None) -> None:
        self.name = program.driver if program else "acp"
        self.resumes = program.resumes if program else True
        self._program = program

    def open(self, job: Job) -> DriverSession:
        return AcpSession(job, self._program)

    async def detect(self, environment: Mapping[str, str], mask: Mask = NO_MASK) -> Runtime | None:
        program = self._program
        if program is None:
            return None
        path = find_program(program.name, environment)
        if path is None:
            why = f"not found; install it with  npm install -g {program.package}"
            return Runtime(name=self.name, problem=why)
        version, problem = await version_of(
            path, program.package, environment, inherits=program.inherits, mask=mask
        )
        logged_in = await _logged_in(program, environment)
        return Runtime(
            name=self.name, version=version, path=path, logged_in=logged_in, problem=problem
        )


async def _logged_in(program: Program, environment: Mapping[str, str]) -> bool | None:
    """True where a key or a login's traces are; None where it is not known: none of them tells."""
    if any(environment.get(key) for key in program.keys):
        return True
    home = anyio.Path(environment.get("HOME", "/nonexistent"))
    for file in program.credentials:
        if await (home / file).exists():
            return True
    return None


class AcpSession:
    """One process that speaks ACP."""

    def __init__(self, job: Job, program: Program | None) -> None:
        self._job = job
        self._program = program
        self._calls = Calls()
        self._updates = Updates(job.tools.names)
        self._turn = Turn("")
        #: Whether the program takes pictures in a prompt.
        self._sees = False
        self._session_id: str | None = None
        #: Whether what it tells belongs to the turn: a session that is loaded is told anew.
        self._prompted = False
        #: Whether anything of an earlier process was told, as `session/load` has to.
        self._replayed = False
        self._ended = False
        #: Requests for a permission that wait for their answer.
        self._asked: set[str | int] = set()

    @property
    def capabilities(self) -> Capabilities:
        reserves = self._program.reserves if self._program else frozenset[str]()
        return Capabilities(converses=True, reports_tools=False, reserves=reserves)

    # --- starting ---

    def launch(self) -> Command:
        agent = self._job.agent
        program = self._program
        if agent.command:
            words, path = list(agent.command), {}
        else:
            words, path = self._found()
        if program and program.model_flag and agent.model:
            words += [program.model_flag, agent.model]
        return Command(
            argv=tuple(words),
            env={**path, **(program.env if program else {})},
            inherits=program.inherits if program else (),
            linger_s=_LINGER_S,
        )

    def _found(self) -> tuple[list[str], dict[str, str]]:
        program = self._program
        if program is None:
            raise DriverError(
                Reason.RUNTIME_MISSING,
                "An agent with the driver acp needs a command: the program that speaks the Agent "
                'Client Protocol, such as ["goose", "acp"]. Set the agent\'s `command`.',
            )
        environment = self._job.environment
        found = find_program(program.name, environment)
        if found is None:
            raise DriverError(
                Reason.RUNTIME_MISSING,
                f"{program.title} is not installed on this machine. Install it with `npm install "
                f"-g {program.package}`, log in with `{program.login}`, and send the message again.",
            )
        path = self._job.agent.env.get("PATH") or environment.get("PATH", "")
        return [found, *program.arguments], {"PATH": own_folder_first(found, path)}

    def prompt(self, turn: Turn) -> bytes:
        self._turn = turn
        nothing = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        hello = {
            "protocolVersion": VERSION,
            "clientCapabilities": nothing,
            "clientInfo": {"name": SERVER, "title": SERVER, "version": DISTRIBUTION},
        }
        return self._calls.request("initialize", hello, self._initialised).data

    # --- lines ---

    def receive(self, line: bytes) -> Iterable[DriverEvent]:
        message = parse_object(line)
        if message is None or self._ended:
            return ()
        method, request_id = message.get("method"), message.get("id")
        if not isinstance(method, str):
            return self._calls.settle(message)
        params = as_object(message.get("params"))
        if request_id is None:
            if method == "session/update":
                return self._update(as_object(params.get("update")))
            return self._taken_back(params) if method == "$/cancel_request" else ()
        if method == "session/request_permission" and isinstance(request_id, str | int):
            return self._permission(request_id, params)
        return [self._calls.refuse(request_id, method)]

    def _update(self, update: Json) -> Iterable[DriverEvent]:
        if self._prompted:
            return self._updates.receive(update)
        self._replayed = self._replayed or update.get("sessionUpdate") in _SPOKEN
        return ()

    def adjust(self, model: str | None, mode: str) -> bytes | None:
        return None  # each message has a process of its own

    def steer(self, turn: Turn) -> bytes:
        return b""

    def interrupt(self) -> bytes | signal.Signals:
        if not self._prompted or self._ended:
            return b""
        # Whoever cancels answers what is asked (protocol: Prompt Turn, Cancellation).
        answers = [self._calls.answer(one, _cancelled()).data for one in self._asked]
        self._asked.clear()
        cancel = self._calls.notify("session/cancel", {"sessionId": self._session_id}).data
        return b"".join([*answers, cancel])

    # --- the session ---

    def _initialised(self, answer: Answer) -> Iterator[DriverEvent]:
        if answer.error is not None:
            yield from self._failed(answer.error)
            return
        if answer.result.get("protocolVersion") != VERSION:
            yield self._end(
                Reason.RUNTIME_MISSING,
                f"It speaks version {answer.result.get('protocolVersion')!r} of the Agent Client "
                f"Protocol, this daemon version {VERSION}. Update the older of the two.",
            )
            return
        can = as_object(answer.result.get("agentCapabilities"))
        self._sees = as_object(can.get("promptCapabilities")).get("image") is True
        place: Json = {"cwd": str(self._job.cwd), "mcpServers": [self._server()]}
        earlier = self._job.session_id
        if earlier is None:
            yield self._calls.request("session/new", place, self._opened)
            return
        yield from self._resume(_resuming(can), {"sessionId": earlier, **place})

    def _resume(self, methods: list[str], params: Json) -> Iterator[DriverEvent]:
        """By the first of the methods that it has: qwen 0.15.10 tells of one that it has not."""
        if not methods:
            yield self._lost("It cannot load a session of an earlier process.")
            return
        method, *others = methods

        def then(answer: Answer) -> Iterable[DriverEvent]:
            if answer.error is not None and answer.error.get("code") == METHOD_NOT_FOUND:
                return self._resume(others, params)
            if answer.error is None and method == "session/load" and not self._replayed:
                # qwen 0.15.10 begins a session of that name if it knows none, and says nothing.
                return [self._lost("It has nothing of the session that it was to load.")]
            return self._resumed(answer)

        yield self._calls.request(method, params, then)

    def _server(self) -> Json:
        command, *args = self._job.tools.command
        return {"name": SERVER, "command": command, "args": args, "env": []}

    def _resumed(self, answer: Answer) -> Iterator[DriverEvent]:
        if answer.error is not None and answer.error.get("code") != _AUTH_REQUIRED:
            yield self._lost(_said(answer.error))
            return
        yield from self._opened(answer)

    def _opened(self, answer: Answer) -> Iterator[DriverEvent]:
        if answer.error is not None:
            yield from self._failed(answer.error)
            return
        self._session_id = short(answer.result.get("sessionId")) or self._job.session_id
        wishes, problem = _wishes(self._job, answer.result, self._program)
        if problem:
            yield self._end(Reason.INVALID_REQUEST, problem)
        else:
            yield from self._wish(wishes)

    def _wish(self, wishes: list[tuple[str, Json]]) -> Iterator[DriverEvent]:
        """Sets one after the other, then waits for the tools."""
        if not wishes:
            yield AwaitTools(self._begin)
            return
        (method, params), *rest = wishes

        def then(answer: Answer) -> Iterator[DriverEvent]:
            if answer.error is not None:
                yield from self._failed(answer.error)
            else:
                yield from self._wish(rest)

        yield self._calls.request(method, {"sessionId": self._session_id, **params}, then)

    def _begin(self, has_tools: bool) -> Iterator[DriverEvent]:
        if self._ended:
            return
        if has_tools:
            yield Ready(at=now(), session_id=self._session_id, model=self._job.agent.model)
        else:
            note = "[it has not listed our tools in time; its turn begins without them]"
            yield Stderr(at=now(), text=note)
        self._prompted = True
        # The protocol has no place for what is to be said once, and a session may forget it.
        texts = (self._job.system_prompt, self._turn.prompt)
        blocks = [{"type": "text", "text": text} for text in texts]
        if self._sees:
            blocks += [
                {"type": "image", "mimeType": one.media_type, "data": one.data}
                for one in self._turn.pictures
            ]
        params = {"sessionId": self._session_id, "prompt": blocks}
        yield self._calls.request("session/prompt", params, self._done)

    # --- the turn ---

    def _permission(self, request_id: str | int, params: Json) -> Iterator[DriverEvent]:
        call = self._updates.call(as_object(params.get("toolCall")))
        yield from self._updates.tell(call)
        self._asked.add(request_id)
        options = as_objects(params.get("options"))

        def then(decision: Decision) -> Iterator[DriverEvent]:
            if request_id in self._asked:
                self._asked.discard(request_id)
                yield self._calls.answer(request_id, _chosen(options, decision))

        ours = our_tool(call, self._job.tools.names)
        yield PermissionAsked(
            tool=ours or short(call.get("title")) or "tool",
            kind=short(call.get("kind")) or "other",
            input=as_object(call.get("rawInput")),
            ours=ours is not None,
            then=then,
            id=repr(request_id),
        )

    def _taken_back(self, params: Json) -> Iterator[DriverEvent]:
        """It needs no answer to this request any more (protocol: Cancellation), and gets one that says so."""
        request_id = params.get("requestId")
        if isinstance(request_id, str | int) and request_id in self._asked:
            self._asked.discard(request_id)
            yield PermissionWithdrawn(repr(request_id))
            yield self._calls.answer(request_id, _cancelled())

    def _done(self, answer: Answer) -> Iterator[DriverEvent]:
        yield from self._updates.writing.finish()
        if answer.error is not None:
            yield from self._failed(answer.error)
            return
        self._updates.count(_tokens(answer.result))
        stop = short(answer.result.get("stopReason"))
        if usage := self._updates.usage:
            yield UsageReported(at=now(), usage=usage)
        if stop == "end_turn":
            yield self._end(None, "")
            return
        unknown = (Reason.MODEL_ERROR, f"It stopped for a reason that is not known ({stop!r}).")
        yield self._end(*_STOPS.get(stop, unknown))

    # --- the end ---

    def _failed(self, error: Json) -> Iterator[DriverEvent]:
        yield self._end(_reason(error), _said(error))

    def _lost(self, why: str) -> TurnEnd:
        self._session_id = None
        return self._end(Reason.SESSION_LOST, why)

    def _end(self, reason: Reason | None, detail: str) -> TurnEnd:
        self._ended = True
        return TurnEnd(
            reason,
            clip(detail, 2_000)[0],
            session_id=self._session_id,
            usage=self._updates.usage,
            final_text="" if reason else self._updates.writing.last,
        )


def _resuming(can: Json) -> list[str]:
    """Ways to go on with a session; `session/resume` does not tell all that was said before."""
    resumes = as_object(can.get("sessionCapabilities")).get("resume") is not None
    loads = can.get("loadSession") is True
    return ["session/resume"] * resumes + ["session/load"] * loads


def _wishes(
    job: Job, session: Json, program: Program | None
) -> tuple[list[tuple[str, Json]], str | None]:
    """The requests that make a session the agent's, and why that cannot be.

    Of permission modes only `plan` is the program's own: what it asks for in the others is
    answered by the agent's mode.
    """
    wishes: list[tuple[str, Json]] = []
    wanted = [("model", job.agent.model if not (program and program.model_flag) else None)]
    wanted.append(("mode", "plan" if job.agent.mode == "plan" else None))
    for what, value in wanted:
        if value is None:
            continue
        offered = offers(session, what)
        chosen = next((wish for ids, wish in offered if value in ids), None)
        if chosen is None:
            there = ", ".join(sorted(ids[0] for ids, _ in offered)[:20]) or "none"
            return [], f"It offers no {what} {value!r}. There are: {there}."
        wishes.append(chosen)
    return wishes, None


def offers(session: Json, what: str) -> list[tuple[list[str], tuple[str, Json]]]:
    """What can be chosen: the names of each choice, and the request that chooses it."""
    found: list[tuple[list[str], tuple[str, Json]]] = []
    for option in as_objects(session.get("configOptions")):
        if option.get("category") == what and option.get("type") == "select":
            for choice in as_objects(option.get("options")):
                for one in [choice, *as_objects(choice.get("options"))]:  # they may be in groups
                    if value := as_text(one.get("value")):
                        params = {"configId": option.get("id"), "value": value}
                        names = [value, as_text(one.get("name"))]
                        found.append((names, ("session/set_config_option", params)))
    if found:
        return found
    key = f"{what}Id"
    listed = as_object(session.get(f"{what}s")).get(f"available{what.capitalize()}s")
    for one in as_objects(listed):
        if value := as_text(one.get("id" if what == "mode" else key)):
            names = [value, as_text(one.get("name"))]
            found.append((names, (f"session/set_{what}", {key: value})))
    return found


def _chosen(options: list[Json], decision: Decision) -> Json:
    """The answer that a decision comes to: once, so that the next time is decided anew."""
    kinds = (*(["allow_once"] if decision.allow else []), "reject_once", "reject_always")
    for kind in kinds:
        for option in options:
            if option.get("kind") == kind:
                return {"outcome": {"outcome": "selected", "optionId": option.get("optionId")}}
    return _cancelled()


def _tokens(result: Json) -> Json:
    """What a turn cost, in the words of the protocol's draft; gemini has words of its own."""
    if total := as_object(result.get("usage")):
        return total
    quota = as_object(as_object(result.get("_meta")).get("quota"))
    told = as_object(quota.get("token_count"))
    return {"inputTokens": told.get("input_tokens"), "outputTokens": told.get("output_tokens")}


def _cancelled() -> Json:
    return {"outcome": {"outcome": "cancelled"}}


def _reason(error: Json) -> Reason:
    """By the HTTP status of the model's service, where a program passes it on."""
    code, data = number(error.get("code")), as_object(error.get("data"))
    if code == _AUTH_REQUIRED:
        return Reason.AUTHENTICATION
    # The OpenAI library's errors begin with it.
    words = as_text(data.get("details")).split(maxsplit=1)[:1]
    told: list[Any] = [code, *(data.get(key) for key in ("statusCode", "status", "httpStatus"))]
    told += [int(word) for word in words if word.isascii() and word.isdigit() and len(word) == 3]
    return next(filter(None, (by_status(number(one)) for one in told)), Reason.MODEL_ERROR)


def _said(error: Json) -> str:
    data = as_object(error.get("data"))
    details = as_text(data.get("details")) or as_text(data.get("message"))
    return ": ".join(filter(None, (as_text(error.get("message")), details)))


def drivers() -> tuple[Acp, ...]:
    """A driver for each program that is known, and the one for all others."""
    return (*map(Acp, PROGRAMS), Acp())


ACP: Final = drivers()
