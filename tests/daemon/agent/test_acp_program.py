"""The built-in agent in an editor: `cloudagent-daemon acp`, spoken to by the protocol's own Python package."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from acp import Client, RequestError, schema, spawn_agent_process, text_block
from acp.client.connection import ClientSideConnection

from cloudagent_daemon.agent.history import Assistant, Picture, User
from cloudagent_daemon.agent.pictures import newest
from fakes.model import StubModel

PROGRAM = str(Path(sys.executable).parent / "cloudagent-daemon")
SERVER = Path(__file__).parents[2] / "fakes" / "mcp_program.py"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def model() -> Generator[StubModel]:
    with StubModel() as stub:
        yield stub


@dataclass
class Editor:
    """An editor that notes what it is told, and answers questions from a list; the rest of `Client` it says it has not."""

    home: Path
    answers: list[str] = field(default_factory=list[str])
    updates: list[Any] = field(default_factory=list[Any])
    asked: list[schema.ToolCallUpdate] = field(default_factory=list[schema.ToolCallUpdate])
    came: anyio.Event = field(default_factory=anyio.Event)

    async def session_update(self, session_id: str, update: Any, **kwargs: Any) -> None:
        self.updates.append(update)
        self._ring()

    async def request_permission(
        self,
        session_id: str,
        tool_call: schema.ToolCallUpdate,
        options: list[schema.PermissionOption],
        **kwargs: Any,
    ) -> schema.RequestPermissionResponse:
        self.asked.append(tool_call)
        self._ring()
        if not self.answers:
            await anyio.sleep_forever()
        chosen = self.answers.pop(0)
        assert chosen in {option.option_id for option in options}
        outcome = schema.AllowedOutcome(outcome="selected", option_id=chosen)
        return schema.RequestPermissionResponse(outcome=outcome)

    def _ring(self) -> None:
        self.came.set()
        self.came = anyio.Event()

    async def until(self, seen: Any) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not seen():
                await self.came.wait()

    def of(self, kind: str) -> list[Any]:
        return [update for update in self.updates if update.session_update == kind]

    def text(self, kind: str = "agent_message_chunk") -> str:
        return "".join(update.content.text for update in self.of(kind))

    @property
    def notes(self) -> list[str]:
        path = self.home / "notes"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def server(self) -> schema.McpServerStdio:
        notes = schema.EnvVariable(name="NOTES", value=str(self.home / "notes"))
        return schema.McpServerStdio(
            name="notes", command=sys.executable, args=["-I", str(SERVER)], env=[notes]
        )


@asynccontextmanager
async def an_agent(
    editor: Editor, model: StubModel | None
) -> AsyncGenerator[tuple[ClientSideConnection, Any]]:
    env = {"HOME": str(editor.home), "PATH": "/usr/bin:/bin"}
    if model:
        env |= {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "k"}
        env |= {"CLOUDAGENT_BUILTIN_MODEL": "stub-model"}
    with anyio.fail_after(DEADLINE_S):
        async with spawn_agent_process(cast("Client", editor), PROGRAM, "acp", env=env) as (
            agent,
            process,
        ):
            hello = await agent.initialize(protocol_version=1)
            assert hello.protocol_version == 1
            yield agent, process


async def test_a_turn_reads_the_folder_and_is_remembered(tmp_path: Path, model: StubModel) -> None:
    editor = Editor(tmp_path)
    (tmp_path / "a.txt").write_text("alpha\n")
    async with an_agent(editor, model) as (agent, _):
        session = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        order = '@@call read_file {"path": "a.txt"}\n@@say it says alpha'
        done = await agent.prompt(session.session_id, [text_block(order)])
        assert done.stop_reason == "end_turn"
        assert done.usage
        assert done.usage.output_tokens > 0
        [call], [result] = editor.of("tool_call"), editor.of("tool_call_update")
        assert (call.title, call.kind, call.raw_input) == ("read_file", "read", {"path": "a.txt"})
        assert result.status == "completed"
        assert "alpha" in result.content[0].content.text
        assert editor.text() == "it says alpha"
        assert editor.asked == []  # to look is not asked for
        await agent.prompt(session.session_id, [text_block("@@recall")])
    assert "it says alpha" in editor.text()


def a_picture(size: int = 3, kind: str = "image/png") -> schema.ImageContentBlock:
    data = "QUJD" * (size // 3)
    return schema.ImageContentBlock(type="image", data=data, mime_type=kind)


async def test_a_picture_is_shown_to_the_model_while_its_session_is_open(
    tmp_path: Path, model: StubModel
) -> None:
    editor = Editor(tmp_path)
    async with an_agent(editor, model) as (agent, _):
        session = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        await agent.prompt(session.session_id, [text_block("@@pictures"), a_picture()])
        await agent.prompt(session.session_id, [text_block("@@say :\n@@pictures")])
        assert editor.text() == "image/png:image/png"
        await agent.load_session(cwd=str(tmp_path), session_id=session.session_id, mcp_servers=[])
        assert "[A picture, image/png]" in editor.text("user_message_chunk")


def test_of_many_pictures_the_newest_go_with_a_request() -> None:
    def shown(*sizes: int) -> User:
        return User("x", tuple(Picture(None, "image/png", "QUJD" * (n // 3)) for n in sizes))

    history = [shown(3), shown(4_500_000), Assistant("ok"), shown(3_000_000)]
    assert newest(history, 0) == [User("x"), *history[1:]]
    assert newest(history, 19) == [User("x"), User("x"), *history[2:]]


async def test_a_session_is_told_again_to_the_editor_that_loads_it(
    tmp_path: Path, model: StubModel
) -> None:
    first, second, third = Editor(tmp_path), Editor(tmp_path), Editor(tmp_path)
    where: dict[str, Any] = {"cwd": str(tmp_path), "mcp_servers": []}
    async with an_agent(first, model) as (agent, _):
        session = (await agent.new_session(**where)).session_id
        await agent.prompt(session, [text_block("@@call list_files {}\n@@say listed")])
    async with an_agent(second, model) as (agent, _):
        await agent.load_session(session_id=session, **where)
        told = [update.session_update for update in second.updates]
        assert told == [
            "user_message_chunk",
            "tool_call",
            "tool_call_update",
            "agent_message_chunk",
        ]
        await agent.prompt(session, [text_block("@@recall")])
        assert "listed" in second.text()
    async with an_agent(third, model) as (agent, _):
        await agent.resume_session(session_id=session, **where)
        assert third.updates == []
        await agent.prompt(session, [text_block("@@recall")])
    assert "listed" in third.text()


async def test_a_tool_of_the_editors_is_asked_for_and_the_answer_holds(
    tmp_path: Path, model: StubModel
) -> None:
    editor = Editor(tmp_path, ["no", "once", "always"])
    async with an_agent(editor, model) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[editor.server])
        for text in ("denied", "once", "always", "unasked"):
            order = f"@@call note {json.dumps({'text': text})}"
            await agent.prompt(new.session_id, [text_block(order)])
    assert editor.notes == ["once", "always", "unasked"]
    assert [one.title for one in editor.asked] == ["notes/note"] * 3
    assert editor.asked[0].raw_input == {"text": "denied"}
    ends = [one for one in editor.of("tool_call_update") if one.status != "in_progress"]
    assert [one.status for one in ends] == ["failed", "completed", "completed", "completed"]
    names = ends[1].content[0].content.text.split()
    assert "OPENAI_API_KEY" not in names  # a server has no use for it
    assert {"NOTES", "HOME"} <= set(names)


async def test_a_tool_with_a_name_of_our_own_has_its_servers_before_it(
    tmp_path: Path, model: StubModel
) -> None:
    editor = Editor(tmp_path, ["once"])
    async with an_agent(editor, model) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[editor.server])
        await agent.prompt(new.session_id, [text_block("@@call notes__read_file {}")])
    assert editor.of("tool_call_update")[-1].content[0].content.text == "theirs"


async def test_a_cancelled_turn_says_so_and_the_next_one_works(
    tmp_path: Path, model: StubModel
) -> None:
    editor, stops = Editor(tmp_path), list[str]()
    async with an_agent(editor, model) as (agent, process), anyio.create_task_group() as tasks:
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[editor.server])

        async def turn(text: str) -> None:
            done = await agent.prompt(new.session_id, [text_block(text)])
            stops.append(done.stop_reason)

        # In the model's answer, and while a person is asked.
        tasks.start_soon(turn, "@@say begun\n@@call list_files {}\n@@sleep 100")
        await editor.until(lambda: editor.of("tool_call_update"))
        with pytest.raises(RequestError, match="under way"):
            await agent.prompt(new.session_id, [text_block("and this?")])
        await agent.cancel(new.session_id)
        await turn("@@say back")
        tasks.start_soon(turn, '@@call note {"text": "never"}')
        await editor.until(lambda: editor.asked)
        await agent.cancel(new.session_id)
        await turn("@@say again")
        process.stdin.close()
        assert await process.wait() == 0
    assert stops == ["cancelled", "end_turn", "cancelled", "end_turn"]
    assert editor.notes == []


async def test_a_server_that_does_not_start_is_said_and_the_turn_goes_on(
    tmp_path: Path, model: StubModel
) -> None:
    editor = Editor(tmp_path)
    gone = schema.McpServerStdio(name="gone", command="/nowhere", args=[], env=[])
    async with an_agent(editor, model) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[gone])
        await agent.prompt(new.session_id, [text_block("@@say here")])
    assert "The MCP server gone (/nowhere) cannot be used" in editor.text("agent_thought_chunk")
    assert editor.text() == "here"


@pytest.mark.parametrize(
    ("status", "code", "data"),
    [(401, -32000, None), (429, -32603, {"reason": "rate_limit", "statusCode": 429})],
)
async def test_an_error_of_the_models_has_its_code(
    tmp_path: Path, model: StubModel, status: int, code: int, data: Any
) -> None:
    editor = Editor(tmp_path)
    async with an_agent(editor, model) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        with pytest.raises(RequestError) as refused:
            await agent.prompt(new.session_id, [text_block(f"@@error {status}")])
    assert (refused.value.code, refused.value.data) == (code, data)


async def test_without_a_model_it_says_what_to_set(tmp_path: Path) -> None:
    editor = Editor(tmp_path)
    async with an_agent(editor, None) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        with pytest.raises(
            RequestError, match="Set ANTHROPIC_API_KEY or OPENAI_API_KEY"
        ) as refused:
            await agent.prompt(new.session_id, [text_block("hi")])
    assert refused.value.code == -32000


async def test_what_it_cannot_do_is_refused_with_the_reason(
    tmp_path: Path, model: StubModel
) -> None:
    editor = Editor(tmp_path)
    drawing = a_picture(kind="image/svg+xml")
    async with an_agent(editor, model) as (agent, _):
        new = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        for work, code in [
            (agent.prompt(new.session_id, [drawing]), -32602),
            (agent.prompt(new.session_id, [a_picture(3_750_003)]), -32602),
            (agent.prompt(new.session_id, [a_picture(3_000_000)] * 3), -32602),
            (agent.prompt(new.session_id, []), -32602),
            (agent.prompt("another", [text_block("hi")]), -32002),
            (agent.new_session(cwd="relative", mcp_servers=[]), -32602),
            (agent.load_session(cwd=str(tmp_path), session_id="unknown", mcp_servers=[]), -32002),
            (agent.load_session(cwd=str(tmp_path), session_id="../x", mcp_servers=[]), -32002),
            (agent.set_session_mode(mode_id="plan", session_id=new.session_id), -32601),
        ]:
            with pytest.raises(RequestError) as refused:
                await work
            assert refused.value.code == code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"no JSON", -32700),
        (b"[]", -32600),
        (b'{"jsonrpc": "2.0", "id": 7, "result": {}}', None),
        (b'{"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "x"}}', None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "session/new", "params": {"cwd": "/", "mcpServers": [3]}}', -32602),
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_no_end(
    tmp_path: Path, line: bytes, code: int | None
) -> None:
    hello = (
        b'{"jsonrpc": "2.0", "id": 99, "method": "initialize", "params": {"protocolVersion": 1}}'
    )
    done = subprocess.run(
        [PROGRAM, "acp"], input=line + b"\n" + hello + b"\n", capture_output=True, timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True,
    )  # fmt: skip
    said = [json.loads(one) for one in done.stdout.splitlines()]
    assert [one["error"]["code"] for one in said if "error" in one] == ([code] if code else [])
    assert [one["id"] for one in said if "result" in one] == [99]
