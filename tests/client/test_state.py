"""Rules that need no socket: the cursor of the log, the state of a turn, which agent thinks."""

import json
from typing import Any

import httpx2
import pytest

from client import bodies
from cloudagent import ConnectionFailedError, UnexpectedAnswerError
from cloudagent.cursor import Cursor
from cloudagent.local.folder import NoRuntimeError, choose_driver
from cloudagent.turn import TurnState
from cloudagent_protocol.resources import Event, Message, Runtime


def frame(event_id: int, kind: str = "agent.updated", **data: Any) -> httpx2.ServerSentEvent:
    body = {"id": event_id, "type": kind, "at": bodies.NOW, "data": data}
    return httpx2.ServerSentEvent(event=kind, data=json.dumps(body), id=str(event_id))


def test_an_event_that_is_sent_twice_is_passed_on_once() -> None:
    cursor = Cursor()
    frames = [frame(4, "ping"), frame(5), frame(5), frame(4), frame(6)]
    passed = [event.id for item in frames if (event := cursor.receive(item))]
    assert passed == [4, 5, 6]
    assert cursor.headers()["Last-Event-ID"] == "6"


def test_what_is_not_kept_is_passed_on_with_the_id_of_the_newest_kept() -> None:
    cursor = Cursor(5)
    assert cursor.receive(frame(5, "run.delta"))
    assert cursor.receive(frame(5, "run.delta"))


def test_a_resync_may_go_back() -> None:
    cursor = Cursor(900)
    assert cursor.receive(frame(3, "resync"))
    assert cursor.receive(frame(4))
    assert cursor.position == 4


def test_frames_without_an_event_are_skipped_and_garbage_is_named() -> None:
    cursor = Cursor()
    assert cursor.receive(httpx2.ServerSentEvent(retry=1000)) is None
    with pytest.raises(UnexpectedAnswerError):
        cursor.receive(httpx2.ServerSentEvent(data="<html>"))


def test_a_follower_gives_up_when_its_server_stays_away() -> None:
    now = [0.0]
    cursor = Cursor(patience_s=10, clock=lambda: now[0])
    cursor.broken("http://x", EOFError())
    now[0] = 9.0
    cursor.broken("http://x", EOFError())
    cursor.receive(frame(1))  # it is back: the count begins anew
    now[0] = 19.0
    cursor.broken("http://x", EOFError())
    now[0] = 30.0
    with pytest.raises(ConnectionFailedError):
        cursor.broken("http://x", EOFError())


def turn() -> TurnState:
    return TurnState(Message.model_validate(bodies.message("hi")), "dlv_1")


def event(kind: str, data: dict[str, Any]) -> Event:
    return Event.model_validate({"id": 1, "type": kind, "at": bodies.NOW, "data": data})


def test_a_run_event_that_comes_again_is_shown_once() -> None:
    state = turn()
    state.receive(event("run.started", bodies.run()))
    started = event("run.event", bodies.run_event(1, "started", **bodies.STARTED))
    assert len(list(state.receive(started))) == 1
    assert list(state.receive(started)) == []


def test_an_event_that_does_not_hold_what_it_promises_is_named() -> None:
    state = turn()
    state.receive(event("run.started", bodies.run()))
    for kind, data in [("delivery.updated", {"id": "dlv_1"}), ("run.delta", {"run_id": "run_1"})]:
        with pytest.raises(UnexpectedAnswerError):
            state.receive(event(kind, data))


@pytest.mark.parametrize(
    ("found", "wanted", "chosen"),
    [
        (["scripted", "builtin", "claude_code"], None, "claude_code"),
        (["scripted", "builtin"], None, "builtin"),
        (["claude_code", "builtin"], "builtin", "builtin"),
        ([], "scripted", "scripted"),
        (["codex_of_a_newer_daemon", "claude_code"], None, "claude_code"),
    ],
)
def test_the_first_usable_program_thinks(found: list[str], wanted: str | None, chosen: str) -> None:
    assert choose_driver([Runtime(name=name) for name in found], wanted) == chosen


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([], None),
        ([Runtime(name="scripted")], None),
        ([Runtime(name="claude_code", problem="not found")], None),
        ([Runtime(name="claude_code", problem="not found")], "claude_code"),
        ([], "nonsense"),
    ],
)
def test_without_a_usable_program_nothing_is_made_up(
    found: list[Runtime], wanted: str | None
) -> None:
    with pytest.raises(NoRuntimeError):
        choose_driver(found, wanted)
