"""What agents have used, and their budgets: the client's calls and the commands."""

import json
from pathlib import Path
from typing import Any

from client import bodies
from client.server import Answer, Server, page, problem
from client.test_commands import run
from cloudagent_protocol.resources import ChainDecide

DAY: dict[str, Any] = {
    "agent_id": "agent_1",
    "day": "2026-11-27",
    "turns": 3,
    "input_tokens": 12_345,
    "output_tokens": 600,
    "cost_usd": 0.5,
}
PAUSE: dict[str, Any] = {
    "reason": "budget",
    "detail": "1,500 tokens and $0.25 are used today.",
    "since": bodies.NOW,
    "until": bodies.NOW,
    "waiting": 2,
    "pause": 1,
}


def shop(**fields: Any) -> dict[str, Any]:
    return bodies.agent() | fields


def test_usage_is_listed_by_command(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(shop()))
    server.on("GET", "/v1/usage", page(DAY))
    done = run(own_home, server, "usage", "--days", "2")
    assert "2026-11-27  shop   3      12,345  600     $0.50" in done.stdout.decode()
    assert "3 turns, 12,945 tokens, $0.50" in done.stderr.decode()
    assert "since=" in server.sent("GET", "/v1/usage")[0].query
    as_json = json.loads(run(own_home, server, "usage", "shop", "--json").stdout)
    assert (as_json["schema"], as_json["usage"]) == ("cloudagent.usage/1", [DAY])
    assert "agent_id=agent_1" in server.sent("GET", "/v1/usage")[1].query
    server.on("GET", "/v1/usage", page())
    assert "No turn has ended" in run(own_home, server, "usage").stderr.decode()


def test_a_budget_is_set_by_command_and_the_rest_of_the_limits_stays(
    own_home: Path, server: Server
) -> None:
    limits = {"auto_resume": True, "resume_times": 2, "resume_within_h": 6.0}
    server.on("GET", "/v1/agents", page(shop(limits=limits)))
    changed = limits | {"day_tokens": 2_000_000, "day_cost_usd": None}
    server.on("PATCH", "/v1/agents/agent_1", Answer(200, shop(limits=changed)))
    done = run(own_home, server, "budget", "shop", "--tokens", "2,000,000")
    assert done.stdout.decode().splitlines() == [
        "shop: 2,000,000 tokens a day",
        "after a rate limit it goes on by itself",
    ]
    assert server.sent("PATCH", "/v1/agents/agent_1")[0].body == {"limits": changed}
    assert run(own_home, server, "budget", "shop", "--tokens", "many").returncode == 2
    assert run(own_home, server, "budget", "shop", "--cost", "-1").returncode == 2


def test_a_paused_agent_is_answered_by_command(own_home: Path, server: Server) -> None:
    server.on("GET", "/v1/agents", page(shop(pause=PAUSE)))
    shown = run(own_home, server, "budget", "shop").stdout.decode()
    assert "paused: 1,500 tokens" in shown
    assert "2 messages wait: cloudagent budget shop continue|stop" in shown
    server.on("POST", "/v1/agents/agent_1/budget", Answer(200, shop()))
    assert run(own_home, server, "budget", "shop", "continue").returncode == 0
    assert server.sent("POST", "/v1/agents/agent_1/budget")[0].body == {"decision": "continue"}
    first = "Ben has answered already: stop."
    server.on("POST", "/v1/agents/agent_1/budget", problem(409, "conflict", first))
    late = run(own_home, server, "budget", "shop", "continue")
    assert (late.returncode, first in late.stderr.decode()) == (6, True)
    assert run(own_home, server, "budget", "shop", "perhaps").returncode == 2


def test_the_client_lists_usage_and_decides(ca: Any, server: Server) -> None:
    server.on("GET", "/v1/usage", page(DAY))
    assert [day.turns for day in ca.usage.list(agent_id="agent_1")] == [3]
    server.on("POST", "/v1/agents/agent_1/budget", Answer(200, shop()))
    assert ca.usage.decide("agent_1", ChainDecide(decision="stop")).name == "shop"


def test_the_client_lets_a_message_go_on(ca: Any, server: Server) -> None:
    trace = {"message_id": "msg_1", "deliveries": [bodies.delivery("queued", "stored")]}
    server.on("POST", "/v1/messages/msg_1/continue", Answer(200, trace))
    assert ca.messages.go_on("msg_1").message_id == "msg_1"


def test_trace_says_how_a_budget_is_answered(own_home: Path, server: Server) -> None:
    held = bodies.delivery("queued", "stored", reason="budget", waits_until="2126-11-28T00:00:00Z")
    server.on(
        "GET",
        "/v1/messages/msg_1/trace",
        Answer(200, {"message_id": "msg_1", "deliveries": [held]}),
    )
    server.on("GET", "/v1/agents", page(shop()))
    shown = run(own_home, server, "trace", "msg_1").stdout.decode()
    assert "budget of the day is used up: you decide (cloudagent budget), or 2126-11-2" in shown
