"""The history checker finds what was planted, and nothing where nothing is wrong."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.history import (
    Accepted,
    Acked,
    Allowed,
    Done,
    Effect,
    EpochBegan,
    Exited,
    Interrupted,
    Invariant,
    Linked,
    Record,
    Reply,
    RunEnded,
    Sent,
    Spawned,
    check,
    maybe_repeated,
)

I = Invariant  # noqa: E741 - the invariants are known by this letter


class Script:
    """Writes histories: one call, one thing that happens, a tick later."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, kind: Callable[..., Record], *fields: object, **more: object) -> None:
        self.records.append(kind(float(len(self.records)), *fields, **more))

    def submit(self, message: str, order: int, agent: str = "a") -> None:
        self.add(Sent, message, agent, f"c-{agent}")
        self.add(Acked, message, order)

    def attempt(
        self, message: str, agent: str = "a", launch: str = "", conversation: str = ""
    ) -> str:
        launch = launch or f"launch-{len(self.records)}"
        self.add(Spawned, launch, conversation or f"c-{agent}", agent, message)
        self.add(Effect, message, 1, launch)
        return launch

    def work(self, message: str, agent: str = "a", outcome: str = "replied") -> None:
        launch = self.attempt(message, agent)
        if outcome in {"replied", "auto_published"}:
            self.add(Reply, message, f"reply-{message}")
        self.add(Exited, launch)
        self.end(message, outcome)

    def end(self, message: str, outcome: str) -> None:
        self.add(RunEnded, f"run-{message}", message)
        self.add(Done, message, outcome)

    def cut_off(self, message: str, agent: str = "a", *, told: bool = True) -> None:
        """An attempt that died with the daemon."""
        launch = self.attempt(message, agent)
        self.add(Exited, launch)
        self.add(RunEnded, f"run-{launch}", message, cut_off=True)
        if told:
            self.add(Interrupted, message)


def clean(messages: int = 3, agents: Sequence[str] = ("a", "b")) -> Script:
    script = Script()
    script.add(EpochBegan, "e1")
    names = [(f"{agent}{number}", agent) for number in range(messages) for agent in agents]
    for order, (message, agent) in enumerate(names):
        script.submit(message, order, agent)
        script.add(Accepted, message, "e1", order + 1)
    for message, agent in names:
        script.work(message, agent)
    return script


def found(records: Sequence[Record]) -> set[Invariant]:
    return {violation.invariant for violation in check(records)}


# --- nothing is wrong ---


def test_a_clean_history_has_no_violations() -> None:
    assert check(clean().records) == []
    assert check([]) == []


@pytest.mark.parametrize("outcome", ["silent", "failed", "cancelled", "dead"])
def test_any_outcome_will_do(outcome: str) -> None:
    script = Script()
    script.submit("m", 1)
    script.work("m", outcome=outcome)
    assert check(script.records) == []


def test_a_message_may_end_without_ever_being_begun() -> None:
    script = Script()
    script.submit("m", 1)
    script.end("m", "cancelled")
    assert check(script.records) == []


def test_a_message_that_was_never_acknowledged_may_be_lost_or_may_arrive() -> None:
    script = Script()
    script.add(Sent, "lost", "a", "c-a")
    script.add(Sent, "arrived", "a", "c-a")
    script.work("arrived")
    assert check(script.records) == []


def test_a_repeat_after_a_crash_that_is_told_is_allowed_and_counted() -> None:
    script = Script()
    script.submit("m", 1)
    script.cut_off("m")
    script.cut_off("m")
    script.work("m")
    assert check(script.records) == []
    assert maybe_repeated(script.records) == {"m": 2}


def test_agents_work_beside_each_other() -> None:
    script = Script()
    script.submit("m", 1, "a")
    script.submit("n", 2, "b")
    second, first = script.attempt("n", "b"), script.attempt("m", "a")
    for message, launch in (("m", first), ("n", second)):
        script.add(Exited, launch)
        script.end(message, "silent")
    assert check(script.records) == []


def test_two_conversations_of_an_agent_may_start_side_by_side() -> None:
    script = Script()
    script.submit("first", 1)
    script.submit("second", 2)
    second = script.attempt("second", conversation="another")
    first = script.attempt("first")
    for message, launch in (("second", second), ("first", first)):
        script.add(Exited, launch)
        script.end(message, "silent")
    assert check(script.records) == []


def test_a_delivery_may_come_again_in_a_new_epoch() -> None:
    script = Script()
    script.add(EpochBegan, "e1")
    script.submit("m", 1)
    script.add(Accepted, "m", "e1", 1)
    script.add(EpochBegan, "e2")
    script.add(Accepted, "m", "e2", 1)
    script.work("m")
    assert check(script.records) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=20),
    st.randoms(use_true_random=False),
)
def test_whatever_is_cut_off_and_told_is_no_violation_in_whatever_order_it_was_recorded(
    plan: list[tuple[str, int]], chance: random.Random
) -> None:
    script = Script()
    for order, (agent, crashes) in enumerate(plan):
        script.submit(f"m{order}", order, agent)
        for _ in range(crashes):
            script.cut_off(f"m{order}", agent)
        script.work(f"m{order}", agent)
    shuffled = list(script.records)
    chance.shuffle(shuffled)
    assert check(shuffled) == []
    assert maybe_repeated(shuffled) == {
        f"m{order}": crashes for order, (_, crashes) in enumerate(plan) if crashes
    }


# --- something is wrong ---


def without(kind: type[Record], message: str) -> list[Record]:
    return [
        r
        for r in clean().records
        if not (isinstance(r, kind) and getattr(r, "message", None) == message)
    ]


def planted(plant: Callable[[Script], None]) -> list[Record]:
    script = clean()
    plant(script)
    return script.records


def lost(script: Script) -> None:
    script.submit("lost", 99)


def two_outcomes(script: Script) -> None:
    script.add(Done, "a1", "failed")


def from_nowhere(script: Script) -> None:
    script.work("phantom", outcome="silent")


def reply_from_nowhere(script: Script) -> None:
    script.add(Reply, "phantom", "r")


def silent_second_run(script: Script) -> None:
    script.submit("m", 99)
    script.cut_off("m", told=False)
    script.work("m")


def one_repeat_told_two_made(script: Script) -> None:
    script.submit("m", 99)
    script.cut_off("m")
    script.cut_off("m", told=False)
    script.work("m")


def run_after_the_end(script: Script) -> None:
    script.add(Interrupted, "a1")
    script.cut_off("a1")


def two_completed_runs(script: Script) -> None:
    script.add(RunEnded, "another", "a1")


def silent_second_effect(script: Script) -> None:
    script.submit("m", 99)
    launch = script.attempt("m")
    script.add(Effect, "m", 1, launch)
    script.add(Exited, launch)
    script.end("m", "silent")


def wrong_order(script: Script) -> None:
    script.submit("first", 98)
    script.submit("second", 99)
    script.work("second")
    script.work("first")


def wrong_order_of_two_conversations(script: Script) -> None:
    script.submit("first", 98)
    script.submit("second", 99)
    launch = script.attempt("second", conversation="another")
    script.add(Exited, launch)
    script.end("second", "silent")
    script.work("first")


def two_processes(script: Script) -> None:
    script.submit("m", 98)
    script.submit("n", 99)
    first = script.attempt("m")
    second = script.attempt("n")
    for message, launch in (("m", first), ("n", second)):
        script.add(Exited, launch)
        script.end(message, "silent")


def a_process_that_was_left_behind(script: Script) -> None:
    script.submit("m", 99)
    script.add(Interrupted, "m")
    script.attempt("m", launch="left")
    script.work("m")


def an_effect_of_the_dead(script: Script) -> None:
    script.submit("m", 99)
    launch = script.attempt("m")
    script.add(Exited, launch)
    script.end("m", "silent")
    script.add(Effect, "m", 2, launch)


def an_effect_of_a_superseded_launch(script: Script) -> None:
    script.submit("m", 99)
    script.add(Interrupted, "m")
    old = script.attempt("m")
    new = script.attempt("m")
    script.add(Effect, "m", 2, old)
    script.add(Exited, old)
    script.add(Exited, new)
    script.end("m", "silent")


def an_effect_of_a_stranger(script: Script) -> None:
    script.add(Effect, "a1", 7, "stranger")


def a_second_reply(script: Script) -> None:
    script.add(Reply, "a1", "another-id")


def a_reply_stored_twice(script: Script) -> None:
    script.add(Reply, "a1", "reply-a1")


def a_frame_of_an_older_epoch(script: Script) -> None:
    script.add(EpochBegan, "e2")
    script.submit("m", 99)
    script.add(Accepted, "m", "e1", 50)
    script.work("m")


def a_number_taken_twice(script: Script) -> None:
    script.submit("m", 99)
    script.add(Accepted, "m", "e1", 6)
    script.work("m")


def a_delivery_under_two_numbers(script: Script) -> None:
    script.add(Accepted, "a1", "e1", 50)


PLANTED = [
    (lost, {I.OUTCOME}),
    (two_outcomes, {I.OUTCOME}),
    (from_nowhere, {I.OUTCOME}),
    (reply_from_nowhere, {I.OUTCOME}),
    (silent_second_run, {I.ONCE}),
    (one_repeat_told_two_made, {I.ONCE}),
    (run_after_the_end, {I.ONCE}),
    (two_completed_runs, {I.ONCE}),
    (silent_second_effect, {I.ONCE}),
    (wrong_order, {I.ORDER}),
    (wrong_order_of_two_conversations, {I.ORDER}),
    (two_processes, {I.ALONE}),
    (a_process_that_was_left_behind, {I.ALONE}),
    (an_effect_of_the_dead, {I.ALONE}),
    (an_effect_of_a_superseded_launch, {I.ALONE}),
    (an_effect_of_a_stranger, {I.ALONE}),
    (a_second_reply, {I.ONE_REPLY}),
    (a_reply_stored_twice, {I.ONE_REPLY}),
    (a_frame_of_an_older_epoch, {I.EPOCH}),
    (a_number_taken_twice, {I.EPOCH}),
    (a_delivery_under_two_numbers, {I.EPOCH}),
]


@pytest.mark.parametrize(("plant", "invariants"), PLANTED, ids=[p.__name__ for p, _ in PLANTED])
def test_a_planted_violation_is_found_by_its_invariant_and_no_other(
    plant: Callable[[Script], None], invariants: set[Invariant]
) -> None:
    assert found(planted(plant)) == invariants


def test_an_outcome_that_vanished_is_found() -> None:
    assert found(without(Done, "b2")) == {I.OUTCOME}


def test_a_reply_that_is_claimed_and_not_there_is_found() -> None:
    assert found(without(Reply, "b2")) == {I.OUTCOME}


@given(st.integers(0, 5), st.integers(0, 5))
def test_any_two_messages_of_an_agent_that_change_places_are_found(one: int, other: int) -> None:
    script = clean(messages=6, agents=["a"])
    at = {r.message: r.at for r in script.records if isinstance(r, Spawned)}
    swap = {f"a{one}": f"a{other}", f"a{other}": f"a{one}"}
    swapped: list[Record] = [
        replace(r, order=int(swap.get(r.message, r.message)[1:])) if isinstance(r, Acked) else r
        for r in script.records
    ]
    assert len(at) == 6
    assert (I.ORDER in found(swapped)) == (one != other)


# --- chains ---


def volley(turns: int, allowed: int, more: int | None = None) -> list[Record]:
    """Two agents that message each other; after so many turns a person lets them go on, or stops."""
    script = Script()
    script.add(Linked, "m0", "m0", 0)
    script.add(Allowed, "m0", allowed)
    for number in range(1, turns + 1):
        if more is not None and number == allowed + 1:
            script.add(Allowed, "m0", more)
        message, agent = f"m{number}", "ab"[number % 2]
        script.submit(message, number, agent)
        script.add(Linked, message, "m0", number, f"m{number - 1}")
        script.work(message, agent, outcome="silent")
    return script.records


def test_agents_may_take_the_turns_that_people_allow() -> None:
    assert check(volley(3, 3)) == []
    assert check(volley(6, 3, more=3)) == []


@pytest.mark.parametrize(
    "records",
    [volley(4, 3), volley(7, 3, more=3), volley(4, 3, more=0)],
    ids=["beyond the cap", "beyond what a person allowed", "after a stop"],
)
def test_a_turn_that_nobody_allowed_is_found(records: list[Record]) -> None:
    assert found(records) == {I.CHAIN}


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 1},
        {"depth": 3},
        {"chain": "m1"},
        {"cause": "m9"},
        {"cause": None},
    ],
    ids=str,
)
def test_a_message_in_the_wrong_place_of_its_chain_is_found(wrong: dict[str, object]) -> None:
    records = [
        replace(r, **wrong) if isinstance(r, Linked) and r.message == "m2" else r  # type: ignore[arg-type]
        for r in volley(2, 3)
    ]
    assert found(records) == {I.CHAIN}
