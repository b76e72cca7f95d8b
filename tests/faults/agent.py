"""The fake coding agent, with orders for histories: it writes down what it did, and who did it.

Give it to an agent as `command: [sys.executable, "-I", "-S", agent.py]`. Orders beside those of
`fakes/agent_cli.py`:

====================  =============================================================================
``@@is KEY PLACE``    which message this is, and a name of its conversation; first of all orders
``@@effect N``        the N-th thing that outlives the process
``@@answer TEXT``     reply, if the note of an interruption does not say that it was sent before
``@@answer_with N T`` the same, with N characters before the text
``@@tell JSON``        message the first of ``[[AGENT, PLACE], ...]``, which messages the next in turn
``@@hold [deaf]``     say so and do nothing more (deaf to SIGTERM); a later attempt goes on
``@@gate NAME``       say so and wait until STATE/NAME.open is there
``@@fill FILE MB``    write a file until the disk is full, or so large; a later attempt goes on
``@@children N``      leave so many, each in a session of its own, deaf to SIGTERM
``@@flood KIND MB``   print so many megabytes: `lines`, one `line`, `stderr`, or `results` of tools
``@@cut TEXT``        send, and kill the bridge meanwhile; then go on without
``@@cut_retry TEXT``  the same, and send once more by a new bridge
====================  =============================================================================

`FAKE_EFFECTS` gets a JSON line for each thing, in one append. That two processes of a conversation
live at once is told by a lock, which the kernel takes from a process that dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time

sys.path.insert(0, __file__.rpartition("/faults/")[0])

from fakes.agent_cli import STATE, Agent, append, configured, effect, exists, main

TYPE_CHECKING = False  # as in `typing`, which takes as long to import as much of the rest
if TYPE_CHECKING:
    from typing import Any, TextIO

    from typing_extensions import override
else:

    def override(method: Any) -> Any:
        return method


class RecordedAgent(Agent):
    key = ""
    lock: TextIO | None = None

    @override
    def run(self) -> int:
        try:
            return super().run()
        finally:
            self.write("exited")

    def write(self, what: str, **more: Any) -> None:
        launch = os.environ["CLOUDAGENT_LAUNCH_ID"]
        line = {"what": what, "at": time.time(), "key": self.key, "launch": launch, **more}
        effect(json.dumps(line))

    def do_is(self, rest: str, earlier: list[str]) -> None:
        self.key, _, place = rest.partition(" ")
        if self.lock:  # a further turn of the process that has it
            self.write("spawned", alone=True)
            return
        # Not closed: it is held until the process ends, however it ends.
        self.lock = open(f"{STATE}/{place}.lock", "w")  # noqa: PTH123, SIM115
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.write("spawned", alone=False)
        else:
            self.write("spawned", alone=True)

    def do_effect(self, n: str, earlier: list[str]) -> None:
        self.write("effect", n=int(n))

    def do_answer(self, text: str, earlier: list[str]) -> None:
        if f"> {text}" not in self.prompt.splitlines():
            self.do_reply(text, earlier)

    def do_answer_with(self, rest: str, earlier: list[str]) -> None:
        size, _, number = rest.partition(" ")
        self.do_answer(f"{'z' * int(size)} {number}", earlier)

    def do_tell(self, rest: str, earlier: list[str]) -> None:
        (agent, place), *others = json.loads(rest)
        # One of its own for each attempt: what is begun again may be told again, and is another message.
        key = f"{self.key}.{os.environ['CLOUDAGENT_LAUNCH_ID'][-8:]}"
        lines = [f"@@is {key} {place}", "@@effect 1", "@@silent heard"]
        if others:
            lines.insert(2, f"@@tell {json.dumps(others)}")
        use_id = f"call_{os.urandom(6).hex()}"
        wanted = {"agent": agent, "text": "\n".join(lines)}
        self.tool_use(use_id, "message_agent", wanted)
        assert self.tools
        answer = self.tools.call("message_agent", wanted, use_id)
        failed = bool(answer.get("isError"))
        self.write("untold" if failed else "told", child=key)
        self.tool_result(use_id, answer["content"], failed)

    def do_hold(self, rest: str, earlier: list[str]) -> None:
        mark = f"{STATE}/{self.key}.held"
        if not exists(mark):
            append(mark, "held")
            if rest == "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.write("held")
            self.text("holding")
            self.do_hang("", earlier)

    def do_gate(self, rest: str, earlier: list[str]) -> None:
        self.text("holding")
        while not exists(f"{STATE}/{rest}.open"):
            time.sleep(0.02)

    def do_fill(self, rest: str, earlier: list[str]) -> None:
        name, _, megabytes = rest.partition(" ")
        mark = f"{STATE}/{name}.filled"
        if exists(mark):
            return
        handle = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for _ in range(int(megabytes) * 16):
                os.write(handle, b"x" * 65_536)
        except OSError:
            pass
        os.close(handle)
        append(mark, self.key)

    def do_children(self, count: str, earlier: list[str]) -> None:
        for _ in range(int(count)):
            if os.fork() == 0:
                # Not by an exec: they keep all that the parent has, its pipes too.
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    signal.pause()

    def do_flood(self, rest: str, earlier: list[str]) -> None:
        kind, _, megabytes = rest.partition(" ")
        for number in range(int(megabytes)):
            if kind == "results":
                if number % 8 == 0:
                    self.tool_result(f"call_{number}", "x" * 8_000_000)
                continue
            end = b"" if kind == "line" else b"\n"
            piece = b"y" * (1_000 - len(end)) + end
            sys.stdout.flush()
            stream = 2 if kind == "stderr" else 1
            for _ in range(20):
                os.write(stream, piece * 50)
        if kind == "line":
            os.write(1, b"\n")

    def do_cut(self, text: str, earlier: list[str]) -> None:
        use_id = "call_cut"
        tool = {"type": "tool_use", "id": use_id, "name": "mcp__cloudagent__send_message"}
        self.assistant({**tool, "input": {"text": text}})
        assert self.tools
        self.tools.begin("send_message", {"text": text}, use_id)
        # How far the call has come by then is a matter of chance, more or less.
        time.sleep(0.003 * (os.getpid() % 8))
        self.tools.kill()
        began = time.monotonic()
        answer = self.tools.answer()
        self.write("cut", seconds=time.monotonic() - began, answered=answer is not None)
        self.tool_result(use_id, "MCP error -32000: Connection closed", is_error=True)

    def do_cut_retry(self, text: str, earlier: list[str]) -> None:
        self.do_cut(text, earlier)
        self.tools = configured(self.config)
        self.do_answer(text, earlier)


if __name__ == "__main__":
    sys.exit(main(RecordedAgent))
