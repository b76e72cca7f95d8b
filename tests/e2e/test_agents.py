"""Agents that message each other, with real processes on both sides."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import Backend, Follower, running_backend, running_daemon

pytestmark = pytest.mark.slow

FAKE = Path(__file__).parents[1] / "fakes" / "agent_cli.py"


def asking(agent: str, text: str) -> str:
    """A script for the scripted model: ask an agent."""
    return f"@@call message_agent {json.dumps({'agent': agent, 'text': text})}"


def sending(text: str) -> str:
    return f"@@call send_message {json.dumps({'text': text})}"


def message_of(events: Follower, agent_id: str, text: str) -> dict[str, Any]:
    return events.until(
        lambda e: (
            e["type"] == "message.created"
            and e["data"]["author"]["id"] == agent_id
            and e["data"]["text"] == text
        )
    )["data"]


def test_an_agent_asks_one_on_another_machine_and_tells_the_person_what_it_said(tmp_path) -> None:
    with running_backend(tmp_path / "server") as backend, backend.follow() as events:
        here, key = backend.create_host("mbp")
        there, other_key = backend.create_host("nas")
        shop = backend.create_agent(here, "shop", driver="scripted")
        api = backend.create_agent(there, "api", driver="scripted")
        answer = "@@say It returns 42."
        with running_daemon(tmp_path / "laptop", backend.url, key):
            sent = backend.send(shop, f"{asking('api', sending(answer))}\n@@say I asked api.")
            assert events.reply(sent["conversation_id"])["text"] == "I asked api."
            question = backend.call("GET", "/v1/conversations?limit=1")["data"][0]
            assert (question["kind"], question["agent_ids"]) == ("agents", [shop, api])
            run = events.until(lambda e: e["type"] == "run.finished")["data"]
            outputs = [
                event["output"]
                for event in backend.call("GET", f"/v1/runs/{run['id']}/events")["data"]
                if event["type"] == "tool_result"
            ]
            assert "its machine nas has not connected yet" in outputs[0]
            # The one machine goes, the other comes: nothing of it depends on both being there.
        with running_daemon(tmp_path / "nas", backend.url, other_key):
            message_of(events, api, answer)
        with running_daemon(tmp_path / "laptop", backend.url, key):
            told = message_of(events, shop, "It returns 42.")
        asked, answered = backend.messages(question["id"])
        assert told["conversation_id"] == sent["conversation_id"]
        chain = [sent, asked, answered, told]
        assert [message["depth"] for message in chain] == [0, 1, 2, 3]
        assert {message["chain_id"] for message in chain} == {sent["id"]}
        causes = [message.get("caused_by") for message in chain]
        assert causes == [None, *(message["id"] for message in chain[:3])]
        trace = backend.call("GET", f"/v1/messages/{answered['id']}/trace")
        assert (trace["depth"], trace["caused_by"]) == (2, asked["id"])
        assert trace["deliveries"][0]["conversation_id"] == sent["conversation_id"]


def volleyers(backend: Backend, home: Path) -> tuple[str, str]:
    """A machine key, and an agent that always messages another one, which always messages back."""
    host, key = backend.create_host("mbp")
    fields: dict[str, Any] = {
        "driver": "claude_code",
        "command": [sys.executable, str(FAKE)],
        "env": {"FAKE_STATE": str(home / "fake"), "FAKE_EFFECTS": str(home / "effects")},
    }
    backend.create_agent(host, "api", **fields)
    return key, backend.create_agent(host, "shop", **fields)


def turns(home: Path) -> int:
    """How many turns agents have taken."""
    return (home / "effects").read_text().count("volley ")


def until_paused(events: Follower) -> dict[str, Any]:
    return events.until(lambda e: e["type"] == "chain.updated" and e["data"]["state"] == "paused")[
        "data"
    ]


def until_over(events: Follower, message_id: str) -> None:
    """Waits for the end of a message's delivery, which may have been seen already."""

    def over(event: dict[str, Any]) -> bool:
        return (
            event["type"] == "delivery.updated"
            and event["data"]["message_id"] == message_id
            and event["data"]["state"] == "done"
        )

    if not any(map(over, events.seen)):
        events.until(over)


def test_two_agents_in_circles_stop_at_the_cap_also_across_restarts_of_both_sides(tmp_path) -> None:
    limits: dict[str, Any] = {
        "CLOUDAGENT_BACKEND_HOP_LIMIT": "1000",
        "CLOUDAGENT_BACKEND_CHAIN_TURNS": "4",
    }
    with running_backend(tmp_path / "server", **limits) as backend, backend.follow() as events:
        key, shop = volleyers(backend, tmp_path)
        with running_daemon(tmp_path / "laptop", backend.url, key):
            sent = backend.send(shop, "@@volley shop api")
            chain = until_paused(events)
            assert (chain["id"], chain["turns"], chain["waiting"]) == (sent["id"], 4, 1)
        assert turns(tmp_path) == 1 + 4
        backend.process.kill()
        port = int(backend.url.rpartition(":")[2])
        home, token = tmp_path / "server", backend.token
        with (
            running_backend(home, port=port, token=token, **limits) as again,
            again.follow() as later,
            running_daemon(tmp_path / "laptop", again.url, key),
        ):
            [paused] = again.call("GET", "/v1/chains?state=paused")["data"]
            # What its last turn used may have come after the pause.
            assert {**paused, "usage": None} == {**chain, "usage": None}
            again.call("POST", f"/v1/chains/{sent['id']}", {"decision": "continue"})
            chain = until_paused(later)
            assert (chain["turns"], chain["pauses"]) == (8, 2)
            between = next(
                one for one in chain["conversation_ids"] if one != sent["conversation_id"]
            )
            until_over(later, again.messages(between)[-2]["id"])
            stopped = again.call("POST", f"/v1/chains/{sent['id']}", {"decision": "stop"})
            assert [answer["decision"] for answer in stopped["answers"]] == ["continue", "stop"]
            assert turns(tmp_path) == 1 + 8
            # Nothing is lost: each message had its turn, or says who stopped it.
            ends = [d for m in again.messages(between) for d in m["deliveries"]]
            assert [one["state"] for one in ends] == ["done"] * 8 + ["cancelled"]
            last = again.messages(between)[-1]["id"]
            [trace] = again.call("GET", f"/v1/messages/{last}/trace")["deliveries"]
            assert trace["rungs"][-1]["actor"] == stopped["answers"][-1]["by"]


@pytest.mark.parametrize("point", ["after_send", "before_finish"])
def test_a_question_asked_before_a_crash_goes_out_once_under_its_id(tmp_path, point: str) -> None:
    with running_backend(tmp_path / "server") as backend, backend.follow() as events:
        host, key = backend.create_host("mbp")
        shop = backend.create_agent(host, "shop", driver="scripted")
        api = backend.create_agent(host, "api", driver="scripted")
        laptop = tmp_path / "laptop"
        with running_daemon(laptop, backend.url, key, CLOUDAGENT_CRASH_AT=point) as daemon:
            sent = backend.send(shop, asking("api", '@@call stay_silent {"reason": "ok"}'))
            assert daemon.wait() == 137
        with running_daemon(laptop, backend.url, key):
            open_ = {shop, api}  # either may be the first to end

            def both_over(event: dict[str, Any]) -> bool:
                if event["type"] == "run.finished" and event["data"]["outcome"] != "failed":
                    open_.discard(event["data"]["agent_id"])
                return not open_

            events.until(both_over)
            [trace] = backend.call("GET", f"/v1/messages/{sent['id']}/trace")["deliveries"]
        ids = [
            event["data"]["id"]
            for event in events.seen
            if event["type"] == "message.created"
            and event["data"]["author"]["id"] == shop
            and event["data"]["conversation_id"] != sent["conversation_id"]
        ]
        told = [rung["rung"] for rung in trace["rungs"]].count("interrupted")
        assert len(ids) == len(set(ids))
        # What was asked again, after the turn was cut off, is another question, and the ladder says so.
        assert len(ids) <= 1 + told
