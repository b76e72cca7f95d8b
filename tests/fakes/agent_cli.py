"""A coding agent without a model: speaks Claude Code's stream-json, does what the prompts say.

Start it as `claude` is started; give it to an agent as `command: [sys.executable, agent_cli.py]`. It
takes messages and control requests on stdin until that ends, one turn after the other. A message that
comes while a turn goes on is folded into it at its next `@@may` or `@@pause`, or else has a turn of its
own. Each line of a prompt that begins with `@@` is an order, carried out in turn:

=========================  ========================================================================
``@@reply TEXT``           send a message with the tool `send_message`
``@@silent REASON``        call the tool `stay_silent`
``@@call TOOL JSON``       call any tool; its answer is printed as claude prints it
``@@volley ME OTHER``      message the agent OTHER with the same order, the other way round
``@@say TEXT``             write a text block, word by word
``@@recall``               write a text block with the earlier prompts of this session
``@@pictures``             write a text block with the kinds of the pictures that came with the prompt
``@@blind``                end the turn as one of a model that takes no pictures, if there are any
``@@stderr TEXT``          write a line to stderr
``@@line BYTES``           print a tool result of so many bytes, on one line
``@@garbage``              print bytes that are no UTF-8, and lines that are no JSON
``@@retry STATUS ERROR``   report that a model request failed and is tried again
``@@limit EPOCH``          tell that the account has used up what it may until then
``@@limited EPOCH``        end the turn for that, if it is so and FAKE_STATE/paid is not there
``@@error STATUS ERROR``   end the turn with an error result; the exit is then 1
``@@result SUBTYPE``       end the turn with a result of this subtype; the exit is then 1
``@@tools STATE [N]``      begin with the tools in this state (`pending`, `failed`); N times
``@@mute``                 never say that the tools are there
``@@setsid``               leave a child in a session of its own that would live for an hour
``@@spawn``                leave a child that has scrubbed its environment
``@@ignore TERM``          ignore this signal
``@@hang``                 do nothing more, for an hour
``@@crash [N]``            exit with N (1), at once, without a result
``@@kill``                 be killed by SIGKILL
``@@quit``                 exit 0 without a result
``@@nothing``              print nothing at all and exit 0
``@@env NAME``             write a text block with this environment variable
``@@may TOOL JSON``        ask whether it may, and write a text block with the answer; have the effect
                           `did COMMAND` if there is one and it may
``@@touch PATH``           make that file; it asks before where its permission mode wants that
``@@as``                   write a text block with its model and permission mode
``@@retract TOOL JSON``    ask whether it may, and take that back once FAKE_STATE/gate is there
``@@goes_on``              told that its work was paused until a person could answer, begin these orders anew
``@@unless TEXT ORDER``    an order, but not if it is told that this (one word) was sent, asked or answered
``@@edit PATH TEXT``       ask whether it may write that file, and write it if so; `|` ends a line
``@@tool NAME``            say that it uses this tool, unasked
``@@pause``                wait for a message that is put into this turn
``@@gate``                 wait until FAKE_STATE/gate is there
``@@deaf``                 heed no control request any more
``@@stubborn``             refuse every other model and mode
``@@touchy``               crash at the next control request
``@@later WHAT``           once FAKE_STATE/later is there, with no message: `work`, `garbage`, `crash`
``@@untaken WHAT``         as the last of a prompt, its own next message is not begun: `crash`, `hang`
=========================  ========================================================================

Environment: `FAKE_STATE` is a folder for sessions; `FAKE_EFFECTS` a file that gets one line for
each thing done, appended in one write, so that a test can count what really happened.

Many tests start hundreds of these, so it imports little: no pathlib, typing, uuid, which take longer
than all that it does.
"""

from __future__ import annotations

import _thread
import argparse
import json
import os
import signal
import subprocess
import sys
import time
from _queue import SimpleQueue

TYPE_CHECKING = False  # as in `typing`
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Json: TypeAlias = dict[str, Any]

BYPASS = "bypassPermissions"
STATE = os.environ.get("FAKE_STATE", "/nonexistent")


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 (pathlib takes 8 ms to import)
        return file.read()


def new_id() -> str:
    """As a UUID looks."""
    digits = os.urandom(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110


def going_on(prompt: str, earlier: list[str]) -> str:
    """What to do for a prompt: once people have answered, a model goes on where it was."""
    paused = "your work was paused until a person could answer" in prompt
    return earlier[0] if paused and earlier and "@@" not in prompt else prompt


def append(path: str, line: str) -> None:
    """In one write, so that lines of several processes do not mix."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def effect(what: str) -> None:
    if path := os.environ.get("FAKE_EFFECTS"):
        append(path, what)


def say(message: Json) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Tools:
    """An MCP server, over stdio."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._id = 0
        client = {"name": "fake", "version": "1"}
        self.request(
            "initialize",
            {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client},
        )
        self._send({"method": "notifications/initialized"})
        self.names = [tool["name"] for tool in self.request("tools/list", {})["tools"]]

    def call(self, name: str, arguments: Json, use_id: str) -> Json:
        self.begin(name, arguments, use_id)
        return self._answer()

    def begin(self, name: str, arguments: Json, use_id: str) -> None:
        """Says what to call; `answer` is for what comes of it."""
        meta = {"claudecode/toolUseId": use_id}
        self._request("tools/call", {"name": name, "arguments": arguments, "_meta": meta})

    def answer(self) -> Json | None:
        """The answer to the last request; None if the server is gone."""
        assert self._process.stdout
        while line := self._process.stdout.readline():
            answer = json.loads(line)
            if answer.get("id") == self._id:
                return answer["result"]
        return None

    def request(self, method: str, params: Json) -> Json:
        self._request(method, params)
        return self._answer()

    def kill(self) -> None:
        self._process.kill()

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    def _request(self, method: str, params: Json) -> None:
        self._id += 1
        self._send({"id": self._id, "method": method, "params": params})

    def _answer(self) -> Json:
        answer = self.answer()
        if answer is None:
            raise SystemExit("the MCP server is gone")
        return answer

    def _send(self, message: Json) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def configured(config: str) -> Tools:
    """The one of claude's configuration."""
    server = json.loads(read(config))["mcpServers"]["cloudagent"]
    assert server["alwaysLoad"] is True
    return Tools([server["command"], *server["args"]])


class InterruptedTurnError(Exception):
    """The turn was interrupted by a control request."""


class FailedTurnError(Exception):
    """The turn has ended with an error."""


class Inbox:
    """What comes on stdin, sorted as it comes; an interrupt breaks into whatever is being done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._come = SimpleQueue()
        self.model = options.model or "fake-1"
        self.mode = self.begun_in = options.permission_mode or "default"
        self.mode_before = "default"
        self.stubborn = self.touchy = False
        #: Messages that were read and have not begun.
        self.waiting: list[Json] = []
        self.answers: list[Json] = []
        self.busy = False
        self.deaf = False
        signal.signal(signal.SIGUSR1, self._interrupted)
        _thread.start_new_thread(self._read, ())

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if message["type"] == "control_request" and not self.deaf:
                self._control(message)
            elif message["type"] != "control_request":
                self._come.put(message)
        self._come.put(None)

    def _control(self, message: Json) -> None:
        request = message["request"]
        subtype = request["subtype"]
        effect(f"control {subtype}")
        if self.touchy:
            os._exit(1)
        answer = {"subtype": "success", "request_id": message["request_id"], "response": {}}
        if subtype == "set_model":
            answer = self._set_model(request)
        if subtype == "set_permission_mode":
            answer = self._set_mode(request)
        say(
            {
                "type": "control_response",
                "response": {**answer, "request_id": message["request_id"]},
            }
        )
        if subtype == "interrupt" and self.busy:
            os.kill(os.getpid(), signal.SIGUSR1)

    def _set_model(self, request: Json) -> Json:
        if self.stubborn:
            return {"subtype": "error", "error": "not that one"}
        self.model = request.get("model") or "fake-1"
        text = f"<local-command-stdout>Set model to {self.model}</local-command-stdout>"
        say({"type": "user", "message": {"role": "user", "content": text}, "uuid": new_id()})
        return {"subtype": "success"}

    def _set_mode(self, request: Json) -> Json:
        mode = request["mode"]
        if self.stubborn or (mode == BYPASS != self.begun_in):
            return {"subtype": "error", "error": f"Cannot set permission mode to {mode}"}
        self.enter(mode)
        return {"subtype": "success", "response": {"mode": mode}}

    def enter(self, mode: str) -> None:
        """As claude does, with a word about it where it is another one."""
        if mode != self.mode:
            self.mode_before, self.mode = self.mode, mode
            say({"type": "system", "subtype": "status", "status": None, "permissionMode": mode})

    @property
    def edits_unasked(self) -> bool:
        """Also in `plan`, where it was begun in the one that asks nothing: so does 2.1.197."""
        mode = BYPASS if self.mode == "plan" and self.begun_in == BYPASS else self.mode
        return mode in (BYPASS, "acceptEdits")

    def _interrupted(self, number: int, frame: Any) -> None:
        if self.busy:
            self.busy = False
            raise InterruptedTurnError

    def _next(self, timeout: float | None = None) -> bool:
        """Takes one line; returns whether there was one to take."""
        message = self._come.get(timeout=timeout)
        if message is None:
            return False
        (self.waiting if message["type"] == "user" else self.answers).append(message)
        return True

    def message(self) -> Json | None:
        """The next message, waited for; None at the end of stdin."""
        while not self.waiting:
            if not self._next():
                return None
        return self.waiting.pop(0)

    def answer(self, request_id: str) -> Json:
        while True:
            for answer in self.answers:
                if answer["response"]["request_id"] == request_id:
                    return answer["response"]["response"]
            if not self._next():
                raise SystemExit("stdin ended while a question was open")


class Agent:
    def __init__(self, options: argparse.Namespace, inbox: Inbox) -> None:
        self.inbox = inbox
        self.session_id = options.resume or options.session_id or new_id()
        self.resumes = bool(options.resume)
        self.config = options.mcp_config
        self.last_text = ""
        self.tools: Tools | None = None
        self.history = f"{STATE}/{self.session_id}.jsonl"
        self.cost = 0.0
        self.turns = 0
        self.later = ""
        self.untaken = ""

    def run(self) -> int:
        effect(f"start {self.session_id}")
        status = 0
        while message := self.inbox.message():
            if self.untaken:
                self.after(self.untaken)
            status = self.take_turn(message)
            if self.later:
                self.after(self.later)
        if self.tools:
            self.tools.close()
        return status

    @staticmethod
    def orders(prompt: str) -> list[tuple[str, str, str]]:
        return [line[2:].partition(" ") for line in prompt.splitlines() if line[:2] == "@@"]

    def take_turn(self, message: Json) -> int:
        self.uuid: str | None = message.get("uuid")
        self.content = message["message"]["content"]
        self.prompt = "".join(b["text"] for b in self.content if b["type"] == "text")
        self.pictures = [b["source"]["media_type"] for b in self.content if b["type"] == "image"]
        orders = self.orders(self.prompt)
        if ("nothing", "", "") in orders:
            os._exit(0)
        if self.resumes and not self.turns and not exists(self.history):
            sys.stderr.write(f"No conversation found with session ID: {self.session_id}\n")
            self.result("error_during_execution", num_turns=0)
            return 1
        self.turns += 1
        earlier = self.remember()
        if earlier and "@@goes_on" in earlier[0]:
            orders = self.orders(going_on(self.prompt, earlier))
        state = self.tools_state(orders)
        if state == "connected" and (self.tools is None or self.tools.dead):
            self.tools = configured(self.config)
        if ("mute", "", "") not in orders:
            self.init(state)
        self.last_text = ""
        self.inbox.busy = True
        try:
            for order, _, rest in orders:
                getattr(self, f"do_{order}")(rest, earlier)
            self.inbox.busy = False
        except InterruptedTurnError:
            self.replay()
            text = {"type": "text", "text": "[Request interrupted by user]"}
            say({"type": "user", "message": {"role": "user", "content": [text]}})
            self.result("error_during_execution", terminal_reason="aborted_tools")
            return 1
        except FailedTurnError:
            self.inbox.busy = False
            return 1
        self.result("success")
        return 0

    def after(self, what: str) -> None:
        """What nobody asked for."""
        if self.later:
            while not exists(f"{STATE}/later"):
                time.sleep(0.02)
        self.later = self.untaken = ""
        effect(f"after {what}")
        if what == "crash":
            os._exit(1)
        if what == "hang":
            self.do_hang("", [])
        if what == "garbage":
            self.do_garbage("", [])
        if what == "work":
            self.uuid = None
            self.init("connected")
            self.call("send_message", {"text": "nobody asked"})
            self.result("success")

    def replay(self) -> None:
        """The message comes back, once."""
        if self.uuid:
            message = {"role": "user", "content": self.content}
            say({"type": "user", "message": message, "uuid": self.uuid, "isReplay": True})
            self.uuid = None

    # --- what claude prints ---

    def init(self, state: str) -> None:
        servers = [{"name": "cloudagent", "status": state}] if state != "missing" else []
        say({"type": "system", "subtype": "init", "session_id": self.session_id,
             "mcp_servers": servers, "model": self.inbox.model,
             "permissionMode": self.inbox.mode})  # fmt: skip

    def text(self, text: str) -> None:
        stream = [
            {"type": "message_start", "message": {}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        ]
        words = text.split(" ")
        for number, word in enumerate(words):
            piece = word if number == len(words) - 1 else f"{word} "
            delta = {"type": "text_delta", "text": piece}
            stream.append({"type": "content_block_delta", "index": 0, "delta": delta})
        for event in stream:
            say({"type": "stream_event", "event": event, "parent_tool_use_id": None})
        self.assistant({"type": "text", "text": text})
        self.last_text = text

    def assistant(self, block: Json, **more: Any) -> None:
        self.replay()
        message = {"model": more.pop("model", self.inbox.model), "content": [block]}
        say({"type": "assistant", "message": message, "parent_tool_use_id": None, **more})

    def tool_use(self, use_id: str, name: str, arguments: Json) -> None:
        tool = f"mcp__cloudagent__{name}"
        self.assistant({"type": "tool_use", "id": use_id, "name": tool, "input": arguments})

    def tool_result(self, use_id: str, content: Any, is_error: bool = False) -> None:
        block = {"type": "tool_result", "tool_use_id": use_id, "content": content}
        say({"type": "user", "message": {"content": [{**block, "is_error": is_error}]}})

    def result(self, subtype: str, **more: Any) -> None:
        if self.turns:
            self.replay()
        self.cost += 0.01
        say({"type": "result", "subtype": subtype, "is_error": subtype != "success",
             "num_turns": 1, "session_id": self.session_id, "result": self.last_text,
             "total_cost_usd": round(self.cost, 2), "usage": {"input_tokens": 10, "output_tokens": 5},
             **more})  # fmt: skip

    # --- its memory ---

    def remember(self) -> list[str]:
        os.makedirs(STATE, exist_ok=True)  # noqa: PTH103
        lines = read(self.history).splitlines() if exists(self.history) else []
        append(self.history, json.dumps(self.prompt))
        return [json.loads(line) for line in lines]

    def tools_state(self, orders: Any) -> str:
        for order, _, rest in orders:
            if order == "tools":
                state, _, times = rest.partition(" ")
                count = f"{STATE}/tools-tried"
                tried = len(read(count).split()) if exists(count) else 0
                append(count, "tried")
                return state if not times or tried < int(times) else "connected"
        return "connected"

    # --- orders ---

    def do_reply(self, text: str, earlier: list[str]) -> None:
        self.call("send_message", {"text": text})
        effect(f"reply {text}")

    def do_silent(self, reason: str, earlier: list[str]) -> None:
        self.call("stay_silent", {"reason": reason})

    def do_call(self, rest: str, earlier: list[str]) -> None:
        name, _, arguments = rest.partition(" ")
        self.call(name, json.loads(arguments or "{}"))

    def do_volley(self, rest: str, earlier: list[str]) -> None:
        me, other = rest.split()
        effect(f"volley {me}")
        self.call("message_agent", {"agent": other, "text": f"@@volley {other} {me}"})

    def call(self, name: str, arguments: Json) -> None:
        use_id = f"call_{os.urandom(6).hex()}"
        self.tool_use(use_id, name, arguments)
        assert self.tools, "no tools"
        answer = self.tools.call(name, arguments, use_id)
        self.tool_result(use_id, answer["content"], bool(answer.get("isError")))

    def do_say(self, text: str, earlier: list[str]) -> None:
        self.text(text)

    def do_pictures(self, rest: str, earlier: list[str]) -> None:
        self.text(" ".join(self.pictures) or "none")

    def do_recall(self, rest: str, earlier: list[str]) -> None:
        self.text(" | ".join(earlier) or "nothing")

    def do_env(self, name: str, earlier: list[str]) -> None:
        self.text(os.environ.get(name, "unset"))

    def do_stderr(self, text: str, earlier: list[str]) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def do_line(self, size: str, earlier: list[str]) -> None:
        self.tool_result("call_big", "x" * int(size))

    def do_garbage(self, rest: str, earlier: list[str]) -> None:
        sys.stdout.flush()
        for line in (b"\xff\xfe not json", b"[1, 2]", b'"text"', b"{", b"", b'{"type": 7}'):
            os.write(1, line + b"\n")
        os.write(
            1,
            b'{"type":"assistant","message":{"content":[{"type":"text","text":"a\xff\\ud800b"}]}}\n',
        )
        os.write(1, b'{"type":"a_newer_thing","with":{"many":["fields"]}}\n')

    def do_retry(self, rest: str, earlier: list[str]) -> None:
        status, _, error = rest.partition(" ")
        say({"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 4,
             "retry_delay_ms": 500.5, "error_status": int(status) or None,
             "error": error})  # fmt: skip

    def do_limit(self, rest: str, earlier: list[str]) -> None:
        info = {"status": "rejected", "resetsAt": int(rest), "rateLimitType": "five_hour"}
        say({"type": "rate_limit_event", "rate_limit_info": info, "session_id": self.session_id})

    def do_limited(self, rest: str, earlier: list[str]) -> None:
        if time.time() < int(rest) and not exists(f"{STATE}/paid"):
            self.do_limit(rest, earlier)
            self.do_error("429 rate_limit", earlier)

    def do_error(self, rest: str, earlier: list[str]) -> None:
        status, _, error = rest.partition(" ")
        words = f"API Error: {status}"
        more = {"error": error} if error else {}
        self.assistant({"type": "text", "text": words}, model="<synthetic>", **more)
        self.result("success", is_error=True, api_error_status=int(status) or None, result=words)
        raise FailedTurnError

    def do_result(self, subtype: str, earlier: list[str]) -> None:
        self.result(subtype)
        raise FailedTurnError

    def do_tools(self, rest: str, earlier: list[str]) -> None:
        pass

    def do_mute(self, rest: str, earlier: list[str]) -> None:
        pass

    def do_setsid(self, rest: str, earlier: list[str]) -> None:
        child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        effect(f"child {child.pid}")

    def do_spawn(self, rest: str, earlier: list[str]) -> None:
        child = subprocess.Popen(["sleep", "3600"], env={})
        effect(f"child {child.pid}")

    def do_ignore(self, name: str, earlier: list[str]) -> None:
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)

    def do_allocate(self, megabytes: str, earlier: list[str]) -> None:
        # In a child of its own, and then in this process: the tree is what counts.
        half = int(megabytes) // 2
        code = f"import time; kept = bytearray({half} * 1_000_000); time.sleep(3600)"
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], start_new_session=True)
        effect(f"child {child.pid}")
        self.kept = bytearray(half * 1_000_000)

    def do_journal(self, seconds: str, earlier: list[str]) -> None:
        # Silent on all pipes, while the session's file grows.
        here = os.getcwd()  # noqa: PTH109
        folder = "".join(c if c.isascii() and c.isalnum() else "-" for c in here)
        path = f"{os.environ['HOME']}/.claude/projects/{folder}/{self.session_id}.jsonl"
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            append(path, "{}")
            time.sleep(0.1)

    def do_edit(self, rest: str, earlier: list[str]) -> None:
        path, _, text = rest.partition(" ")
        body = text.replace("|", "\n") + "\n"
        if self.may("Write", {"file_path": path, "content": body})["behavior"] == "allow":
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(handle, body.encode())
            os.close(handle)

    def do_goes_on(self, rest: str, earlier: list[str]) -> None:
        pass

    def do_touch(self, path: str, earlier: list[str]) -> None:
        if (
            self.inbox.edits_unasked
            or self.may("Write", {"file_path": path})["behavior"] == "allow"
        ):
            append(path, "")

    def do_as(self, rest: str, earlier: list[str]) -> None:
        self.text(f"{self.inbox.model} {self.inbox.mode}")

    def do_tool(self, name: str, earlier: list[str]) -> None:
        self.assistant({"type": "tool_use", "id": "call_1", "name": name, "input": {}})

    def do_may(self, rest: str, earlier: list[str]) -> None:
        tool, _, arguments = rest.partition(" ")
        asked = json.loads(arguments or "{}")
        answer = self.may(tool, asked)
        if answer["behavior"] == "allow" and "command" in asked:
            effect(f"did {asked['command']}")
        self.text(json.dumps(answer))

    def do_unless(self, rest: str, earlier: list[str]) -> None:
        text, _, order = rest.partition(" ")
        if not any(line[:2] == "> " and text in line for line in self.prompt.splitlines()):
            name, _, given = order.partition(" ")
            getattr(self, f"do_{name}")(given, earlier)

    def do_retract(self, rest: str, earlier: list[str]) -> None:
        tool, _, arguments = rest.partition(" ")
        _, request_id = self.ask(tool, json.loads(arguments))
        self.do_gate("", earlier)
        say({"type": "control_cancel_request", "request_id": request_id})

    def ask(self, tool: str, asked: Json) -> tuple[str, str]:
        """Says what it would do, and asks whether it may; the ids of both."""
        use_id, request_id = f"call_{os.urandom(6).hex()}", new_id()
        self.assistant({"type": "tool_use", "id": use_id, "name": tool, "input": asked})
        request = {"subtype": "can_use_tool", "tool_name": tool, "input": asked,
                   "permission_suggestions": [{"type": "addRules"}], "tool_use_id": use_id}  # fmt: skip
        say({"type": "control_request", "request_id": request_id, "request": request})
        return use_id, request_id

    def may(self, tool: str, asked: Json) -> Json:
        use_id, request_id = self.ask(tool, asked)
        try:
            answer = self.inbox.answer(request_id)
        except InterruptedTurnError:
            say({"type": "control_cancel_request", "request_id": request_id})
            raise
        if tool == "ExitPlanMode" and answer["behavior"] == "allow":
            self.inbox.enter(self.inbox.mode_before)
        self.tool_result(use_id, answer.get("message", "done"), answer["behavior"] != "allow")
        self.fold()
        return answer

    def do_pause(self, rest: str, earlier: list[str]) -> None:
        effect("pause")
        self.replay()
        message = self.inbox.message()
        if message is None:
            raise SystemExit("stdin ended in a pause")
        self.inbox.waiting.insert(0, message)
        self.fold()

    def do_gate(self, rest: str, earlier: list[str]) -> None:
        effect("gate")
        while not exists(f"{STATE}/gate"):
            time.sleep(0.02)

    def fold(self) -> None:
        """Takes what has come meanwhile into this turn."""
        while self.inbox.waiting:
            message = self.inbox.waiting.pop(0)
            say({**message, "isReplay": True})
            text = "".join(block["text"] for block in message["message"]["content"])
            for line in text.splitlines():
                if line[:2] == "@@":
                    order, _, rest = line[2:].partition(" ")
                    getattr(self, f"do_{order}")(rest, [])

    def do_deaf(self, rest: str, earlier: list[str]) -> None:
        self.inbox.deaf = True

    def do_touchy(self, rest: str, earlier: list[str]) -> None:
        self.inbox.touchy = True

    def do_stubborn(self, rest: str, earlier: list[str]) -> None:
        self.inbox.stubborn = True

    def do_blind(self, rest: str, earlier: list[str]) -> None:
        if self.pictures:
            self.do_error("400 invalid_request", earlier)

    def do_later(self, what: str, earlier: list[str]) -> None:
        self.later = what

    def do_untaken(self, what: str, earlier: list[str]) -> None:
        self.untaken = what

    def do_hang(self, rest: str, earlier: list[str]) -> None:
        effect("hang")
        end = time.monotonic() + 3600
        while time.monotonic() < end:
            time.sleep(60)

    def do_crash(self, code: str, earlier: list[str]) -> None:
        sys.stdout.flush()
        os._exit(int(code or 1))

    def do_kill(self, rest: str, earlier: list[str]) -> None:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def do_quit(self, rest: str, earlier: list[str]) -> None:
        os._exit(0)


def main(agent: type[Agent] = Agent) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    for flag in ("-p", "--verbose", "--include-partial-messages", "--strict-mcp-config",
                 "--replay-user-messages"):  # fmt: skip
        parser.add_argument(flag, action="store_true")
    for option in ("--input-format", "--output-format", "--mcp-config",
                   "--append-system-prompt-file", "--allowedTools", "--permission-mode",
                   "--permission-prompt-tool", "--add-dir", "--model", "--resume",
                   "--session-id"):  # fmt: skip
        parser.add_argument(option)
    parser.add_argument("--version", action="version", version="0.0.1 (fake)")
    options = parser.parse_args()
    assert options.input_format == "stream-json"
    assert read(options.append_system_prompt_file)
    status = agent(options, Inbox(options)).run()
    sys.stderr.flush()
    os._exit(status)  # not by its own end, for which the thread that reads would have to end


if __name__ == "__main__":
    main()
