"""The delivery's table of moves, as data."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_backend.delivery import states
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentStatus, DeliveryState, Hold, RungName

S = DeliveryState


def test_every_state_has_its_row() -> None:
    assert set(states.MOVES) == set(DeliveryState)


def test_ends_are_ends() -> None:
    assert {S.DONE, S.FAILED, S.CANCELLED, S.DEAD} == states.ENDS
    assert S.QUEUED not in states.IN_FLIGHT
    assert states.IN_FLIGHT | states.ENDS | {S.QUEUED} == set(DeliveryState)


@given(st.lists(st.sampled_from(DeliveryState), max_size=30))
def test_a_walk_by_the_table_ends_once_and_never_leaves_its_end(targets: list[S]) -> None:
    state, ended = S.QUEUED, 0
    for target in targets:
        if state in states.sources(target):
            assert state not in states.ENDS
            state = target
            ended += state in states.ENDS
    assert ended <= 1


def _reachable(start: S) -> set[S]:
    seen, todo = {start}, [start]
    while todo:
        for target in states.MOVES[todo.pop()] - seen:
            seen.add(target)
            todo.append(target)
    return seen


@pytest.mark.parametrize("state", sorted(set(DeliveryState) - states.ENDS))
def test_from_every_open_state_an_end_can_be_reached(state: S) -> None:
    assert _reachable(state) >= {S.DONE, S.FAILED, S.CANCELLED, S.DEAD}


def test_the_way_down_is_as_documented() -> None:
    way = [S.QUEUED, S.LEASED, S.RECEIVED, S.RUNNING, S.DONE]
    for here, there in itertools.pairwise(way):
        assert there in states.MOVES[here]


def test_what_a_machine_may_hold_is_never_cancelled_behind_its_back() -> None:
    assert S.CANCELLED not in states.MOVES[S.LEASED]


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_an_end_and_a_rung(outcome: Outcome) -> None:
    assert states.end_of(outcome) in states.ENDS
    assert states.last_rung(outcome) in set(RungName)


@pytest.mark.parametrize(
    ("outcome", "reason", "status"),
    [
        (Outcome.REPLIED, None, AgentStatus.IDLE),
        (Outcome.CANCELLED, Reason.INTERRUPTED, AgentStatus.IDLE),
        (Outcome.FAILED, Reason.CRASHED, AgentStatus.CRASHED),
        (Outcome.FAILED, Reason.TOOLS_UNAVAILABLE, AgentStatus.CRASHED),
        (Outcome.FAILED, Reason.OUT_OF_MEMORY, AgentStatus.CRASHED),
        (Outcome.FAILED, Reason.RUNTIME_MISSING, AgentStatus.RUNTIME_MISSING),
        (Outcome.FAILED, Reason.RATE_LIMIT, AgentStatus.IDLE),
        (Outcome.DEAD, Reason.SPAWN_FAILED, AgentStatus.CRASHED),
    ],
)
def test_an_agent_shows_how_its_last_run_ended(
    outcome: Outcome, reason: Reason | None, status: AgentStatus
) -> None:
    assert states.status_after(outcome, reason) is status


def test_a_hold_of_the_machine_holds_everybody_and_one_of_an_agent_only_it() -> None:
    mine, other = AgentId("agt_mine"), AgentId("agt_other")
    low = Hold(reason="memory_low", detail="400 MB are free")
    loop = Hold(reason="crash_loop", detail="3 crashes in a minute", agent_id=other)
    assert states.hold_of([low, loop], mine) == low
    assert states.hold_of([loop, low], other) == loop
    assert states.hold_of([loop], mine) is None


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        (Outcome.REPLIED, S.DONE),
        (Outcome.SILENT, S.DONE),
        (Outcome.AUTO_PUBLISHED, S.DONE),
        (Outcome.FAILED, S.FAILED),
        (Outcome.CANCELLED, S.CANCELLED),
        (Outcome.DEAD, S.DEAD),
    ],
)
def test_each_outcome_of_a_run_is_an_end_of_its_delivery(outcome: Outcome, end: S) -> None:
    assert states.end_of(outcome) is end


def test_what_did_not_get_done_may_be_done_over_again_and_nothing_else() -> None:
    assert states.ENDS - {S.DONE} == states.RETRIABLE
