"""An agent's folder: made once, kept, replaced file by file, never left."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudagent_daemon.runs.workspace import (
    TURNS_KEPT,
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
def test_an_unreadable_record_counts_as_none(space: Workspace, content: str) -> None:
    (space.sessions / "conv_1.json").write_text(content)
    assert space.session_of(CONVERSATION) is None


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
