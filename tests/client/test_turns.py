"""A turn over the event log, cut and resumed. Both clients keep every sentence."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import cloudagent
from client import bodies
from client.bodies import begin_turn, end_turn, serve_agent
from client.server import Answer, Server, page, problem
from cloudagent import Delta
from cloudagent_protocol.events import Outcome, Text
from cloudagent_protocol.resources import Message, Rung


def said(text: str, message_id: str = "msg_2") -> Callable[[Server], None]:
    return lambda server: server.publish("message.created", bodies.reply(text, message_id))  # type: ignore[return-value] # the id is of no use here


def wrote(server: Server, *pieces: str) -> None:
    """The model writes into block 0, piece by piece, and finishes it."""
    whole = ""
    for piece in pieces:
        server.delta("run_1", 0, len(whole), piece)
        whole += piece
    server.publish("run.event", bodies.run_event(2, "text", block=0, text=whole))


def joined(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_turn_shows_rungs_text_and_reply_and_ends_with_its_result(
    ca: Any, server: Server
) -> None:
    serve_agent(server, begin_turn, lambda s: wrote(s, "Hel", "lo ü"), said("done"), end_turn)
    turn = ca.agents.get("shop").send("hi")
    events = list(turn)
    rungs = [str(event.rung) for event in events if isinstance(event, Rung)]
    assert rungs == ["stored", "sent", "received", "started", "replied"]
    assert joined(events) == "Hello ü"
    assert [event.text for event in events if isinstance(event, Message)] == ["done"]
    result = turn.wait()
    assert (result.outcome, result.ok, result.text) == (Outcome.REPLIED, True, "done")
    assert result.usage.output_tokens == 7
    assert result.run_id == "run_1"


def test_the_turn_is_followed_from_before_its_message(ca: Any, server: Server) -> None:
    server.publish("message.created", bodies.message("an old one", "msg_0"))
    serve_agent(server, begin_turn, said("done"), end_turn)
    assert ca.agents.get("shop").send("hi").wait().text == "done"
    opened = server.sent("GET", "/v1/events")
    assert "Last-Event-ID" not in opened[0].headers
    assert opened[1].headers["Last-Event-ID"] == "1"


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stream_cut_anywhere_loses_and_doubles_nothing(ca: Any, server: Server, cut: int) -> None:
    serve_agent(
        server,
        begin_turn,
        lambda s: wrote(s, "one ", "two ", "three"),
        said("first", "msg_2"),
        said("second", "msg_3"),
        end_turn,
    )
    server.cuts.extend([-1, cut, cut, 1])
    turn = ca.agents.get("shop").send("hi")
    events = list(turn)
    assert joined(events) == "one two three"
    assert [event.text for event in events if isinstance(event, Text)] == ["one two three"]
    assert [event.text for event in events if isinstance(event, Message)] == ["first", "second"]
    rungs = [str(event.rung) for event in events if isinstance(event, Rung)]
    assert rungs == ["stored", "sent", "received", "started", "replied"]
    assert turn.wait().text == "first\n\nsecond"


def test_a_partial_text_sent_anew_after_a_cut_is_not_doubled(ca: Any, server: Server) -> None:
    def writing(server: Server) -> None:
        server.delta("run_1", 0, 0, "one ")
        server.delta("run_1", 0, 0, "one two ")  # what a new follower gets
        server.delta("run_1", 0, 4, "two ")
        server.delta("run_1", 0, 20, "after a gap")
        server.delta("run_1", 0, 8, "three")
        server.publish("run.event", bodies.run_event(2, "text", block=0, text="one two three!"))

    serve_agent(server, begin_turn, writing, said("done"), end_turn)
    assert joined(list(ca.agents.get("shop").send("hi"))) == "one two three!"


def test_events_of_other_turns_are_not_shown(ca: Any, server: Server) -> None:
    def others(server: Server) -> None:
        server.publish("delivery.updated", bodies.delivery("done", "stored") | {"id": "dlv_9"})
        server.publish("run.started", bodies.run() | {"id": "run_9", "delivery_ids": ["dlv_9"]})
        server.delta("run_9", 0, 0, "other text")
        other = bodies.reply("other") | {"in_reply_to": "msg_9", "run_id": "run_9", "id": "msg_8"}
        server.publish("message.created", other)
        server.publish("future.kind", {"id": "dlv_1"})

    serve_agent(server, begin_turn, others, said("done"), end_turn)
    turn = ca.agents.get("shop").send("hi")
    assert joined(list(turn)) == ""
    assert turn.wait().text == "done"


def test_what_the_log_no_longer_keeps_is_fetched_anew(ca: Any, server: Server) -> None:
    serve_agent(server, begin_turn, lambda s: wrote(s, "one ", "two"), said("done"), end_turn)
    server.cuts.extend([-1, 3])
    server.on("GET", "/v1/runs/run_1", Answer(body=bodies.run("finished", ended_at=bodies.NOW)))
    seen = [bodies.run_event(1, "started", **bodies.STARTED)["event"]]
    seen.append(bodies.run_event(2, "text", block=0, text="one two")["event"])
    server.on("GET", "/v1/runs/run_1/events", page(*seen))
    server.on(
        "GET",
        "/v1/conversations/conv_1/messages",
        page(bodies.message("hi"), next_cursor="2"),
        page(bodies.reply("done")),
    )
    rungs = ("stored", "sent", "received", "started", "replied")
    ended = bodies.delivery("done", *rungs, run_id="run_1", outcome="replied")
    trace = {"message_id": "msg_1", "deliveries": [ended]}
    server.on("GET", "/v1/messages/msg_1/trace", Answer(body=trace))
    turn = ca.agents.get("shop").send("hi")
    server.trimmed = 100
    server.cuts.clear()
    events = list(turn)
    assert [str(event.rung) for event in events if isinstance(event, Rung)] == list(rungs)
    assert joined(events) == "one two"
    assert turn.wait().text == "done"


def test_the_run_is_fetched_when_the_log_does_not_say_how_it_ended(ca: Any, server: Server) -> None:
    rungs = ("stored", "sent", "received", "started", "failed")
    over = bodies.delivery("dead", *rungs, run_id="run_1", reason="crashed")
    serve_agent(server, begin_turn, lambda s: s.publish("delivery.updated", over))
    ended = bodies.run("finished", ended_at=bodies.NOW, usage=bodies.USAGE)
    server.on("GET", "/v1/runs/run_1", Answer(body=ended))
    result = ca.agents.get("shop").send("hi").wait()
    assert (result.outcome, result.reason, result.ok) == (Outcome.FAILED, "crashed", False)
    assert result.usage.input_tokens == 11


def test_a_failed_turn_is_a_result_and_no_exception(ca: Any, server: Server) -> None:
    def failed(server: Server) -> None:
        end_turn(server, "failed", reason="authentication", detail="log in with `claude /login`")

    serve_agent(server, begin_turn, failed)
    result = ca.agents.get("shop").send("hi").wait()
    assert (result.outcome, result.reason) == (Outcome.FAILED, "authentication")
    assert result.detail == "log in with `claude /login`"


def test_waiting_ends_on_time_and_can_be_taken_up_again(ca: Any, server: Server) -> None:
    serve_agent(server, begin_turn)
    turn = ca.agents.get("shop").send("hi")
    begun = time.monotonic()
    with pytest.raises(cloudagent.WaitTimeoutError):
        turn.wait(0.4)
    assert 0.3 < time.monotonic() - begun < 3
    said("done")(server)
    end_turn(server)
    assert turn.wait(20).text == "done"


def test_an_iteration_left_early_goes_on_where_it_was(ca: Any, server: Server) -> None:
    serve_agent(server, begin_turn, said("done"), end_turn)
    turn = ca.agents.get("shop").send("hi")
    for event in turn:
        assert event.rung == "stored"
        break
    assert turn.wait().text == "done"


def test_interrupting_a_turn_asks_for_its_message_to_be_cancelled(ca: Any, server: Server) -> None:
    serve_agent(server, begin_turn)
    server.on("DELETE", "/v1/messages/msg_1", Answer(204, b""))
    ca.agents.get("shop").send("hi").interrupt()
    assert len(server.sent("DELETE", "/v1/messages/msg_1")) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("x" * 200_001, "has 200,001 characters, and may have 100,000"),
        ("a\0b", "a NUL character"),
    ],
)
def test_a_text_that_no_server_takes_is_refused_before_it_travels(
    ca: Any, server: Server, text: str, why: str
) -> None:
    serve_agent(server)
    with pytest.raises(cloudagent.InvalidRequestError, match=why):
        ca.agents.get("shop").send(text)
    assert not server.sent("POST", "/v1/agents/agent_1/messages")


def test_a_refused_stream_is_an_error_and_not_tried_for_ever(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/agents", page(bodies.agent()))
    server.on("GET", "/v1/events", problem(401, "unauthorized", "who are you?"))
    with pytest.raises(cloudagent.AuthenticationError):
        ca.agents.get("shop").send("hi")


def test_following_the_log_shows_each_event_once_over_cuts(ca: Any, server: Server) -> None:
    for number in range(1, 7):
        server.publish("agent.updated", {"id": f"agent_{number}"})
    server.cuts.extend([3, 2, 1])
    followed = ca.events.follow(after=1)
    assert [next(followed).id for _ in range(5)] == [2, 3, 4, 5, 6]
    later = threading.Timer(0.05, server.publish, ["agent.updated", {"id": "agent_7"}])
    later.start()
    assert next(followed).id == 7
    later.join()
    followed.close()
