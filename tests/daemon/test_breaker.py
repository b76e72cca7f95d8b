"""Which agents are left alone after crashes, and for how long."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.runs.breaker import CRASHES, GROWTH, WINDOW_S, Breaker
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.ids import AgentId

ADA, BOB = AgentId("agent_ada"), AgentId("agent_bob")


def end(outcome: Outcome, reason: Reason | None = None, detail: str = "exit 1") -> Finished:
    return Finished(at=datetime.now(UTC), outcome=outcome, reason=reason, detail=detail)


PAUSES_S = [60.0 * factor for factor in GROWTH]
CRASH = end(Outcome.FAILED, Reason.CRASHED)
REPLY = end(Outcome.REPLIED)


class World:
    """A breaker, and a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.breaker = Breaker(lambda: self.now, 60)

    def crash(self, times: int = 1, *, apart_s: float = 1.0, how: Finished = CRASH) -> None:
        for _ in range(times):
            self.now += apart_s
            self.breaker.ended(ADA, how)

    def withholds(self, agent_id: AgentId = ADA, *, at_work: bool = False) -> bool:
        return self.breaker.withholds(agent_id, at_work=at_work)

    def pass_over(self) -> float:
        """Goes to the end of the pause; returns how long it was."""
        left = self.breaker.next_in()
        assert left is not None
        self.now += left
        return left


def test_an_agent_is_paused_after_its_third_crash_and_not_before() -> None:
    world = World()
    world.crash(CRASHES - 1)
    assert not world.withholds()
    world.crash()
    assert world.withholds()
    assert not world.withholds(BOB)
    [pause] = world.breaker.paused()
    assert (pause.agent_id, pause.until) == (ADA, world.now + PAUSES_S[0])
    assert pause.detail == (
        "It crashed 3 times in a row and is left alone for 1 min, or until one of its messages is "
        "retried. The last time: exit 1"
    )


def test_crashes_far_apart_do_not_count_together() -> None:
    world = World()
    world.crash(10, apart_s=WINDOW_S / (CRASHES - 1) + 1)
    assert not world.withholds()


@pytest.mark.parametrize("reason", [Reason.SPAWN_FAILED, Reason.TOOLS_UNAVAILABLE, Reason.HUNG])
def test_what_dies_before_it_works_or_never_says_a_word_counts_as_a_crash(reason: Reason) -> None:
    world = World()
    world.crash(CRASHES, how=end(Outcome.DEAD, reason))
    assert world.withholds()


@pytest.mark.parametrize(
    "reason",
    [Reason.RATE_LIMIT, Reason.AUTHENTICATION, Reason.RUNTIME_MISSING, Reason.INTERRUPTED],
)
def test_what_is_no_fault_of_the_program_pauses_nobody(reason: Reason) -> None:
    world = World()
    world.crash(20, how=end(Outcome.FAILED, reason))
    assert not world.withholds()


def test_one_message_that_ends_well_makes_up_for_all_crashes() -> None:
    world = World()
    world.crash(CRASHES - 1)
    world.breaker.ended(ADA, REPLY)
    world.crash(CRASHES - 1)
    assert not world.withholds()


def test_after_a_pause_one_message_at_a_time_is_tried_and_a_crash_makes_the_next_pause_longer() -> (
    None
):
    world = World()
    world.crash(CRASHES)
    seen: list[float] = []
    for _ in range(len(PAUSES_S) + 1):
        seen.append(world.pass_over())
        assert not world.withholds()
        assert world.withholds(at_work=True)
        world.crash(apart_s=0.0)
        assert world.withholds()
    assert seen == [*PAUSES_S, PAUSES_S[-1]]


def test_a_trial_that_ends_well_ends_it_all() -> None:
    world = World()
    world.crash(CRASHES)
    world.pass_over()
    world.breaker.ended(ADA, REPLY)
    assert not world.withholds(at_work=True)
    world.crash(CRASHES - 1)
    assert not world.withholds()


def test_a_run_that_began_before_the_pause_and_crashes_in_it_makes_it_no_longer() -> None:
    world = World()
    world.crash(CRASHES)
    before = world.breaker.paused()
    world.crash(2)
    assert world.breaker.paused() == before


def test_an_agent_that_was_quiet_for_long_begins_anew() -> None:
    world = World()
    world.crash(CRASHES)
    world.now += PAUSES_S[0] + PAUSES_S[-1] + 1
    world.crash()
    assert not world.withholds()


def test_a_person_lifts_one_pause_or_all() -> None:
    world = World()
    world.crash(CRASHES)
    world.breaker.lift([BOB])
    assert world.withholds()
    world.breaker.lift([ADA])
    assert not world.withholds()
    assert world.breaker.next_in() is None
    world.crash(CRASHES)
    world.breaker.lift()
    assert not world.withholds()


def test_a_machine_where_pauses_are_off_pauses_nobody() -> None:
    breaker = Breaker(lambda: 1.0, 0)
    for _ in range(10):
        breaker.ended(ADA, CRASH)
    assert breaker.paused() == []


@given(st.text(max_size=5_000))
def test_what_is_said_of_a_crash_fits_the_wire(how: str) -> None:
    world = World()
    world.crash(CRASHES, how=end(Outcome.FAILED, Reason.CRASHED, how))
    [pause] = world.breaker.paused()
    assert len(pause.detail) <= 500
