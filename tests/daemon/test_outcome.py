"""A turn is judged by facts, in an order of which explains the end best."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.drivers.base import TurnEnd
from cloudagent_daemon.runs.outcome import Facts, Failure, described, given_up, judge, unlaunched
from cloudagent_protocol.events import Outcome, Reason

WELL = TurnEnd(final_text="last words")


@pytest.mark.parametrize(
    ("facts", "outcome", "reason"),
    [
        (Facts(end=WELL, exit_code=0, sends=1), Outcome.REPLIED, None),
        (Facts(end=WELL, exit_code=0, sends=2, silence="why"), Outcome.REPLIED, None),
        (Facts(end=WELL, exit_code=0, silence="why"), Outcome.SILENT, None),
        (Facts(end=WELL, exit_code=0), Outcome.AUTO_PUBLISHED, None),
        (Facts(end=TurnEnd(final_text=" \n"), exit_code=0), Outcome.FAILED, Reason.NO_RESULT),
        (Facts(end=TurnEnd(final_text=" \n"), files=1), Outcome.AUTO_PUBLISHED, None),
        (Facts(end=WELL, silence="why", files=1), Outcome.AUTO_PUBLISHED, None),
        (Facts(end=WELL, sends=1, files=1), Outcome.REPLIED, None),
        # Done is done: neither a bad exit nor a late stop takes it back.
        (Facts(end=WELL, exit_code=1, sends=1), Outcome.REPLIED, None),
        (Facts(end=WELL, exit_code=-9, sends=1, stopped_by="Ana"), Outcome.REPLIED, None),
        (Facts(exit_code=-2, stopped_by="Ana"), Outcome.CANCELLED, Reason.INTERRUPTED),
        (
            Facts(exit_code=-2, stopped_by="daemon", daemon_stops=True),
            Outcome.CANCELLED,
            Reason.DAEMON_STOPPED,
        ),
        (
            Facts(end=TurnEnd(Reason.MODEL_ERROR), exit_code=1, stopped_by="Ana", sends=1),
            Outcome.CANCELLED,
            Reason.INTERRUPTED,
        ),
        (
            Facts(exit_code=-9, failure=Failure(Reason.HUNG, "silent")),
            Outcome.FAILED,
            Reason.HUNG,
        ),
        (Facts(end=TurnEnd(Reason.BILLING), exit_code=1), Outcome.FAILED, Reason.BILLING),
        (Facts(end=TurnEnd(Reason.BILLING), exit_code=1, sends=1), Outcome.FAILED, Reason.BILLING),
        (Facts(exit_code=0), Outcome.FAILED, Reason.NO_RESULT),
        (Facts(exit_code=0, sends=1), Outcome.FAILED, Reason.NO_RESULT),
        (Facts(exit_code=1), Outcome.FAILED, Reason.CRASHED),
        (Facts(exit_code=-11), Outcome.FAILED, Reason.CRASHED),
        (Facts(exit_code=None), Outcome.FAILED, Reason.CRASHED),
    ],
)
def test_the_verdict_follows_from_the_facts(
    facts: Facts, outcome: Outcome, reason: Reason | None
) -> None:
    verdict = judge(facts)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


RESET = datetime(2026, 11, 27, 14, 5, tzinfo=UTC)


def test_a_rate_limit_tells_when_it_is_over() -> None:
    verdict = judge(Facts(end=TurnEnd(Reason.RATE_LIMIT, "You've hit it", resets_at=RESET)))
    assert verdict.resets_at == RESET
    assert verdict.detail == "You've hit it. The limit is over at 2026-11-27 14:05 UTC."


def test_an_end_at_once_says_so_and_a_stop_that_was_heeded_does_not() -> None:
    ended = judge(Facts(exit_code=-9, stopped_by="Ana", ended_by="Bo"))
    assert (ended.outcome, ended.stopped_by) == (Outcome.CANCELLED, "Ana")
    assert ended.detail.startswith("Ended at once by Bo")
    stopped = judge(Facts(end=TurnEnd(Reason.INTERRUPTED), stopped_by="Ana"))
    assert stopped.detail == "Stopped by Ana."


def test_no_other_end_has_a_time() -> None:
    assert judge(Facts(end=TurnEnd(Reason.RATE_LIMIT, "no"))).resets_at is None
    assert judge(Facts(end=TurnEnd(Reason.BILLING, resets_at=RESET))).resets_at is None


def test_only_an_auto_published_turn_has_a_text_to_publish() -> None:
    assert judge(Facts(end=WELL)).publish == "last words"
    assert judge(Facts(end=WELL, sends=1)).publish is None


def test_a_refusal_says_what_the_cli_said_and_what_to_do() -> None:
    detail = judge(Facts(end=TurnEnd(Reason.AUTHENTICATION, "API Error: 401"))).detail
    assert detail.startswith("API Error: 401. ")
    assert "Log the coding agent in" in detail


def test_a_failure_without_any_words_still_has_some() -> None:
    assert judge(Facts(end=TurnEnd(Reason.MODEL_ERROR))).detail


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exit 3"),
        (-9, "killed by SIGKILL"),
        (-250, "killed by signal 250"),
        (None, "it could not be ended"),
    ],
)
def test_an_exit_code_is_put_in_words(code: int | None, words: str) -> None:
    assert described(code) == words


ENDS = st.none() | st.builds(
    TurnEnd,
    reason=st.none() | st.sampled_from(Reason),
    detail=st.text(max_size=5),
    final_text=st.text(max_size=5),
)


@given(
    st.builds(
        Facts,
        end=ENDS,
        exit_code=st.none() | st.integers(-300, 255),
        failure=st.none() | st.just(Failure(Reason.HUNG, "x")),
        stopped_by=st.none() | st.just("Ana"),
        ended_by=st.none() | st.just("Bo"),
        daemon_stops=st.booleans(),
        sends=st.integers(0, 2),
        silence=st.none() | st.just("why"),
        files=st.integers(0, 1),
    )
)
def test_every_turn_has_an_outcome_a_reason_if_it_failed_and_words_for_it(facts: Facts) -> None:
    verdict = judge(facts)
    unhappy = verdict.outcome in {Outcome.FAILED, Outcome.CANCELLED}
    assert unhappy == (verdict.reason is not None)
    assert verdict.detail or not unhappy
    left = verdict.outcome is Outcome.REPLIED and facts.files > 0
    assert (verdict.publish is not None) == (left or verdict.outcome is Outcome.AUTO_PUBLISHED)
    assert verdict.publish != "" or facts.files
    if facts.end is None or facts.end.reason is not None:
        assert unhappy


def test_a_process_that_came_to_work_was_launched() -> None:
    assert unlaunched(None, 1, ready=True) is None
    assert unlaunched(TurnEnd(Reason.BILLING, detail="no credit"), 1, ready=False) is None


def test_a_process_that_died_before_it_was_ready_says_how_it_ended() -> None:
    failure = unlaunched(None, -9, ready=False)
    assert failure is not None
    assert failure.reason is Reason.CRASHED
    assert "SIGKILL" in failure.detail


@pytest.mark.parametrize("exit_code", [0, 1])
def test_the_last_line_of_a_process_that_vanished_says_why(exit_code: int) -> None:
    tail = "loading\nerror: unknown option --strict \n\n"
    verdict = judge(Facts(exit_code=exit_code, stderr_tail=tail))
    assert verdict.detail.endswith(": error: unknown option --strict")
    assert judge(Facts(exit_code=exit_code, stderr_tail="x" * 999)).detail.endswith(" " + "x" * 200)
    assert judge(Facts(exit_code=exit_code, stderr_tail=" \n")).detail.endswith(".")


def test_an_agent_without_its_tools_never_came_to_work() -> None:
    end = TurnEnd(Reason.TOOLS_UNAVAILABLE, detail="the bridge did not answer")
    failure = unlaunched(end, 1, ready=True)
    assert failure == Failure(Reason.TOOLS_UNAVAILABLE, "the bridge did not answer")


def test_what_is_given_up_is_dead_and_says_after_how_many_launches() -> None:
    verdict = judge(Facts(failure=given_up(Failure(Reason.CRASHED, "It broke."), 3)))
    assert (verdict.outcome, verdict.reason) == (Outcome.DEAD, Reason.CRASHED)
    assert verdict.detail == "Given up after 3 launches. The last: It broke."


def test_who_asked_another_agent_and_said_nothing_waits_for_its_answer() -> None:
    verdict = judge(Facts(end=TurnEnd(), exit_code=0, asked=("bob", "eve", "bob")))
    assert verdict.outcome is Outcome.SILENT
    assert verdict.detail == "It asked bob, eve and waits for the answer."
