"""Chains: the client's calls, and the commands that list and decide them."""

import json
from pathlib import Path
from typing import Any

from client import bodies
from client.server import Answer, Server, page, problem
from client.test_commands import run
from cloudagent_protocol.resources import ChainDecide

PAUSED: dict[str, Any] = {
    "id": "msg_1",
    "conversation_id": "conv_1",
    "author": {"type": "user", "id": "usr_1", "name": "Ana"},
    "opening": "fix the\nlogin test",
    "state": "paused",
    "turns": 30,
    "turns_allowed": 30,
    "waiting": 2,
    "pauses": 1,
    "paused_at": "2026-11-20T09:12:00Z",
    "answers": [],
    "conversation_ids": ["conv_1", "conv_2"],
    "agent_ids": ["agent_1", "agent_2"],
}


def test_paused_chains_are_listed_and_decided_by_command(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/chains", page(PAUSED))
    listed = run(own_home, server, "chains").stdout.decode()
    assert "paused  30 of 30  2" in listed
    assert "Ana: fix the login test" in listed
    assert server.sent("GET", "/v1/chains")[0].query == "limit=100&state=paused"
    as_json = json.loads(run(own_home, server, "chains", "--all", "--json").stdout)
    assert (as_json["schema"], as_json["chains"][0]["id"]) == ("cloudagent.chains/1", "msg_1")
    assert server.sent("GET", "/v1/chains")[1].query == "limit=100"

    answers = [{"decision": "continue", "by": "Ana", "at": "2026-11-20T09:13:00Z"}]
    goes_on = PAUSED | {"state": "active", "waiting": 0, "turns_allowed": 60, "answers": answers}
    server.on("POST", "/v1/chains/msg_1", Answer(200, goes_on))
    done = run(own_home, server, "chain", "msg_1", "continue")
    assert done.stdout.decode().splitlines() == [
        "Ana: fix the login test",
        "active after 30 of 60 turns",
        "2026-11-20 09:13 Ana: continue",
    ]
    assert server.sent("POST", "/v1/chains/msg_1")[0].body == {"decision": "continue"}
    assert run(own_home, server, "chain", "msg_1", "perhaps").returncode == 2


def test_a_chain_shows_how_it_stands_and_that_somebody_was_first(
    own_home: Path, server: Server
) -> None:
    server.on("GET", "/v1/chains/msg_1", Answer(200, PAUSED))
    shown = run(own_home, server, "chain", "msg_1").stdout.decode()
    assert "2 messages wait: cloudagent chain msg_1 continue|stop" in shown
    first = "Ben has answered already: stop."
    server.on("POST", "/v1/chains/msg_1", problem(409, "conflict", first))
    late = run(own_home, server, "chain", "msg_1", "continue")
    assert late.returncode == 6
    assert first in late.stderr.decode()


def test_the_client_lists_shows_and_decides_chains(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/chains", page(PAUSED))
    server.on("GET", "/v1/chains/msg_1", Answer(200, PAUSED))
    server.on("POST", "/v1/chains/msg_1", Answer(200, PAUSED | {"state": "stopped"}))
    [listed] = ca.chains.list()
    assert listed == ca.chains.get("msg_1")
    body = ChainDecide(decision="stop", pause=1)
    assert ca.chains.decide("msg_1", body).state == "stopped"
    [sent] = server.sent("POST", "/v1/chains/msg_1")
    assert sent.body == {"decision": "stop", "pause": 1}


def test_a_trace_says_what_caused_a_message(own_home: Path, server: Server) -> None:
    held = bodies.delivery("queued", "stored") | {"reason": "budget"}
    trace = {"message_id": "msg_3", "deliveries": [held], "chain_id": "msg_1", "depth": 2}
    server.on("GET", "/v1/messages/msg_3/trace", Answer(200, trace | {"caused_by": "msg_2"}))
    server.on("GET", "/v1/agents", page(bodies.agent()))
    shown = run(own_home, server, "trace", "msg_3").stdout.decode()
    assert "caused by msg_2 (depth 2 of chain msg_1)" in shown
    assert "paused: you decide whether its agents go on (cloudagent chains)" in shown
