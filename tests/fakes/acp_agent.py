"""A coding agent without a model that speaks the Agent Client Protocol; the orders are `agent_cli.py`'s.

Give it to an agent as `driver: acp, command: [sys.executable, acp_agent.py]`. Orders beside those:

====================  =============================================================================
``@@ask KIND TITLE``  ask whether a tool of this kind may run; write `allowed`, `denied` or `cancelled`, and
                      have the effect `did TITLE` if it may
``@@stop REASON``     end the turn for this reason
``@@odd``             send what a newer program might: unknown updates, methods and notifications
====================  =============================================================================

`@@error STATUS` answers the prompt with this error code. `FAKE_ACP` holds words: `resume` (has
`session/resume`), `no-load` (loads no sessions), `auth` (wants a login), `v2` (another version of the
protocol), `no-tools` (starts no MCP server), `modes` (offers modes and models), `stays` (does not leave
at the end of its input).
"""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, __file__.rpartition("/fakes/")[0])

from fakes.agent_cli import STATE, Agent, Tools, effect, exists, going_on, new_id, read, say

TYPE_CHECKING = False  # as in `typing`, which takes as long to import as much of the rest
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from typing_extensions import override

    Json: TypeAlias = dict[str, Any]
else:

    def override(method: Any) -> Any:
        return method


WORDS = set(os.environ.get("FAKE_ACP", "").split())


class RefusedError(Exception):
    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


class CancelledError(Exception):
    pass


def lines() -> Any:
    """What it is sent, line by line; not by `for`, which reads ahead."""
    while line := sys.stdin.buffer.readline():
        yield json.loads(line)


class AcpAgent(Agent):
    """One session."""

    def __init__(self, session_id: str, servers: list[Json], replay: bool) -> None:
        self.session_id = session_id
        self.error = None
        self.last_text = ""
        self.history = f"{STATE}/{session_id}.jsonl"
        self.tools = None
        self.asked = 0
        [server] = servers
        assert server["name"] == "cloudagent"
        assert server["env"] == []
        if replay and exists(self.history):
            for prompt in map(json.loads, read(self.history).splitlines()):
                content = {"type": "text", "text": prompt}
                self.update("user_message_chunk", content=content)
                self.update("agent_message_chunk", content={"type": "text", "text": "of old"})
        if "no-tools" not in WORDS:
            self.tools = Tools([server["command"], *server["args"]])

    def turn(self, prompt: str) -> Json:
        self.prompt = prompt
        effect(f"start {self.session_id}")
        earlier = self.remember()
        if "your work was paused until a person could answer" in prompt and earlier:
            effect(f"told {json.dumps(prompt)}")
        prompt = going_on(prompt, earlier)
        orders = [line[2:].partition(" ") for line in prompt.splitlines() if line[:2] == "@@"]
        stop = "end_turn"
        for order, _, rest in orders:
            if order == "stop":
                stop = rest
                break
            getattr(self, f"do_{order}")(rest, earlier)
        usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
        return {"stopReason": stop, "usage": usage}

    def update(self, kind: str, **more: Any) -> None:
        update = {"sessionUpdate": kind, **more}
        params = {"sessionId": self.session_id, "update": update}
        say({"jsonrpc": "2.0", "method": "session/update", "params": params})

    # --- the same orders, in other words ---

    @override
    def text(self, text: str) -> None:
        words = text.split(" ")
        for at, word in enumerate(words):
            piece = word if at == len(words) - 1 else f"{word} "
            self.update("agent_message_chunk", content={"type": "text", "text": piece})

    @override
    def tool_use(self, use_id: str, name: str, arguments: Json) -> None:
        title = f"cloudagent_{name}"
        self.update("tool_call", toolCallId=use_id, title=title, status="pending", rawInput={})
        self.update("tool_call_update", toolCallId=use_id, status="in_progress", rawInput=arguments)

    @override
    def tool_result(self, use_id: str, content: Any, is_error: bool = False) -> None:
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        parts = [{"type": "content", "content": block} for block in blocks]
        status = "failed" if is_error else "completed"
        self.update("tool_call_update", toolCallId=use_id, status=status, content=parts)

    @override
    def do_error(self, rest: str, earlier: list[str]) -> None:
        raise RefusedError(int(rest.split()[0]), "the model refused")

    @override
    def do_garbage(self, rest: str, earlier: list[str]) -> None:
        for line in (b"\xff\xfe not json", b"[1, 2]", b"{", b"", b'{"id": 99, "result": {}}'):
            os.write(1, line + b"\n")

    @override
    def do_hang(self, rest: str, earlier: list[str]) -> None:
        effect("hang")
        for message in lines():
            if message.get("method") == "session/cancel":
                assert message["params"] == {"sessionId": self.session_id}
                raise CancelledError
        sys.exit(0)

    def do_deaf(self, rest: str, earlier: list[str]) -> None:
        """Hangs and does not even hear a cancel."""
        effect("hang")
        time.sleep(3600)

    def do_odd(self, rest: str, earlier: list[str]) -> None:
        self.update("of_tomorrow", what={"many": ["fields"]})
        say({"jsonrpc": "2.0", "method": "_x/told", "params": {}})
        say(
            {
                "jsonrpc": "2.0",
                "id": "odd-1",
                "method": "fs/read_text_file",
                "params": {"path": "/"},
            }
        )
        for message in lines():
            if message.get("id") == "odd-1":
                self.text(f"refused with {message['error']['code']}")
                return

    def do_ask(self, rest: str, earlier: list[str]) -> None:
        kind, _, title = rest.partition(" ")
        self.asked += 1
        use_id = f"ask_{self.asked}"
        call = {"toolCallId": use_id, "title": title, "kind": kind, "status": "pending",
                "rawInput": {"command": title}}  # fmt: skip
        options = [
            {"optionId": "ever", "name": "Always", "kind": "allow_always"},
            {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
            {"optionId": "no", "name": "No", "kind": "reject_once"},
        ]
        params = {"sessionId": self.session_id, "toolCall": call, "options": options}
        say(
            {
                "jsonrpc": "2.0",
                "id": use_id,
                "method": "session/request_permission",
                "params": params,
            }
        )
        for message in lines():
            if message.get("id") == use_id:
                outcome = message["result"]["outcome"]
                chosen = {"yes": "allowed", "no": "denied"}.get(
                    outcome.get("optionId"), "cancelled"
                )
                self.update("tool_call_update", toolCallId=use_id, status="completed", content=[])
                if chosen == "allowed":
                    effect(f"did {title}")
                self.text(chosen)
                if chosen == "cancelled":
                    raise CancelledError
                return


def offered() -> Json:
    if "modes" not in WORDS:
        return {}
    modes = [{"id": "default", "name": "Default"}, {"id": "plan", "name": "Plan"}]
    models = [{"modelId": "small-1", "name": "Small"}, {"modelId": "large-1", "name": "Large"}]
    return {
        "modes": {"currentModeId": "default", "availableModes": modes},
        "models": {"currentModelId": "small-1", "availableModels": models},
    }


def respond(method: str, params: Json, held: dict[str, AcpAgent]) -> Json:
    match method:
        case "initialize":
            assert params["clientCapabilities"]["terminal"] is False
            can: Json = {
                "loadSession": "no-load" not in WORDS,
                "promptCapabilities": {"image": "blind" not in WORDS},
            }
            if "resume" in WORDS:
                can["sessionCapabilities"] = {"resume": {}}
            return {"protocolVersion": 2 if "v2" in WORDS else 1, "agentCapabilities": can,
                    "agentInfo": {"name": "fake", "version": "0.0.1"}}  # fmt: skip
        case "session/new" | "session/load" | "session/resume":
            if "auth" in WORDS:
                raise RefusedError(-32000, "Authentication required")
            session_id = params.get("sessionId") or new_id()
            if method != "session/new" and not exists(f"{STATE}/{session_id}.jsonl"):
                raise RefusedError(-32002, f"Session not found: {session_id}")
            assert os.path.isdir(params["cwd"])  # noqa: PTH112
            effect(method)
            replay = method == "session/load"
            held[session_id] = AcpAgent(session_id, params["mcpServers"], replay)
            return {**({"sessionId": session_id} if method == "session/new" else {}), **offered()}
        case "session/set_mode" | "session/set_model":
            effect(f"{method} {params.get('modeId') or params.get('modelId')}")
            return {}
        case "session/prompt":
            texts = [block["text"] for block in params["prompt"] if block["type"] == "text"]
            assert "cloudagent" in texts[0]
            agent = held[params["sessionId"]]
            shown = [block for block in params["prompt"] if block["type"] == "image"]
            assert all(block["data"] for block in shown)
            agent.pictures = [block["mimeType"] for block in shown]
            return agent.turn("\n".join(texts[1:]))
        case _:
            raise RefusedError(-32601, f"no method {method}")


def main() -> int:
    if "--version" in sys.argv:
        sys.stdout.write("0.0.1\n")
        return 0
    held: dict[str, AcpAgent] = {}
    for message in lines():
        if "id" not in message or "method" not in message:
            continue
        answer: Json = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            answer["result"] = respond(message["method"], message["params"], held)
        except RefusedError as refused:
            answer["error"] = refused.error
        except CancelledError:
            answer["result"] = {"stopReason": "cancelled"}
        say(answer)
    if "stays" in WORDS:
        time.sleep(3600)
    for agent in held.values():
        if agent.tools:
            agent.tools.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
