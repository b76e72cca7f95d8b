"""The main job with the real `claude` from npm; only its model is scripted, on loopback."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import BIN, Backend, Process, processes_with, running_backend, running_daemon
from fakes.model import StubModel

pytestmark = [pytest.mark.slow, pytest.mark.real_cli]
CLIS = Path(__file__).parent / "clis" / "node_modules" / ".bin"


def model_requests(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line.get("protocol") == "anthropic"]


@contextmanager
def laptop_with_claude(
    backend: Backend, key: str, home: Path, model: StubModel, **extra: str
) -> Generator[Process]:
    assert (CLIS / "claude").exists(), "run  sh tests/needs.sh  to install the real claude"
    with running_daemon(
        home,
        backend.url,
        key,
        PATH=f"{CLIS}:{BIN}:/usr/local/bin:/usr/bin:/bin",
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY="dummy",
        IS_SANDBOX="1",
        **extra,
    ) as daemon:
        yield daemon


def test_a_message_goes_through_the_real_claude_and_the_second_resumes_its_session(
    tmp_path,
) -> None:
    log = tmp_path / "model.jsonl"
    with StubModel(log=log) as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        agent_id = backend.create_agent(host_id, driver="claude_code")
        with (
            laptop_with_claude(backend, key, tmp_path / "laptop", model) as daemon,
            backend.follow() as events,
        ):
            if "✓ claude_code 2." not in daemon.output:
                daemon.wait_for_line("✓ claude_code 2.")
            sent = backend.send(agent_id, '@@call send_message {"text": "hello from claude"}')
            reply = events.reply(sent["conversation_id"])
            assert reply["text"] == "hello from claude"
            trace = events.delivery(sent["id"], "done")
            assert trace["outcome"] == "replied"
            assert [rung["rung"] for rung in trace["rungs"]] == [
                "stored",
                "sent",
                "received",
                "started",
                "ready",
                "seen",
                "replied",
            ]
            tools = model_requests(log)[0]["tools"]
            assert "mcp__cloudagent__send_message" in tools

            again = backend.send(agent_id, "@@recall", sent["conversation_id"])
            recalled = events.reply(again["conversation_id"])
            assert "hello from claude" in recalled["text"]
            assert events.delivery(again["id"], "done")["outcome"] == "auto_published"
            texts = [m["text"] for m in backend.messages(sent["conversation_id"])]
            assert len(texts) == 4
        assert not processes_with(str(tmp_path / "laptop"))


def test_claude_asks_another_agent_and_tells_the_person_its_answer(tmp_path) -> None:
    with StubModel() as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        shop = backend.create_agent(host_id, "shop", driver="claude_code")
        api = backend.create_agent(host_id, "api", driver="claude_code")
        answer = f"@@call send_message {json.dumps({'text': 'It returns 42.'})}"
        question = f"@@call send_message {json.dumps({'text': answer})}"
        ask = f"@@call message_agent {json.dumps({'agent': 'api', 'text': question})}"
        with (
            laptop_with_claude(backend, key, tmp_path / "laptop", model),
            backend.follow() as events,
        ):
            sent = backend.send(shop, f"@@call list_agents\n{ask}")
            told = events.until(
                lambda e: (
                    e["type"] == "message.created"
                    and e["data"]["text"] == "It returns 42."
                    and e["data"]["author"]["id"] == shop
                )
            )["data"]
        assert (told["conversation_id"], told["depth"]) == (sent["conversation_id"], 3)
        between = backend.call("GET", f"/v1/messages/{told['caused_by']}")["conversation_id"]
        authors = [message["author"]["id"] for message in backend.messages(between)]
        assert authors == [shop, api]


def test_a_message_for_a_machine_that_is_off_reaches_claude_when_it_is_on(tmp_path) -> None:
    log = tmp_path / "model.jsonl"
    with StubModel(log=log) as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        agent_id = backend.create_agent(host_id, driver="claude_code")
        with backend.follow() as events:
            sent = backend.send(agent_id, '@@call send_message {"text": "you are back"}')
            assert backend.rungs(sent["id"]) == ["stored", "waiting"]
            with laptop_with_claude(backend, key, tmp_path / "laptop", model):
                assert events.reply(sent["conversation_id"])["text"] == "you are back"


def test_kill_9_between_ack_and_spawn_loses_and_doubles_nothing(tmp_path) -> None:
    log = tmp_path / "model.jsonl"
    with StubModel(log=log) as model, running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host("mbp")
        agent_id = backend.create_agent(host_id, driver="claude_code")
        laptop = tmp_path / "laptop"
        with backend.follow() as events:
            with laptop_with_claude(
                backend, key, laptop, model, CLOUDAGENT_CRASH_AT="after_ack"
            ) as daemon:
                sent = backend.send(agent_id, '@@call send_message {"text": "once"}')
                assert daemon.wait() == 137
            assert not model_requests(log) if log.exists() else True
            with laptop_with_claude(backend, key, laptop, model):
                assert events.reply(sent["conversation_id"])["text"] == "once"
                events.delivery(sent["id"], "done")
            texts = [m["text"] for m in backend.messages(sent["conversation_id"])]
            assert texts.count("once") == 1
            assert len(model_requests(log)) == 2  # the tool call, and the words after it


def test_a_machine_key_is_nowhere_an_agent_or_another_user_can_see_it(tmp_path) -> None:
    log = tmp_path / "model.jsonl"
    with (
        StubModel(log=log, log_bodies=True) as model,
        running_backend(tmp_path / "server") as backend,
    ):
        host_id, key = backend.create_host("mbp")
        agent_id = backend.create_agent(host_id, driver="claude_code", mode="bypassPermissions")
        laptop = tmp_path / "laptop"
        with laptop_with_claude(backend, key, laptop, model), backend.follow() as events:
            sent = backend.send(
                agent_id,
                '@@call Bash {"command": "env; cat /proc/self/cmdline", "description": "look"}',
            )
            events.delivery(sent["id"], "done", "failed")
        assert key not in log.read_text()
        config = laptop / ".cloudagent" / "daemon" / "config.json"
        holders = [
            path
            for path in [*laptop.rglob("*"), *(tmp_path / "server").rglob("*")]
            if path.is_file() and path != config and key.encode() in path.read_bytes()
        ]
        assert holders == []
        assert config.stat().st_mode & 0o777 == 0o600
