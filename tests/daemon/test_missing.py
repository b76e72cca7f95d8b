"""A program that is not there is said once; what follows waits until it is, or somebody wants it tried."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cloudagent_daemon.runs.missing import Missing
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec, Runtime

REPAIR = "Claude Code is not installed. Install it with `npm install -g …`."


def agent(number: int = 1, **more: Any) -> AgentSpec:
    fields: dict[str, Any] = {
        "id": AgentId(f"agent_{number}"),
        "name": "a",
        "driver": "claude_code",
    }
    return AgentSpec(**{**fields, **more})


def ended(reason: Reason | None = Reason.RUNTIME_MISSING, **more: Any) -> Finished:
    fields: dict[str, Any] = {"outcome": Outcome.FAILED, "reason": reason, "detail": REPAIR}
    return Finished(at=datetime.now(UTC), **{**fields, **more})


def lacking() -> Missing:
    missing = Missing()
    missing.ended(agent(), ended())
    missing.know(agent())
    assert missing.withholds(AgentId("agent_1"))
    assert missing.all() == {"agent_1": REPAIR}
    assert not missing.withholds(AgentId("agent_2"))
    return missing


@pytest.mark.parametrize(
    "finished", [ended(Reason.CRASHED), ended(exit_code=1), ended(None, outcome=Outcome.REPLIED)]
)
def test_another_end_lacks_nothing(finished: Finished) -> None:
    missing = Missing()
    missing.ended(agent(), finished)
    assert missing.all() == {}


@pytest.mark.parametrize(
    "more", [{"driver": "codex"}, {"command": ["/opt/claude"]}, {"env": {"PATH": "/opt"}}]
)
def test_an_agent_that_is_set_up_otherwise_is_tried(more: dict[str, Any]) -> None:
    missing = lacking()
    missing.know(agent(**more))
    assert missing.all() == {}


def test_it_goes_on_when_its_program_is_found_and_can_be_used() -> None:
    missing = lacking()
    assert not missing.found([Runtime(name="codex"), Runtime(name="claude_code", problem="gone")])
    assert missing.all() == {"agent_1": REPAIR}
    assert missing.found([Runtime(name="claude_code", version="2.1.197")])
    assert missing.all() == {}
    assert not missing.found([Runtime(name="claude_code")])


def test_a_person_has_one_tried_or_all() -> None:
    missing = lacking()
    missing.ended(agent(2), ended())
    missing.lift([AgentId("agent_1"), AgentId("agent_9")])
    assert missing.all() == {"agent_2": REPAIR}
    missing.lift()
    assert missing.all() == {}
