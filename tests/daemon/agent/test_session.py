"""The session on disk, and what a truncated one still tells."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudagent_daemon.agent.errors import AgentError
from cloudagent_daemon.agent.history import (
    Assistant,
    Call,
    Entry,
    Picture,
    Result,
    Results,
    User,
    parse_input,
)
from cloudagent_daemon.agent.session import open_session

TURN: list[Entry] = [
    User("hé\ud800llo"),
    Assistant("let me see", (Call("c1", "read_memory"), Call("c2", "x", {"a": [1]}, "bad"))),
    Results((Result("c1", "tea"), Result("c2", "no", is_error=True, truncated=True))),
    Assistant("done"),
]


def write(folder: Path, entries: list[Entry], *, end: bool = True) -> None:
    with open_session(folder, "one", resume=False) as session:
        for entry in entries:
            session.add(entry)
        if end:
            session.end(None)


def history(folder: Path) -> list[Entry]:
    with open_session(folder, "one", resume=True) as session:
        return session.history


def valid(entries: list[Entry]) -> bool:
    """As the APIs want it: sides in turn, every call answered, the assistant last."""
    sides = ["assistant" if isinstance(entry, Assistant) else "user" for entry in entries]
    answered = all(
        isinstance(after, Results)
        and [result.call_id for result in after.results] == [call.id for call in entry.calls]
        for entry, after in zip(entries, [*entries[1:], None], strict=False)
        if isinstance(entry, Assistant) and entry.calls
    )
    alternating = all(a != b for a, b in itertools.pairwise(sides))
    return alternating and answered and sides[-1:] != ["user"]


def test_of_a_picture_a_session_keeps_where_it_lies_and_not_what_it_shows(tmp_path: Path) -> None:
    picture = Picture(Path("/a/shot.png"), "image/png", "QQ==")
    write(tmp_path, [User("look", (picture,)), Assistant("I see")])
    assert history(tmp_path)[0] == User("look", (replace(picture, data=""),))
    assert "QQ==" not in (tmp_path / "one.jsonl").read_text()


def test_a_session_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, TURN)
    assert history(tmp_path) == TURN
    assert (tmp_path / "one.jsonl").stat().st_mode & 0o077 == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_wherever_a_session_is_cut_it_can_go_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("s")
    write(folder, TURN)
    write(folder, TURN)
    whole = (folder / "one.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / "one.jsonl").write_bytes(whole[:cut])
    assert valid(history(folder))
    write(folder, TURN)
    assert valid(history(folder))
    assert history(folder)[-4:] == TURN


def test_a_call_without_a_result_gets_one_that_claims_nothing(tmp_path: Path) -> None:
    write(tmp_path, TURN[:2], end=False)
    user, assistant, results, closing = history(tmp_path)
    assert [user, assistant] == TURN[:2]
    assert isinstance(results, Results)
    assert all(result.is_error and "not known" in result.output for result in results.results)
    assert closing == Assistant("[The turn ended early: interrupted]")


def test_records_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, TURN)
    with (tmp_path / "one.jsonl").open("a") as file:
        file.write(json.dumps({"type": "summary", "text": "?"}) + "\n")
    assert history(tmp_path) == TURN


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"type": "user"}', '{"type": "assistant"}', "[" * 5_000]
)
def test_a_session_that_cannot_be_read_is_lost_and_left_as_it_is(tmp_path: Path, line: str) -> None:
    (tmp_path / "one.jsonl").write_text(f"{line}\n")
    with pytest.raises(AgentError) as caught:
        history(tmp_path)
    assert caught.value.reason == "session_lost"
    assert (tmp_path / "one.jsonl").read_text() == f"{line}\n"


@pytest.mark.parametrize("levels", [300, 600, 900, 5_000])
def test_arguments_nested_too_deeply_are_the_models_mistake_or_kept(
    tmp_path: Path, levels: int
) -> None:
    given, problem = parse_input('{"a":' * levels + "1" + "}" * levels)
    assert bool(given) != bool(problem)
    write(tmp_path, [User("x"), Assistant("", (Call("c", "t", given, problem),))], end=False)
    assert history(tmp_path)


@pytest.mark.parametrize("name", ["../one", "", "a/b", "a.b", "x" * 101])
def test_an_id_that_is_no_file_name_opens_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(AgentError), open_session(tmp_path, name, resume=False):
        pass
    assert not list(tmp_path.iterdir())


def test_a_session_has_one_writer(tmp_path: Path) -> None:
    with (
        open_session(tmp_path, "one", resume=False),
        pytest.raises(AgentError, match="still working"),
        open_session(tmp_path, "one", resume=True),
    ):
        pass
    assert history(tmp_path) == []
