"""The bridge: who gets in, what the tools do, and that nothing is done twice."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.stapled import StapledByteStream

from cloudagent_daemon.bridge import shim as shim_module
from cloudagent_daemon.bridge.server import (
    MAX_OF_ALL,
    MAX_OF_RUN,
    TOKEN_S,
    Bridge,
    Session,
)
from cloudagent_daemon.bridge.tools import OTHER_NAMES, TOOLS, Asked, Toolbox, ToolError
from cloudagent_daemon.drivers.acp_programs import PROGRAMS
from cloudagent_daemon.sockets import MAX_PATH_BYTES, peer_of
from cloudagent_protocol.content import MAX_TEXT_CHARS, Attachment
from cloudagent_protocol.frames import AgentEntry
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    MessageId,
    new_attachment_id,
    new_message_id,
)

Json = dict[str, Any]


class NotedDesk:
    """A run that notes what its agent asks for."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[tuple[str, str | None]] = []
        self.asked: list[tuple[str, str]] = []
        self.attached: list[str] = []
        self.others: list[AgentEntry] = []
        self.silence: str | None = None
        self.memory = folder / "MEMORY.md"
        self.gate = anyio.Event()
        self.gate.set()

    async def send(
        self, text: str, conversation_id: ConversationId | None, paths: Sequence[str] = ()
    ) -> MessageId:
        await self.gate.wait()
        self.attached += paths
        if conversation_id == "conv_foreign":
            raise ToolError("You are not in conversation conv_foreign.")
        self.sent.append((text, conversation_id))
        return new_message_id()

    async def attach(self, path: str) -> Attachment:
        await self.gate.wait()
        self.attached.append(path)
        return Attachment(
            id=new_attachment_id(),
            name=path,
            media_type="image/png",
            size_bytes=12_000,
            sha256="0" * 64,
        )

    async def list_messages(
        self, conversation_id: ConversationId | None, limit: int, before: MessageId | None
    ) -> list[Json]:
        author = {"name": "Ana"}
        return [{"id": "msg_1", "created_at": "now", "author": author, "text": f"{limit} {before}"}]

    def stay_silent(self, reason: str) -> None:
        self.silence = reason

    async def ask_user(self, question: str, options: list[str]) -> str:
        if not options:
            raise ToolError("Nobody can be asked from here.")
        return f"Ana answered: {options[-1]}"

    async def list_agents(self) -> list[AgentEntry]:
        return self.others

    async def message_agent(self, wanted: str, text: str) -> Asked:
        await self.gate.wait()
        if wanted == "nobody":
            raise ToolError("Nothing was sent to nobody: There is no agent 'nobody'.")
        self.asked.append((wanted, text))
        waits = "its machine nas is offline" if wanted == "backup" else None
        here = wanted == "who asked"
        return Asked(MessageId("msg_7"), wanted, answers_here=not here, waits_for=waits)


class Peer:
    """An agent's end of the socket, without the shim."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._id = 0

    async def write(self, line: bytes) -> None:
        await self._stream.send(line + b"\n")

    async def read(self) -> Json:
        with anyio.fail_after(10):
            while b"\n" not in self._buffer:
                self._buffer += await self._stream.receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def ask(self, method: str, params: Json) -> Json:
        self._id += 1
        message = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        await self.write(json.dumps(message).encode())
        return await self.read()

    async def initialize(self, version: str = "2025-06-18") -> Json:
        client = {"name": "test", "version": "1"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
        answer = await self.ask("initialize", params)
        await self.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return answer["result"]

    async def call(self, name: str, arguments: Json, use_id: str | None = None) -> Json:
        params: Json = {"name": name, "arguments": arguments}
        if use_id:
            params["_meta"] = {"claudecode/toolUseId": use_id}
        return (await self.ask("tools/call", params))["result"]

    async def is_cut_off(self) -> bool:
        with anyio.fail_after(10):
            try:
                return await self._stream.receive() == b""
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return True


@asynccontextmanager
async def a_bridge(folder: Path, state_dir: Path | None = None) -> AsyncGenerator[Bridge]:
    bridge = Bridge(state_dir, folder / "rt")
    async with anyio.create_task_group() as tasks:
        await tasks.start(bridge.serve)
        yield bridge
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def a_session(bridge: Bridge, folder: Path, desk: NotedDesk) -> AsyncGenerator[Session]:
    folder.mkdir(exist_ok=True)
    async with bridge.session(Toolbox(desk), folder) as session:
        session.admit(os.getpid())
        yield session


@asynccontextmanager
async def connected(session: Session, token: str | None = None) -> AsyncGenerator[Peer]:
    async with await anyio.connect_unix(session.socket_path) as stream:
        peer = Peer(stream)
        shown = session.token_file.read_text() if token is None else token
        await peer.write(json.dumps({"token": shown}).encode())
        yield peer
        # In order, as the shim: it reads until the daemon has closed its end too.
        with suppress(OSError, anyio.BrokenResourceError):
            await stream.send_eof()
        await peer.is_cut_off()


async def test_tools_are_listed_with_schemas_and_called_with_text_results(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
        connected(session) as peer,
    ):
        hello = await peer.initialize()
        assert hello["serverInfo"]["name"] == "cloudagent"
        assert hello["protocolVersion"] == "2025-06-18"
        listed = (await peer.ask("tools/list", {}))["result"]["tools"]
        assert [tool["name"] for tool in listed] == [
            "send_message",
            "attach_file",
            "list_messages",
            "stay_silent",
            "ask_user",
            "list_agents",
            "message_agent",
            "read_memory",
            "append_memory",
        ]
        assert listed[0]["inputSchema"]["required"] == ["text"]
        answer = await peer.call("send_message", {"text": "hi"})
        assert answer["content"][0]["text"].startswith("Sent as msg_")
        assert "structuredContent" not in answer
        assert desk.sent == [("hi", None)]
        said = await peer.call("list_messages", {"limit": 3, "before": "msg_9"})
        assert said["content"][0]["text"] == "[msg_1] now Ana:\n3 msg_9"
        await peer.call("stay_silent", {"reason": "nothing to add"})
        assert desk.silence == "nothing to add"


async def test_a_program_that_keeps_a_tool_s_name_for_itself_gets_ours_under_another(
    tmp_path: Path,
) -> None:
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", NotedDesk(tmp_path)) as session,
    ):
        session.reserved = frozenset({"ask_user"})
        async with connected(session) as peer:
            await peer.initialize()
            listed = (await peer.ask("tools/list", {}))["result"]["tools"]
            names = [tool["name"] for tool in listed]
            asked = await peer.call("ask_person", {"question": "Which?"})
            wrong = await peer.call("ask_person", {"question": " "})
    assert "ask_person" in names
    assert "ask_user" not in names
    assert "Nobody can be asked" in asked["content"][0]["text"]
    assert wrong["content"][0]["text"].startswith("ask_person was not called.")


def test_every_name_that_a_program_keeps_has_another() -> None:
    assert all(program.reserves <= OTHER_NAMES.keys() for program in PROGRAMS)


async def test_other_agents_are_listed_and_messaged(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)

    async def said(peer: Peer, tool: str, **arguments: str) -> str:
        return (await peer.call(tool, arguments))["content"][0]["text"]

    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
        connected(session) as peer,
    ):
        await peer.initialize()
        assert await said(peer, "list_agents") == "There are no other agents."
        desk.others = [
            AgentEntry(
                id=AgentId("agent_2"), name="api", driver="builtin", host="mbp", status="idle"
            )
        ]
        assert await said(peer, "list_agents") == "api (agent_2): builtin on mbp, idle"
        answer = await said(peer, "message_agent", agent="api", text="what do you return?")
        assert answer.startswith("Sent to api as msg_7. api's answer will come as a new message")
        assert desk.asked == [("api", "what do you return?")]
        away = await said(peer, "message_agent", agent="backup", text="keep this")
        assert "It waits: its machine nas is offline." in away
        back = await said(peer, "message_agent", agent="who asked", text="42")
        assert back == "Sent to who asked as msg_7."
        refused = await peer.call("message_agent", {"agent": "nobody", "text": "psst"})
        assert refused["isError"]
        assert "There is no agent 'nobody'" in refused["content"][0]["text"]


@pytest.mark.parametrize(
    ("tool", "arguments", "complaint"),
    [
        ("message_agent", {"agent": "api"}, "text: Field required"),
        ("message_agent", {"agent": "", "text": "x"}, "agent"),
        ("message_agent", {"agent": "api", "text": " "}, "blank"),
        ("list_agents", {"of": "ben"}, "of"),
        ("ask_user", {"question": " "}, "blank"),
        ("ask_user", {"question": "?", "options": ["x"] * 13}, "options"),
        ("ask_user", {"question": "Which?"}, "Nobody can be asked"),
        ("send_message", {}, "text: Field required"),
        ("send_message", {"text": ""}, "at least 1"),
        ("send_message", {"text": " \n"}, "must not be blank"),
        ("send_message", {"text": "a\0b"}, "NUL"),
        ("send_message", {"text": "x" * (MAX_TEXT_CHARS + 1)}, str(MAX_TEXT_CHARS)),
        ("send_message", {"text": 5}, "text: Input should be a valid string"),
        ("send_message", {"text": "x", "to": "Bob"}, "to: Extra inputs"),
        ("send_message", {"text": "x", "conversation_id": "conv_foreign"}, "not in conversation"),
        ("send_message", {"text": "x", "conversation_id": "c" * 2_000_000}, "conversation_id"),
        ("list_messages", {"limit": 1000}, "limit"),
        ("list_messages", {"conversation_id": "c" * 2_000_000}, "conversation_id"),
        ("list_messages", {"before": "m" * 2_000_000}, "before"),
        ("stay_silent", {}, "reason"),
        ("append_memory", {"text": "x" * 250_000}, "text"),
        ("rm_rf", {}, "There is no tool 'rm_rf'"),
    ],
)
async def test_a_bad_call_is_told_to_the_model_and_does_nothing(
    tmp_path: Path, tool: str, arguments: Json, complaint: str
) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
        connected(session) as peer,
    ):
        await peer.initialize()
        answer = await peer.call(tool, arguments)
    assert answer["isError"] is True
    assert complaint in answer["content"][0]["text"]
    assert (desk.sent, desk.silence) == ([], None)


async def test_memory_is_read_and_grows_by_paragraphs_up_to_a_bound(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    box = Toolbox(desk)
    assert (await box.call("read_memory", {}, "1")).text == "(MEMORY.md is empty.)"
    await box.call("append_memory", {"text": "one"}, "2")
    await box.call("append_memory", {"text": "one"}, "2")
    await box.call("append_memory", {"text": "two\n\n"}, "3")
    assert (await box.call("read_memory", {}, "4")).text == "one\n\ntwo\n"
    assert not (await box.call("append_memory", {"text": "x" * 99_990}, "5")).is_error
    assert not (await box.call("append_memory", {"text": "x" * 99_990}, "6")).is_error
    full = await box.call("append_memory", {"text": "x" * 90}, "7")
    assert full.is_error
    assert "full" in full.text


async def test_a_call_repeated_under_its_id_over_a_new_connection_sends_once(
    tmp_path: Path,
) -> None:
    desk = NotedDesk(tmp_path)
    async with a_bridge(tmp_path) as bridge, a_session(bridge, tmp_path / "r", desk) as session:
        answers: list[Json] = []
        for _ in range(2):
            async with connected(session) as peer:
                await peer.initialize()
                answers.append(await peer.call("send_message", {"text": "hi"}, "toolu_1"))
        async with connected(session) as peer:
            await peer.initialize()
            await peer.call("send_message", {"text": "hi"}, "toolu_2")
    assert answers[0] == answers[1]
    assert desk.sent == [("hi", None), ("hi", None)]


async def test_a_send_whose_answer_never_arrived_is_not_sent_again(tmp_path: Path) -> None:
    box = Toolbox(NotedDesk(tmp_path))
    first = await box.call("send_message", {"text": "hi"}, "a")  # and then the line was cut
    again = await box.call("send_message", {"text": "hi"}, "b")
    assert first == again
    box.heard("a")
    box.heard("b")
    assert await box.call("send_message", {"text": "hi"}, "c") != first


async def test_files_go_once_like_the_message_that_they_go_with(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    box = Toolbox(desk)
    first = await box.call("attach_file", {"path": "a.png"}, "a")  # the line was cut
    assert first.text.startswith("a.png (image/png, 12 kB) goes with your next message")
    assert await box.call("attach_file", {"path": "a.png"}, "b") == first
    sent = {"text": "hi", "attachments": ["b.png", "c.png"]}
    assert await box.call("send_message", sent, "c") == await box.call("send_message", sent, "d")
    assert desk.attached == ["a.png", "b.png", "c.png"]
    for wrong in ({"path": ""}, {"path": 3}, {}):
        assert (await box.call("attach_file", wrong, "e")).is_error
    many = {"text": "hi", "attachments": ["x"] * 21}
    assert "at most 20" in (await box.call("send_message", many, "f")).text


@pytest.mark.parametrize("killed", [True, False])
async def test_a_bridge_that_is_killed_may_have_taken_an_answer_with_it_one_that_ends_has_not(
    tmp_path: Path, killed: bool
) -> None:
    desk = NotedDesk(tmp_path)
    async with a_bridge(tmp_path) as bridge, a_session(bridge, tmp_path / "r", desk) as session:
        async with await anyio.open_process(session.command, stderr=None) as shim:
            assert shim.stdin
            assert shim.stdout
            peer = Peer(StapledByteStream(shim.stdin, shim.stdout))
            await peer.initialize()
            await peer.call("send_message", {"text": "hi"}, "toolu_1")
            if killed:
                shim.kill()
            await shim.stdin.aclose()
        async with connected(session) as peer:
            await peer.initialize()
            await peer.call("send_message", {"text": "hi"}, "toolu_2")
    assert len(desk.sent) == (1 if killed else 2)


async def test_a_question_to_an_agent_is_asked_once_however_often_it_is_called(
    tmp_path: Path,
) -> None:
    desk = NotedDesk(tmp_path)
    box, arguments = Toolbox(desk), {"agent": "api", "text": "which port?"}
    first = await box.call("message_agent", arguments, "a")
    assert await box.call("message_agent", arguments, "a") == first
    await box.call("message_agent", arguments, "b")  # the line was cut before it heard the first
    await box.call("message_agent", arguments | {"text": "and which host?"}, "c")
    # The same text to people is another message.
    await box.call("send_message", {"text": "which port?"}, "d")
    assert desk.asked == [("api", "which port?"), ("api", "and which host?")]
    assert desk.sent == [("which port?", None)]


async def test_a_call_under_way_when_the_run_ends_is_finished_first(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    desk.gate = anyio.Event()
    async with (
        a_bridge(tmp_path) as bridge,
        anyio.create_task_group() as tasks,
        a_session(bridge, tmp_path / "r", desk) as session,
        connected(session) as peer,
    ):
        await peer.initialize()
        call = {"name": "send_message", "arguments": {"text": "at the last moment"}}
        await peer.write(
            json.dumps({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": call}).encode()
        )
        await peer.ask("ping", {})  # the call before it has been taken up

        async def release() -> None:
            desk.gate.set()

        tasks.start_soon(release)
    assert desk.sent == [("at the last moment", None)]


async def test_wrong_missing_and_dead_tokens_are_refused(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with a_bridge(tmp_path) as bridge:
        async with a_session(bridge, tmp_path / "r", desk) as session:
            token = session.token_file.read_text()
            assert stat.S_IMODE(session.token_file.stat().st_mode) == 0o400
            for wrong in ("", "x" * 43, token[:-1], token + "a"):
                async with connected(session, wrong) as peer:
                    assert await peer.is_cut_off()
            async with await anyio.connect_unix(session.socket_path) as stream:
                await stream.send(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n')
                assert await Peer(stream).is_cut_off()
            async with await anyio.connect_unix(session.socket_path) as stream:
                await stream.send(b"x" * 5_000)
                assert await Peer(stream).is_cut_off()
        async with connected(session, token) as peer:
            assert await peer.is_cut_off()
    assert desk.sent == []


async def test_the_token_of_a_run_opens_nothing_for_a_process_of_another(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    (tmp_path / "r").mkdir()
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        async with (
            a_bridge(tmp_path) as bridge,
            bridge.session(Toolbox(desk), tmp_path / "r") as session,
        ):
            session.admit(other.pid)
            async with connected(session) as peer:
                assert await peer.is_cut_off()
            session.admit(os.getpid())
            async with connected(session) as peer:
                assert await peer.initialize()
        other.kill()


async def test_the_end_of_a_run_cuts_its_connections(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with a_bridge(tmp_path) as bridge:
        async with a_session(bridge, tmp_path / "r", desk) as session:
            stream = await anyio.connect_unix(session.socket_path)
            peer = Peer(stream)
            await peer.write(json.dumps({"token": session.token_file.read_text()}).encode())
            await peer.initialize()
        assert await peer.is_cut_off()
        await stream.aclose()


async def test_noise_on_a_connection_harms_no_other(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
        connected(session) as noisy,
        connected(session) as calm,
    ):
        await calm.initialize()
        await noisy.write(b"\xff\xfe{[")
        await noisy.write(b"[]")
        await noisy.write(b'{"jsonrpc":"2.0","id":"a","method":"no/such"}')
        await calm.call("send_message", {"text": "hi"})
    assert desk.sent == [("hi", None)]


async def test_a_run_may_have_so_many_connections_and_takes_no_other_runs(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "greedy", desk) as greedy,
        a_session(bridge, tmp_path / "calm", desk) as calm,
        AsyncExitStack() as stack,
    ):
        for _ in range(MAX_OF_RUN):
            assert await (await stack.enter_async_context(connected(greedy))).initialize()
        async with connected(greedy) as one_more:
            assert await one_more.is_cut_off()
        async with connected(calm) as other:
            assert await other.initialize()


async def test_connections_that_say_nothing_do_not_use_up_the_daemons_descriptors(
    tmp_path: Path,
) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
    ):
        async with AsyncExitStack() as stack:
            for _ in range(MAX_OF_ALL):
                silent = await anyio.connect_unix(session.socket_path)
                await stack.enter_async_context(silent)
            async with await anyio.connect_unix(session.socket_path) as stream:
                with anyio.fail_after(TOKEN_S / 2):  # not for want of a token
                    assert await Peer(stream).is_cut_off()
        with anyio.fail_after(5):
            while True:  # the bridge notices one by one that they are gone
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    async with connected(session) as peer:
                        assert await peer.initialize()
                        break


async def test_the_socket_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    async with a_bridge(tmp_path, tmp_path / "state"):
        path = tmp_path / "state" / "bridge.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_path_too_long_for_a_socket_gets_a_short_one_and_a_pointer(tmp_path: Path) -> None:
    state = tmp_path / ("h" * 90)
    async with a_bridge(tmp_path, state) as bridge:
        pointer = state / "bridge.sock.path"
        path = Path(pointer.read_text().strip())
        assert path.is_socket()
        assert len(str(path)) <= MAX_PATH_BYTES
        async with (
            a_session(bridge, tmp_path / "r", NotedDesk(tmp_path)) as session,
            connected(session) as peer,
        ):
            assert await peer.initialize()
    assert not pointer.exists()
    assert not path.exists()


def test_a_socket_tells_who_is_at_its_other_end() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left) == (os.getpid(), os.getuid())


async def test_the_shim_carries_mcp_from_stdio_and_ends_with_its_stdin(tmp_path: Path) -> None:
    desk = NotedDesk(tmp_path)
    async with (
        a_bridge(tmp_path) as bridge,
        a_session(bridge, tmp_path / "r", desk) as session,
        await anyio.open_process(session.command) as shim,
    ):
        assert shim.stdin
        assert shim.stdout
        peer = Peer(StapledByteStream(shim.stdin, shim.stdout))
        assert await peer.initialize()
        big = "x" * (MAX_TEXT_CHARS - 1)
        await peer.call("send_message", {"text": big})
        assert desk.sent == [(big, None)]
        await shim.stdin.aclose()
        with anyio.fail_after(5):
            assert await shim.wait() == 0


def test_the_shim_says_why_when_the_daemon_is_gone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    shim = [
        sys.executable,
        "-I",
        "-S",
        shim_module.__file__,
        "/nonexistent.sock",
        str(tmp_path / "token"),
    ]
    done = subprocess.run(shim, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_every_tool_describes_itself() -> None:
    for tool in TOOLS:
        assert tool.description
        assert tool.schema["type"] == "object"
        assert tool.schema["additionalProperties"] is False
