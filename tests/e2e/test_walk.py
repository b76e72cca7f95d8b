"""A message goes all the way, with the scripted model in place of a coding agent."""

from collections.abc import Generator
from pathlib import Path

import pytest

from e2e.harness import (
    Backend,
    clean_environment,
    executed,
    log_in,
    running_backend,
    running_daemon,
    started_daemon,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def backend(home: Path) -> Generator[Backend]:
    """One for all tests; each has agents of its own, or a machine."""
    with running_backend(home / "server", start=executed) as running:
        yield running


@pytest.fixture(scope="module")
def mbp(backend: Backend, home: Path) -> Generator[str]:
    """A machine whose daemon runs: its id."""
    host_id, key = backend.create_host("mbp")
    laptop = home / "laptop"
    env = clean_environment(laptop)
    log_in(laptop, backend.url, key, env)
    with started_daemon(laptop, env, start=executed):
        yield host_id


@pytest.fixture
def agent_id(backend: Backend, mbp: str) -> str:
    """A new agent on `mbp`."""
    return backend.create_agent(mbp, driver="scripted")


def test_a_message_is_answered_and_its_ladder_tells_each_step(
    backend: Backend, agent_id: str
) -> None:
    with backend.follow() as events:
        sent = backend.send(agent_id, '@@call send_message {"text": "done, ana"}')
        reply = events.reply(sent["conversation_id"])
        assert reply["text"] == "done, ana"
        name = backend.call("GET", f"/v1/agents/{agent_id}")["name"]
        assert reply["author"] == {"type": "agent", "id": agent_id, "name": name}
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
        assert [m["text"] for m in backend.messages(sent["conversation_id"])][-1] == "done, ana"


def test_a_turn_that_never_calls_a_tool_is_published_and_marked(
    backend: Backend, agent_id: str
) -> None:
    with backend.follow() as events:
        sent = backend.send(agent_id, "@@say just text")
        reply = events.reply(sent["conversation_id"])
        assert (reply["text"], reply["auto_published"]) == ("just text", True)
        assert events.delivery(sent["id"], "done")["outcome"] == "auto_published"


def test_deltas_stream_while_the_model_writes_and_add_up_to_the_text(
    backend: Backend, agent_id: str
) -> None:
    with backend.follow() as events:
        sent = backend.send(agent_id, "@@stream 12 0.1")
        reply = events.reply(sent["conversation_id"])
        deltas = [e["data"] for e in events.seen if e["type"] == "run.delta"]
        text = ""
        for delta in deltas:
            if delta["offset"] <= len(text):
                text = text[: delta["offset"]] + delta["text"]
        assert len(deltas) > 3
        assert reply["text"].startswith(text.strip())


def test_messages_of_one_conversation_run_in_order_and_one_at_a_time(
    backend: Backend, agent_id: str
) -> None:
    with backend.follow() as events:
        first = backend.send(agent_id, "@@say one")
        conversation_id = first["conversation_id"]
        for word in ("two", "three"):
            backend.send(agent_id, f"@@say {word}", conversation_id)
        replies = [events.reply(conversation_id)["text"] for _ in range(3)]
        assert replies == ["one", "two", "three"]
        runs = [
            (e["type"], e["data"]["id"])
            for e in events.seen
            if e["type"] in {"run.started", "run.finished"}
            and e["data"]["conversation_id"] == conversation_id
        ]
        for started, finished in zip(runs[::2], runs[1::2], strict=False):
            assert started == ("run.started", finished[1])


def test_a_message_sent_while_the_machine_is_off_arrives_when_it_is_on(
    backend: Backend, tmp_path: Path
) -> None:
    with backend.follow() as events:
        host_id, key = backend.create_host("laptop")
        agent_id = backend.create_agent(host_id, driver="scripted")
        sent = backend.send(agent_id, "@@say back again")
        assert backend.rungs(sent["id"]) == ["stored", "waiting"]
        with running_daemon(tmp_path / "laptop", backend.url, key):
            assert events.reply(sent["conversation_id"])["text"] == "back again"


def test_a_backend_that_was_killed_and_restarted_goes_on_where_it_was(tmp_path) -> None:
    with running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host()
        agent_id = backend.create_agent(host_id, driver="scripted")
        with running_daemon(tmp_path / "laptop", backend.url, key) as daemon:
            with backend.follow() as events:
                sent = backend.send(agent_id, "@@sleep 2\n@@say survived")
                events.delivery(sent["id"], "running")
            backend.process.kill()
            port = int(backend.url.rpartition(":")[2])
            with running_backend(tmp_path / "server", port=port) as again:
                daemon.wait_for_line("Connected")
                with again.follow(after=0) as events:
                    assert events.reply(sent["conversation_id"])["text"] == "survived"
                    assert events.delivery(sent["id"], "done")["outcome"] == "auto_published"
                texts = [m["text"] for m in again.messages(sent["conversation_id"])]
                assert texts.count("survived") == 1


def test_a_message_that_interrupts_goes_next_and_what_waited_follows(
    backend: Backend, agent_id: str
) -> None:
    with backend.follow() as events:
        first = backend.send(agent_id, "@@sleep 60\n@@say too late")
        conversation_id = first["conversation_id"]
        events.delivery(first["id"], "running")
        backend.send(agent_id, "@@say what waited", conversation_id)
        urgent = {"text": "@@say what was urgent", "mode": "interrupt"}
        backend.call("POST", f"/v1/conversations/{conversation_id}/messages", urgent)
        stopped = events.delivery(first["id"], "cancelled")["rungs"][-1]
        assert (stopped["actor"], stopped["reason"]) == ("ana", "interrupted")
        replies = [events.reply(conversation_id)["text"] for _ in range(2)]
        assert replies == ["what was urgent", "what waited"]


def test_stop_ends_a_run_and_says_who_did_it(backend: Backend, agent_id: str) -> None:
    with backend.follow() as events:
        sent = backend.send(agent_id, "@@sleep 60\n@@say too late")
        events.delivery(sent["id"], "running")
        [delivery] = backend.call("GET", f"/v1/messages/{sent['id']}/trace")["deliveries"]
        backend.call("POST", f"/v1/runs/{delivery['run_id']}/interrupt")
        trace = events.delivery(sent["id"], "cancelled")
        assert trace["rungs"][-1]["rung"] == "cancelled"
        again = backend.send(agent_id, "@@say still here", sent["conversation_id"])
        assert events.reply(again["conversation_id"])["text"] == "still here"


@pytest.mark.parametrize("point", ["after_receive", "after_persist", "after_ack", "before_spawn"])
def test_a_daemon_killed_before_the_spawn_loses_and_doubles_nothing(
    backend: Backend, tmp_path: Path, point: str
) -> None:
    with backend.follow() as events:
        host_id, key = backend.create_host("laptop")
        agent_id = backend.create_agent(host_id, driver="scripted")
        laptop = tmp_path / "laptop"
        with running_daemon(laptop, backend.url, key, CLOUDAGENT_CRASH_AT=point) as daemon:
            sent = backend.send(agent_id, "@@say once")
            assert daemon.wait() == 137
        with running_daemon(laptop, backend.url, key):
            assert events.reply(sent["conversation_id"])["text"] == "once"
            events.delivery(sent["id"], "done")
            after = backend.send(agent_id, "@@say next", sent["conversation_id"])
            events.delivery(after["id"], "done")
        runs = [e["data"] for e in events.seen if e["type"] == "run.started"]
        assert [run["agent_id"] for run in runs].count(agent_id) == 2
        texts = [m["text"] for m in backend.messages(sent["conversation_id"])]
        assert texts == ["@@say once", "once", "@@say next", "next"]


@pytest.mark.parametrize("point", ["after_send", "before_finish"])
def test_a_reply_made_before_the_crash_goes_out_once(
    backend: Backend, tmp_path: Path, point: str
) -> None:
    with backend.follow() as events:
        host_id, key = backend.create_host("laptop")
        agent_id = backend.create_agent(host_id, driver="scripted")
        laptop = tmp_path / "laptop"
        text = '@@call send_message {"text": "only once"}'
        with running_daemon(laptop, backend.url, key, CLOUDAGENT_CRASH_AT=point) as daemon:
            sent = backend.send(agent_id, text)
            assert daemon.wait() == 137
        with running_daemon(laptop, backend.url, key):
            trace = events.delivery(sent["id"], "done", "failed")
            assert trace["outcome"] == "replied"
        texts = [m["text"] for m in backend.messages(sent["conversation_id"])]
        assert texts.count("only once") >= 1
        assert "interrupted" in [r["rung"] for r in trace["rungs"]] or texts.count("only once") == 1


def test_an_agent_that_looks_for_the_machine_s_key_does_not_find_it(tmp_path) -> None:
    with running_backend(tmp_path / "server") as backend:
        host_id, key = backend.create_host()
        agent_id = backend.create_agent(host_id, driver="scripted", cwd=str(tmp_path / "laptop"))
        with running_daemon(tmp_path / "laptop", backend.url, key), backend.follow() as events:
            looks = '@@call read_file {"path": ".cloudagent/daemon/config.json"}'
            sent = backend.send(agent_id, f"{looks}\n@@call send_message {{}}")
            result = events.until(
                lambda event: (
                    event["type"] == "run.event"
                    and event["data"]["agent_id"] == agent_id
                    and event["data"]["event"]["type"] == "tool_result"
                )
            )["data"]["event"]
            assert "config.json" in result["output"]
            assert result["is_error"]
            events.delivery(sent["id"], "done")
            assert key not in str(events.seen)
        assert key in (tmp_path / "laptop/.cloudagent/daemon/config.json").read_text()
