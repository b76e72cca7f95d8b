"""The whole program with the scripted model: a real process at a real bridge."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cloudagent_daemon.agent.history import Picture
from fakes.builtin import builtin_agent
from fakes.canned import canned_server, sse
from fakes.h2_server import h2_server
from fakes.model import StubModel


async def test_a_message_without_a_script_is_echoed_word_by_word(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take("hello there, Ada")
    assert turn.events[0] == {"type": "ready", "session_id": "one", "model": "scripted"}
    assert len(turn.of("delta")) > 3
    assert turn.streamed == "You said: hello there, Ada"
    assert turn.of("text") == [{"type": "text", "block": 0, "text": turn.streamed}]
    assert turn.result["ok"]
    assert turn.result["text"] == turn.streamed
    assert turn.result["output_tokens"] > 0


async def test_a_called_tool_acts_over_the_bridge_and_shows_as_a_card(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take('@@call send_message {"text": "hi"}\n@@say done')
    assert agent.desk.sent == ["hi"]
    (call,), (result,) = turn.of("tool_call"), turn.of("tool_result")
    assert (call["name"], call["input"]) == ("send_message", {"text": "hi"})
    assert result["id"] == call["id"]
    assert not result["is_error"]
    assert turn.result["text"] == "done"


async def test_a_picture_is_shown_as_long_as_it_is_there_and_only_from_the_messages_folder(
    tmp_path: Path,
) -> None:
    files = tmp_path / "attachments"
    files.mkdir()
    (files / "shot.png").write_bytes(b"\x89PNG")
    (files / "large.png").write_bytes(bytes(3_750_001))
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    (files / "link.png").symlink_to(tmp_path / "secret.png")
    names = ("attachments/shot.png", "attachments/large.png", "attachments/link.png", "secret.png")
    shown = [Picture(tmp_path / name, "image/png") for name in names]
    with StubModel() as stub:
        env = {"OPENAI_BASE_URL": f"{stub.url}/v1", "OPENAI_API_KEY": "k"}
        async with builtin_agent(tmp_path, **env) as agent:
            given = {"kind": None, "model": "stub-model", "files": files}
            first = await agent.take("@@pictures", pictures=tuple(shown), **given)
            later = await agent.take("@@pictures", **given)
            (files / "shot.png").unlink()
            last = await agent.take("@@pictures", **given)
    texts = [turn.result["text"] for turn in (first, later, last)]
    assert texts == ["image/png", "image/png", "none"]


async def test_all_tools_of_the_bridge_and_the_files_are_there(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        (agent.folder / "a.txt").write_text("alpha\nbeta\n")
        (tmp_path / "MEMORY.md").write_text("likes tea")
        turn = await agent.take(
            "@@call read_memory\n"
            '@@call append_memory {"text": "and cake"}\n'
            "@@call list_messages\n"
            '@@call stay_silent {"reason": "nothing to do"}\n'
            "@@call list_agents\n"
            '@@call message_agent {"agent": "api", "text": "which port?"}\n'
            "@@call list_files\n"
            '@@call read_file {"path": "a.txt", "offset": 2}\n'
            '@@call search_files {"pattern": "alph"}\n'
        )
    outputs = [event["output"] for event in turn.of("tool_result")]
    assert outputs[0] == "likes tea"
    assert "and cake" in (tmp_path / "MEMORY.md").read_text()
    assert agent.desk.silence == "nothing to do"
    assert outputs[4] == "api (agent_1): builtin on mbp, idle"
    assert outputs[5].startswith("Sent to api as msg_1.")
    assert agent.desk.sent == ["to api: which port?"]
    assert outputs[6:] == ["a.txt", "2\tbeta", "a.txt:1: alpha"]
    assert not any(event["is_error"] for event in turn.of("tool_result"))


async def test_a_failed_call_goes_back_to_the_model_as_an_error(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take(
            '@@call send_message {"text": ""}\n@@call fly_away\n'
            '@@call read_file {"path": "/etc/passwd"}\n@@call read_file {"lines": 3}'
        )
    results = turn.of("tool_result")
    assert [result["is_error"] for result in results] == [True] * 4
    assert "send_message" in results[1]["output"]  # it names the tools that there are
    assert turn.result["ok"]
    assert agent.desk.sent == []


async def test_a_later_process_knows_the_earlier_messages(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        await agent.take("first")
        await agent.take("second")
        turn = await agent.take("@@recall")
    assert turn.result["text"] == "first | second"


async def test_one_process_can_take_several_turns(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        with anyio.fail_after(30):
            async with agent.turn("one", "@@recall") as turn:
                assert await turn.rest() == 0
    first, second = turn.of("result")
    assert (first["text"], second["text"]) == ("You said: one", "one")


async def test_a_session_that_is_gone_is_said_to_be_lost(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take("hello", resume=True)
    assert turn.result["reason"] == "session_lost"
    assert not turn.of("ready")


async def test_nobody_left_to_read_ends_the_turn(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        argv = [sys.executable, "-P", "-m", "cloudagent_daemon.agent", "--model-kind", "scripted"]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            agent.session.admit(process.pid)
            assert process.stdin
            assert process.stdout
            process.stdin.write(agent.request("@@stream 1000 0.01").line())
            process.stdin.flush()
            await anyio.to_thread.run_sync(process.stdout.readline)
            process.stdout.close()
            assert await anyio.to_thread.run_sync(process.wait, 10) == 128 + signal.SIGPIPE
        assert (await agent.take("@@recall")).result["ok"]


def test_starting_costs_none_of_the_heavy_imports() -> None:
    heavy = "{'mcp', 'pydantic', 'httpx2', 'cloudagent_protocol', 'psutil', 'typer'}"
    code = (
        "import sys, cloudagent_daemon.agent.__main__, cloudagent_daemon.agent.models.scripted;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_without_its_tools_the_agent_does_not_start_to_answer(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take("hello", socket=tmp_path / "nobody.sock")
        wrong = tmp_path / "wrong"
        wrong.write_text("not-the-token")
        refused = await agent.take("hello", token_file=wrong)
    assert turn.result["reason"] == refused.result["reason"] == "tools_unavailable"
    assert not turn.of("delta")


async def test_a_passing_failure_is_tried_again_and_shown(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take("@@error 529 2\n@@say here now")
    assert [(e["attempt"], e["reason"]) for e in turn.of("retry")] == [
        (2, "overloaded"),
        (3, "overloaded"),
    ]
    assert turn.result["text"] == "here now"


async def test_a_failure_that_stays_ends_the_turn_with_its_reason(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        billing = await agent.take("@@error 402")
        limit = await agent.take("@@error 429")
        after = await agent.take("@@recall")
    assert billing.result["reason"] == "billing"
    assert not billing.of("retry")
    assert limit.result["reason"] == "rate_limit"
    assert len(limit.of("retry")) == 4
    assert after.result["text"] == "@@error 402 | @@error 429"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_turn_at_once_and_the_session_says_so(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with builtin_agent(tmp_path) as agent:
        with anyio.fail_after(10):
            async with agent.turn("@@stream 1000 0.05") as turn:
                await turn.until("delta")
                turn.send_signal(number)
                assert await turn.rest() == 128 + number
        assert turn.result["reason"] == "interrupted"
        assert turn.of("text")[0]["text"].startswith("tick ")
        assert agent.records[-1]["type"] == "end"
        assert agent.records[-1]["reason"] == "interrupted"
        assert (await agent.take("@@recall")).result["text"] == "@@stream 1000 0.05"


async def test_a_killed_turn_leaves_a_session_that_can_go_on(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        with anyio.fail_after(10):
            async with agent.turn("@@call read_memory\n@@sleep 60") as turn:
                await turn.until("tool_result")
                turn.send_signal(signal.SIGKILL)
                await turn.rest()
        assert (await agent.take("@@recall")).result["ok"]


async def test_a_line_that_is_no_turn_is_answered_with_a_failure(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        for line in (b"nonsense\n", b"{}\n", b"[1]\n", b"\xff\xfe\n"):
            assert (await agent.take(line=line)).result["reason"] == "internal"


async def test_a_module_in_the_agents_folder_does_not_stand_in_for_a_real_one(
    tmp_path: Path,
) -> None:
    async with builtin_agent(tmp_path) as agent:
        (agent.folder / "json.py").write_text("raise SystemExit(99)")
        (agent.folder / "cloudagent_daemon.py").write_text("raise SystemExit(99)")
        turn = await agent.take('@@call search_files {"pattern": "x"}')
    assert turn.result["ok"]
    assert not turn.of("tool_result")[0]["is_error"]


async def test_a_turn_without_any_model_configured_says_what_to_set(tmp_path: Path) -> None:
    async with builtin_agent(tmp_path) as agent:
        turn = await agent.take("hello", kind=None)
    assert turn.result["reason"] == "authentication"
    assert "ANTHROPIC_API_KEY" in turn.result["detail"]


async def test_an_answer_streams_over_http2(tmp_path: Path) -> None:
    events = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 7}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
        {"type": "message_stop"},
    ]
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    pieces = [b"".join(lines[:3]), b"".join(lines[3:])]
    async with (
        h2_server(tmp_path, pieces) as server,
        builtin_agent(
            tmp_path,
            ANTHROPIC_BASE_URL=server.url,
            ANTHROPIC_API_KEY="k",
            SSL_CERT_FILE=str(server.ca_file),
        ) as agent,
    ):
        with anyio.fail_after(30):
            async with agent.turn("hello", kind=None) as turn:
                assert (await turn.until("delta"))["text"] == "a "
                # The server sends the rest only now: what came, came while the answer was open.
                server.gates[0].set()
                assert await turn.rest() == 0
    assert server.protocols == ["h2"]
    assert server.requests[0][":path"] == "/v1/messages"
    assert turn.result["text"] == "a b"


@pytest.mark.parametrize("service", ["anthropic", "openai"])
async def test_a_hosted_model_answers_through_the_chats_tools(tmp_path: Path, service: str) -> None:
    with StubModel() as stub:
        environment = (
            {"ANTHROPIC_BASE_URL": stub.url, "ANTHROPIC_API_KEY": "k"}
            if service == "anthropic"
            else {"OPENAI_BASE_URL": f"{stub.url}/v1"}
        )
        async with builtin_agent(tmp_path, **environment) as agent:
            script = '@@call send_message {"text": "hi"}\n@@stream 5'
            turn = await agent.take(script, kind=None, model="stub-model")
            again = await agent.take("@@recall", kind=None, model="stub-model")
    assert turn.events[0]["model"] == "stub-model"
    assert agent.desk.sent == ["hi"]
    assert len(turn.of("delta")) == 5
    assert turn.result["input_tokens"] == 20
    assert script in again.result["text"]


@pytest.mark.parametrize("service", ["anthropic", "openai"])
async def test_after_an_interrupted_tool_call_the_session_still_fits_the_api(
    tmp_path: Path, service: str
) -> None:
    def environment(url: str) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": url,
            "OPENAI_BASE_URL": f"{url}/v1",
            f"{service.upper()}_API_KEY": "k",
        }

    answer = {
        "anthropic": [
            {"type": "message_start", "message": {}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "ok"},
            },
            {"type": "message_stop"},
        ],
        "openai": [{"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}],
    }[service]
    async with (
        canned_server(sse(*answer)) as server,
        builtin_agent(tmp_path, **environment(server.url)) as agent,
    ):
        records = [
            {"type": "session", "version": 1, "id": "one"},
            {"type": "user", "text": "look"},
            {
                "type": "assistant",
                "text": "",
                "calls": [{"id": "call_1", "name": "read_memory", "input": {}, "problem": None}],
            },
        ]
        lines = [json.dumps(record) for record in records]
        agent.session_file.write_text("\n".join(lines) + '\n{"type": "resul')
        turn = await agent.take("go on", kind=None, model=f"{service}/some-model")
    assert turn.result["text"] == "ok"
    body = server.requests[0]["body"]
    assert body["model"] == "some-model"
    sides = [message["role"] for message in body["messages"]]
    expected = {
        "anthropic": ["user", "assistant", "user", "assistant", "user"],
        "openai": ["system", "user", "assistant", "tool", "assistant", "user"],
    }[service]
    assert sides == expected
    assert "not known" in json.dumps(body["messages"][-3])
