"""Approvals: the client's calls, the commands that list and answer them, and a turn that waits for one."""

import json
from pathlib import Path
from typing import Any

import pytest

import cloudagent
from client import bodies
from client.server import NOW, Answer, Server, page, problem
from client.test_commands import run

ASKED: dict[str, Any] = {
    "id": "apr_1",
    "kind": "permission",
    "state": "pending",
    "agent_id": "agent_1",
    "conversation_id": "conv_1",
    "host_machine_id": "host_1",
    "delivery_id": "dlv_1",
    "run_id": "run_1",
    "tool": "Bash",
    "action": "execute",
    "input": {"command": "alembic upgrade head\x1b[2K\n&& echo done"},
    "cwd": "/src/api",
    "files": {"/src/api/run.sh": "9f86"},
    "rule": "the command alembic upgrade head",
    "requested_at": NOW,
}
QUESTION: dict[str, Any] = {
    name: ASKED[name]
    for name in ("state", "agent_id", "conversation_id", "host_machine_id", "run_id", "requested_at")
} | {"id": "apr_2", "kind": "question", "delivery_id": "dlv_1",
     "question": "Which port?", "options": ["8700", "8701"]}  # fmt: skip
ANSWERED = {"state": "answered", "decision": "once", "decided_by": "Ana", "decided_at": NOW}


def test_what_waits_is_listed_whole_with_how_to_answer(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/approvals", page(QUESTION, ASKED))
    server.on("GET", "/v1/agents", page(bodies.agent()))
    shown = run(own_home, server, "approvals").stdout.decode()
    assert server.sent("GET", "/v1/approvals")[0].query == "limit=100&state=pending"
    assert "Bash wants to do this in /src/api:" in shown
    assert "    command: alembic upgrade head\ufffd[2K\n    && echo done" in shown
    assert "runs the file /src/api/run.sh, as it is now" in shown
    assert "always would allow: the command alembic upgrade head" in shown
    assert "cloudagent approve apr_1 once|conversation|always|deny" in shown
    assert "  2. 8701\n" in shown
    assert shown.index("apr_1") < shown.index("apr_2")
    as_json = json.loads(run(own_home, server, "approvals", "--all", "--json").stdout)
    assert as_json["schema"] == "cloudagent.approvals/1"
    assert as_json["approvals"][1]["input"] == ASKED["input"]


def test_nothing_that_waits_is_said(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/approvals", page())
    done = run(own_home, server, "approvals")
    assert (done.stdout, done.stderr.decode()) == (b"", "Nothing waits for you.\n")


def test_a_request_is_answered_and_it_says_that_the_machine_is_to_have_it(
    own_home: Path, server: Server
) -> None:
    server.on("POST", "/v1/approvals/apr_1", Answer(200, ASKED | ANSWERED | {"reason": "no"}))
    done = run(own_home, server, "approve", "apr_1", "deny", "--reason", "no")
    assert server.sent("POST", "/v1/approvals/apr_1")[0].body == {
        "decision": "deny",
        "reason": "no",
    }
    assert done.stdout.decode() == "apr_1: Ana decided once: no; on its way to the machine\n"
    first = "Ben has answered already, at 2026-11-20T09:13:00Z: deny."
    server.on("POST", "/v1/approvals/apr_1", problem(409, "conflict", first))
    late = run(own_home, server, "approve", "apr_1", "once")
    assert late.returncode == 6
    assert first in late.stderr.decode()


def test_a_question_is_answered_in_words_or_by_the_number_of_an_option(
    own_home: Path, server: Server
) -> None:
    server.on("GET", "/v1/approvals/apr_2", Answer(200, QUESTION))
    server.on("GET", "/v1/approvals/apr_1", Answer(200, ASKED))
    server.on("POST", "/v1/approvals/apr_2", Answer(200, QUESTION | ANSWERED | {"answer": "8701"}))
    for said in (["2"], ["8701"], ["neither"], ["--answer", "a third"]):
        assert run(own_home, server, "approve", "apr_2", *said).returncode == 0
    bodies_sent = [sent.body for sent in server.sent("POST", "/v1/approvals/apr_2")]
    assert [body["answer"] for body in bodies_sent if body] == [
        "8701",
        "8701",
        "neither",
        "a third",
    ]
    for said in (["yes"], ["--answer", "yes"], []):
        refused = run(own_home, server, "approve", "apr_1", *said)
        assert refused.returncode == 2
        assert "once, conversation, always or deny" in refused.stderr.decode()
    assert not server.sent("POST", "/v1/approvals/apr_1")


def test_the_client_lists_shows_and_answers(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/approvals", page(ASKED))
    server.on("GET", "/v1/approvals/apr_1", Answer(200, ASKED))
    server.on("POST", "/v1/approvals/apr_1", Answer(200, ASKED | ANSWERED))
    [listed] = ca.approvals.list("pending", conversation_id="conv_1")
    assert listed == ca.approvals.get("apr_1")
    query = "limit=100&state=pending&conversation_id=conv_1"
    assert server.sent("GET", "/v1/approvals")[0].query == query
    assert ca.approvals.answer("apr_1", "always").state == "answered"
    assert server.sent("POST", "/v1/approvals/apr_1")[0].body == {"decision": "always"}


def test_a_trace_says_that_it_waits_for_an_approval(own_home: Path, server: Server) -> None:
    held = bodies.delivery("waiting", reason="approval")
    rung = {"rung": "waiting", "at": NOW, "actor": "shop", "reason": "approval"}
    held["rungs"] = [rung | {"detail": "Bash “alembic upgrade”"}]
    server.on("GET", "/v1/agents", page(bodies.agent()))
    server.on(
        "GET",
        "/v1/messages/msg_1/trace",
        Answer(200, {"message_id": "msg_1", "deliveries": [held]}),
    )
    shown = run(own_home, server, "trace", "msg_1").stdout.decode()
    assert "waiting: approval: Bash “alembic upgrade”" in shown
    assert "waits for you: approval (cloudagent approvals)" in shown


def test_a_turn_shows_what_it_waits_for_and_takes_the_decision(ca: Any, server: Server) -> None:
    def asks(server: Server) -> None:
        server.publish("approval.requested", ASKED | {"id": "apr_9", "delivery_id": "dlv_other"})
        server.publish("approval.requested", ASKED)

    bodies.serve_agent(server, bodies.begin_turn, asks, bodies.end_turn)
    server.on("POST", "/v1/approvals/apr_1", Answer(200, ASKED | ANSWERED))
    turn = ca.agents.get("shop").send("hi")
    turn.wait()
    assert turn.pending_approval.id == "apr_1"
    assert turn.approve("deny", reason="no").decision == "once"
    assert server.sent("POST", "/v1/approvals/apr_1")[0].body == {
        "decision": "deny",
        "reason": "no",
    }
    quiet = ca.agents.get("shop").send("hi")
    with pytest.raises(cloudagent.InvalidRequestError, match="asks nothing"):
        quiet.approve()
