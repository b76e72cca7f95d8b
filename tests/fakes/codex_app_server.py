"""Codex without a model: speaks its app-server's JSON-RPC; the orders are `agent_cli.py`'s.

Give it to an agent as `driver: codex, command: [sys.executable, codex_app_server.py]`. Orders beside those:

====================  =============================================================================
``@@ask WHAT``        ask whether `command`, `file` or `tool` may go on; write what was decided; of
                      `command TEXT` have the effect `did TEXT` if it may
``@@again STATUS``    report that a model request failed and is tried again
``@@odd``             send what a newer codex might: unknown items, notifications and requests
====================  =============================================================================

`FAKE_CODEX` holds words: `other-thread` (a thread that is unknown is another, without a word),
`no-tools` (the MCP server does not start, so that no thread is opened).
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, __file__.rpartition("/fakes/")[0])

from fakes.agent_cli import STATE, Agent, Tools, effect, exists, going_on, new_id, say

TYPE_CHECKING = False  # as in `typing`, which takes as long to import as much of the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeAlias

    from typing_extensions import override

    Json: TypeAlias = dict[str, Any]
else:

    def override(method: Any) -> Any:
        return method


WORDS = set(os.environ.get("FAKE_CODEX", "").split())
INFOS = {401: "unauthorized", 429: {"responseTooManyFailedAttempts": {"httpStatusCode": 429}},
         529: {"responseStreamDisconnected": {"httpStatusCode": 529}}}  # fmt: skip


class FailedError(Exception):
    def __init__(self, status: str, error: Json | None = None) -> None:
        super().__init__(status)
        self.turn = {"id": "turn_1", "items": [], "status": status, "error": error}


class RefusedError(Exception):
    pass


def lines() -> Iterator[Json]:
    """What it is sent; not by `for`, which reads ahead."""
    while line := sys.stdin.buffer.readline():
        message = json.loads(line)
        assert "jsonrpc" not in message
        yield message


def settings() -> Json:
    """The `-c` flags."""
    pairs = [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "-c"]
    return {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in pairs)}


class CodexAgent(Agent):
    """One thread."""

    def __init__(self, thread_id: str) -> None:
        self.session_id = thread_id
        self.error = None
        self.last_text = ""
        self.history = f"{STATE}/{thread_id}.jsonl"
        told = settings()
        server = "mcp_servers.cloudagent"
        assert told[f"{server}.required"] is True
        assert told[f"{server}.default_tools_approval_mode"] == "approve"
        if "no-tools" in WORDS:
            self.notify("mcpServer/startupStatus/updated", name="cloudagent", status="failed")
            raise RefusedError("required MCP servers failed to initialize: cloudagent")
        self.tools = Tools([told[f"{server}.command"], *told[f"{server}.args"]])
        self.notify("mcpServer/startupStatus/updated", name="cloudagent", status="ready")

    def notify(self, method: str, **params: Any) -> None:
        say({"method": method, "params": {"threadId": self.session_id, **params}})

    def item(self, method: str, **item: Any) -> None:
        self.notify(f"item/{method}", turnId="turn_1", item=item)

    def turn(self, prompt: str) -> None:
        self.prompt = prompt
        effect(f"start {self.session_id}")
        earlier = self.remember()
        self.item("completed", type="userMessage", id="user", content=[])
        for order, _, rest in self.orders(going_on(prompt, earlier)):
            getattr(self, f"do_{order}")(rest, earlier)
        last = {"inputTokens": 10, "outputTokens": 5}
        self.notify("thread/tokenUsage/updated", tokenUsage={"last": last, "total": last})

    # --- the same orders, in other words ---

    @override
    def text(self, text: str) -> None:
        item_id = f"msg_{os.urandom(4).hex()}"
        self.item("started", type="agentMessage", id=item_id, text="")
        words = text.split(" ")
        for at, word in enumerate(words):
            piece = word if at == len(words) - 1 else f"{word} "
            self.notify("item/agentMessage/delta", turnId="turn_1", itemId=item_id, delta=piece)
        self.item("completed", type="agentMessage", id=item_id, text=text)

    @override
    def tool_use(self, use_id: str, name: str, arguments: Json) -> None:
        self.used = {"type": "mcpToolCall", "id": use_id, "server": "cloudagent", "tool": name,
                     "arguments": arguments, "error": None}  # fmt: skip
        self.item("started", **self.used, result=None, status="inProgress")

    @override
    def tool_result(self, use_id: str, content: Any, is_error: bool = False) -> None:
        status = "failed" if is_error else "completed"
        self.item("completed", **self.used, result={"content": content}, status=status)

    @override
    def do_limit(self, rest: str, earlier: list[str]) -> None:
        used = {"usedPercent": 100, "windowDurationMins": 300, "resetsAt": int(rest)}
        free = {"usedPercent": 12, "windowDurationMins": 10_080, "resetsAt": int(rest) + 9_000}
        for told in ({"primary": used}, {"secondary": free}):
            say({"method": "account/rateLimits/updated", "params": {"rateLimits": told}})

    @override
    def do_error(self, rest: str, earlier: list[str]) -> None:
        status = int(rest.split()[0])
        error = {"message": f"exceeded retry limit, last status: {status}",
                 "codexErrorInfo": INFOS.get(status, "other")}  # fmt: skip
        raise FailedError("failed", error)

    @override
    def do_hang(self, rest: str, earlier: list[str]) -> None:
        effect("hang")
        for message in lines():
            if message.get("method") == "turn/interrupt":
                expected = {"threadId": self.session_id, "turnId": "turn_1"}
                assert message["params"] == expected
                say({"id": message["id"], "result": {}})
                raise FailedError("interrupted")
        sys.exit(0)

    @override
    def do_pause(self, rest: str, earlier: list[str]) -> None:
        for message in lines():
            if message.get("method") == "turn/steer":
                params = message["params"]
                assert (params["threadId"], params["expectedTurnId"]) == (self.session_id, "turn_1")
                say({"id": message["id"], "result": {"turnId": "turn_1"}})
                for line in params["input"][0]["text"].splitlines():
                    order, _, more = line[2:].partition(" ")
                    getattr(self, f"do_{order}")(more, earlier)
                return

    def do_again(self, rest: str, earlier: list[str]) -> None:
        error = {"message": "Reconnecting... 1/5", "codexErrorInfo": INFOS[int(rest)]}
        self.notify("error", turnId="turn_1", willRetry=True, error=error)

    def do_ask(self, rest: str, earlier: list[str]) -> None:
        what, _, command = rest.partition(" ")
        method, params = {
            "command": ("item/commandExecution/requestApproval",
                        {"command": command or "make", "cwd": "/"}),
            "file": ("item/fileChange/requestApproval", {"reason": "outside"}),
            "tool": ("mcpServer/elicitation/request",
                     {"serverName": "cloudagent", "_meta": {"codex_approval_kind": "mcp_tool_call"}}),
        }[what]  # fmt: skip
        params = {"threadId": self.session_id, "turnId": "turn_1", "itemId": "x", **params}
        answer = self.request(method, params)
        decision = answer["result"].get("decision") or answer["result"]["action"]
        if command and decision == "accept":
            effect(f"did {command}")
        self.text(decision)

    def do_odd(self, rest: str, earlier: list[str]) -> None:
        self.notify("of/tomorrow", what="x")
        self.item("completed", type="ofTomorrow", id="odd", what={"many": "fields"})
        say({"method": "item/completed", "params": {"threadId": "another", "item": {
            "type": "agentMessage", "id": "m", "text": "of another thread"}}})  # fmt: skip
        answer = self.request("item/permissions/requestApproval", {"threadId": self.session_id})
        self.text(f"refused with {answer['error']['code']}")

    def request(self, method: str, params: Json) -> Json:
        say({"id": 900, "method": method, "params": params})
        return next(message for message in lines() if message.get("id") == 900)


def kind_of(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 (as agent_cli.py)
        return "image/png" if file.read(4) == b"\x89PNG" else "unknown"


def opened(method: str, params: Json) -> CodexAgent:
    assert "cloudagent" in params["developerInstructions"]
    assert os.path.isdir(params["cwd"])  # noqa: PTH112
    thread_id = params.get("threadId") or new_id()
    if method == "thread/resume" and not exists(f"{STATE}/{thread_id}.jsonl"):
        if "other-thread" not in WORDS:
            raise RefusedError(f"no rollout found for thread id {thread_id}")
        thread_id = new_id()
    effect(f"{method} {params.get('sandbox')} {params.get('approvalPolicy')}")
    return CodexAgent(thread_id)


def main() -> int:
    assert sys.argv[1] == "app-server"
    agent: CodexAgent | None = None
    for message in lines():
        match message.get("method"):
            case "initialize":
                say({"id": message["id"], "result": {"userAgent": "fake/0.0.1"}})
            case "thread/start" | "thread/resume" as method:
                try:
                    agent = opened(method, message["params"])
                except RefusedError as refused:
                    error = {"code": -32600, "message": str(refused)}
                    say({"id": message["id"], "error": error})
                    continue
                thread = {"id": agent.session_id}
                say({"id": message["id"], "result": {"thread": thread, "model": "fake-1"}})
            case "turn/start":
                assert agent
                turn: Json = {"id": "turn_1", "items": [], "status": "inProgress", "error": None}
                say({"id": message["id"], "result": {"turn": turn}})
                given, *pictures = message["params"]["input"]
                assert {one["type"] for one in pictures} <= {"localImage"}
                agent.pictures = [kind_of(one["path"]) for one in pictures]
                try:
                    agent.turn(given["text"])
                    turn = {**turn, "status": "completed"}
                except FailedError as failed:
                    turn = failed.turn
                agent.notify("turn/completed", turn=turn)
            case _:
                pass
    if agent and agent.tools:
        agent.tools.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
