"""An agent's folder: made once, kept, replaced file by file, never left."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudagent_daemon.runs.workspace import (
    SCHEMA,
    TURNS_KEPT,
    NewerRecordError,
    SpawnRecord,
    TurnRecord,
    Workspace,
    redacted,
)
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, new_run_id
from cloudagent_protocol.resources import AgentSpec

CONVERSATION = ConversationId("conv_1")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    agent = AgentSpec(id=AgentId("agent_1"), name="shop", driver="claude_code")
    made = Workspace(tmp_path, agent)
    made.prepare()
    return made


def test_a_workspace_has_the_places_that_people_know(space: Workspace) -> None:
    assert sorted(path.name for path in space.home.iterdir()) == [
        ".meta",
        "MEMORY.md",
        "attachments",
        "notes",
        "workspace",
    ]
    assert space.memory.read_text() == "# What shop remembers\n"
    assert space.cwd == space.home / "workspace"


def test_preparing_again_keeps_what_is_there(space: Workspace) -> None:
    space.memory.write_text("mine")
    space.prepare()
    assert space.memory.read_text() == "mine"


def test_a_session_is_kept_until_another_takes_its_place(space: Workspace) -> None:
    assert space.session_of(CONVERSATION) is None
    space.keep_session(CONVERSATION, "s1")
    record = space.session_of(CONVERSATION)
    assert record is not None
    assert (record.session_id, space.resumable(record)) == ("s1", True)
    space.keep_session(CONVERSATION, "s2")
    record = space.session_of(CONVERSATION)
    assert record is not None
    assert record.session_id == "s2"


def test_a_session_is_bound_to_its_folder_and_driver(space: Workspace, tmp_path: Path) -> None:
    space.keep_session(CONVERSATION, "s1")
    for change in ({"cwd": str(tmp_path)}, {"driver": "builtin"}):
        other = Workspace(tmp_path, space.agent.model_copy(update=change))
        record = other.session_of(CONVERSATION)
        assert record is not None
        assert not other.resumable(record)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"driver": 1}', "\x00\xff"])
def test_an_unreadable_record_is_set_aside_and_said_once(
    space: Workspace, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = space.sessions / "conv_1.json"
    file.write_text(content)
    assert space.session_of(CONVERSATION) is None
    assert space.session_of(CONVERSATION) is None
    [aside] = space.sessions.glob("conv_1.json.corrupt-*")
    assert aside.read_text() == content
    [said] = caplog.records
    assert aside.name in said.getMessage()
    space.keep_session(CONVERSATION, "s1")
    assert space.session_of(CONVERSATION)


def test_two_records_that_are_set_aside_in_one_second_are_both_kept(space: Workspace) -> None:
    file = space.sessions / "conv_1.json"
    for content in ("{1", "{2", "{3"):
        file.write_text(content)
        assert space.session_of(CONVERSATION) is None
    kept = {aside.read_text() for aside in space.sessions.glob("conv_1.json.corrupt-*")}
    assert kept == {"{1", "{2", "{3"}


@pytest.mark.parametrize("known", [True, False])
def test_a_record_of_a_newer_daemon_is_refused_with_the_repair_and_left(
    space: Workspace, *, known: bool
) -> None:
    space.keep_session(CONVERSATION, "s1")
    file = space.sessions / "conv_1.json"
    body = json.loads(file.read_text()) if known else {"sessions": []}
    text = json.dumps(body | {"schema": SCHEMA + 1})
    file.write_text(text)
    with pytest.raises(NewerRecordError, match="uv tool upgrade cloudagent-daemon"):
        space.session_of(CONVERSATION)
    assert file.read_text() == text


def test_a_turn_under_way_is_kept_and_of_those_that_are_over_the_newest(space: Workspace) -> None:
    under_way = TurnRecord(run_id=new_run_id(), launch_id="l")
    finished = Finished(seq=1, at=datetime.now(UTC), outcome=Outcome.REPLIED)
    over = under_way.model_copy(update={"finished": finished})
    space.keep_turn(DeliveryId("dlv_00"), under_way)
    ended = [DeliveryId(f"dlv_{number:02}") for number in range(1, TURNS_KEPT + 3)]
    for delivery in ended:
        space.keep_turn(delivery, over)
    space.forget_old_turns()
    assert space.turn_of(DeliveryId("dlv_00")) == under_way
    assert [one for one in ended if space.turn_of(one) != over] == ended[:2]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", "a\0b", "x" * 101])
def test_no_id_leads_out_of_the_folder(space: Workspace, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not usable"):
        Workspace(tmp_path, space.agent.model_copy(update={"id": name}))
    with pytest.raises(ValueError, match="not usable"):
        space.keep_session(ConversationId(name), "s")


def test_files_are_for_their_owner_only(space: Workspace) -> None:
    space.keep_session(CONVERSATION, "s1")
    assert (space.sessions / "conv_1.json").stat().st_mode & 0o777 == 0o600
    assert not list(space.sessions.glob("*.new"))


def test_secrets_and_long_words_are_left_out_of_a_command_line(space: Workspace) -> None:
    argv = [
        "agent",
        "--api-key",
        "abc",
        "--token=abc",
        "sk-ant-0123456789abcdef",
        "--model",
        "opus",
        "x" * 501,
    ]
    assert redacted(argv) == [
        "agent",
        "--api-key",
        "…",
        "--token=…",
        "…",
        "--model",
        "opus",
        f"{'x' * 60}… (501 characters)",
    ]
    record = SpawnRecord(
        run_id=new_run_id(),
        launch_id="l",
        argv=argv,
        cwd="/",
        started_at=datetime.now(UTC),
    )
    space.keep_spawn(record)
    assert "0123456789abcdef" not in (space.home / ".meta" / "last-spawn.json").read_text()
