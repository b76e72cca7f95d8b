"""A rate limit, with real processes: what it cut off goes on once it is over, whoever restarts meanwhile."""

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import Backend, Json, running_backend, running_daemon

pytestmark = pytest.mark.slow

FAKE = Path(__file__).parents[1] / "fakes" / "agent_cli.py"


def agent_of(backend: Backend, host: str, home: Path, name: str) -> str:
    fields: dict[str, Any] = {
        "driver": "claude_code",
        "command": [sys.executable, str(FAKE)],
        "env": {"FAKE_STATE": str(home / "fake"), "FAKE_EFFECTS": str(home / "effects")},
    }
    return backend.create_agent(host, name, **fields)


def starts(home: Path) -> int:
    return (home / "effects").read_text().count("start ")


def newest(backend: Backend, message: Json) -> Json:
    return backend.call("GET", f"/v1/messages/{message['id']}/trace")["deliveries"][-1]


def test_a_limit_holds_all_of_its_account_over_restarts_and_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    until = int(time.time()) + 7_200
    with running_backend(tmp_path / "server") as backend:
        host, key = backend.create_host("mbp")
        shop = agent_of(backend, host, tmp_path, "shop")
        api = agent_of(backend, host, tmp_path, "api")
        laptop = tmp_path / "laptop"
        with backend.follow() as events, running_daemon(laptop, backend.url, key):
            first = backend.send(shop, f"@@limited {until}\n@@reply one")
            events.delivery(first["id"], "failed")
            waits = newest(backend, first)
            assert (waits["state"], waits["reason"]) == ("queued", "rate_limit")
            assert datetime.fromisoformat(waits["waits_until"]).timestamp() == until
        backend.process.kill()
        backend.start_again()
        with backend.follow() as events, running_daemon(laptop, backend.url, key):
            second = backend.send(api, "@@reply two")
            # It is another agent's, of the same account: the machine has it, and says why it waits.
            held = events.until(
                lambda e: (
                    e["type"] == "delivery.updated"
                    and e["data"]["message_id"] == second["id"]
                    and e["data"]["reason"] == "rate_limit"
                )
            )["data"]
            assert held["state"] == "received"
            assert datetime.fromisoformat(held["waits_until"]).timestamp() == until
            backend.call("POST", f"/v1/messages/{first['id']}/continue")
            assert starts(tmp_path) == 1
            (tmp_path / "fake" / "paid").touch()  # another plan: a person has it tried at once
            backend.call("POST", f"/v1/host-machines/{host}/rescan")
            # They are two agents': either may be done first.
            done: set[str] = set()

            def both_done(event: Json) -> bool:
                data = event["data"]
                if event["type"] == "delivery.updated" and data["state"] == "done":
                    done.add(data["message_id"])
                return {first["id"], second["id"]} <= done

            events.until(both_done)
            texts = [m["text"] for m in backend.messages(first["conversation_id"])]
            assert texts == [first["text"], "one"]
            assert starts(tmp_path) == 3
            assert newest(backend, first)["retry_of"] is not None
