"""From what is known of a turn to how it ended. Pure; told by facts, never by a CLI's wording."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cloudagent_daemon.drivers.base import TurnEnd
from cloudagent_protocol.events import Outcome, Reason

#: Characters of a program's last line that stand in the detail of its end.
_LAST_WORDS: Final = 200


@dataclass(frozen=True)
class Failure:
    """Why the daemon itself gave the turn up."""

    reason: Reason
    detail: str
    #: Whether it is of no use to try again: as often as may be, no agent came to work on it.
    dead: bool = False


@dataclass(frozen=True)
class Facts:
    """All that a verdict rests on."""

    #: The CLI's own last word; None if it never came.
    end: TurnEnd | None = None
    #: None if no process was started; negative for a signal.
    exit_code: int | None = None
    #: What it wrote to stderr last, without keys.
    stderr_tail: str = ""
    failure: Failure | None = None
    #: Who asked for the stop, if somebody did.
    stopped_by: str | None = None
    #: Who then asked to end it at once.
    ended_by: str | None = None
    daemon_stops: bool = False
    #: Messages that the agent sent, without what it asked other agents.
    sends: int = 0
    #: The names of agents that it asked something.
    asked: Sequence[str] = ()
    #: The agent's own reason for saying nothing, if it gave one.
    silence: str | None = None
    #: Files that it meant to send, and no message went with.
    files: int = 0


@dataclass(frozen=True)
class Verdict:
    """The fields of `Finished` that are a matter of judgement."""

    outcome: Outcome
    reason: Reason | None = None
    detail: str = ""
    #: A text to be sent in the agent's name, with its files, because it sent them not itself; it may be
    #: empty where there are files.
    publish: str | None = None
    #: Who asked for the stop that ended it.
    stopped_by: str | None = None
    #: When the limit that ended it is over.
    resets_at: datetime | None = None


#: What a person can do about a failure whose cause lies outside.
_ADVICE: dict[Reason, str] = {
    Reason.AUTHENTICATION: "Log the coding agent in on its machine, or correct its API key.",
    Reason.BILLING: "Check the plan or the credit of the account that the coding agent uses.",
    Reason.RATE_LIMIT: "Wait a while, then send the message again.",
    Reason.OVERLOADED: "The model is overloaded; send the message again later.",
    Reason.SERVER_ERROR: "The model's service failed; send the message again later.",
    Reason.CONNECTION: "The machine could not reach the model; check its network and base URL.",
    Reason.CONTEXT_OVERFLOW: "The conversation is too long for the model; begin a new one.",
}


def judge(facts: Facts) -> Verdict:
    """How the turn ended.

    A turn that the CLI reports as done counts as done, whatever came after. Otherwise a stop that
    was asked for explains the end, then what the daemon gave up for, then the CLI's own error, and
    last the exit of a process that said nothing: an exit code of 0 is no success by itself.
    """
    if facts.end is not None and facts.end.reason is None:
        return _done(facts, facts.end)
    if facts.stopped_by is not None:
        return _stopped(facts, facts.stopped_by)
    if facts.failure is not None:
        outcome = Outcome.DEAD if facts.failure.dead else Outcome.FAILED
        return Verdict(outcome, facts.failure.reason, facts.failure.detail)
    if facts.end is not None and facts.end.reason is not None:
        return _refused(facts.end, facts.end.reason)
    return _vanished(facts.exit_code, facts.stderr_tail)


def _done(facts: Facts, end: TurnEnd) -> Verdict:
    if facts.sends:
        return Verdict(Outcome.REPLIED, publish="" if facts.files else None)
    if facts.silence is not None and not facts.files:
        return Verdict(Outcome.SILENT, detail=facts.silence)
    text = end.final_text.strip()
    if text or facts.files:
        return Verdict(Outcome.AUTO_PUBLISHED, publish=text)
    if facts.asked:
        names = ", ".join(dict.fromkeys(facts.asked))
        return Verdict(Outcome.SILENT, detail=f"It asked {names} and waits for the answer.")
    return Verdict(
        Outcome.FAILED,
        Reason.NO_RESULT,
        "The agent ended its turn without sending a message, without a reason to stay silent and "
        "without writing anything. Ask again, or ask what happened.",
    )


def _stopped(facts: Facts, actor: str) -> Verdict:
    if facts.daemon_stops:
        detail = "The daemon on the agent's machine was stopped during the turn."
        return Verdict(Outcome.CANCELLED, Reason.DAEMON_STOPPED, detail)
    detail = f"Stopped by {actor}."
    if facts.ended_by is not None:
        detail = f"Ended at once by {facts.ended_by}: what it was in the middle of stays as it is."
    return Verdict(Outcome.CANCELLED, Reason.INTERRUPTED, detail, stopped_by=actor)


def _refused(end: TurnEnd, reason: Reason) -> Verdict:
    resets_at = end.resets_at if reason is Reason.RATE_LIMIT else None
    advice = _reset_words(resets_at) if resets_at else _ADVICE.get(reason)
    sentences = filter(None, (end.detail.strip(), advice))
    detail = " ".join(each if each[-1] in ".!?" else f"{each}." for each in sentences)
    detail = detail or f"The turn failed ({reason})."
    return Verdict(Outcome.FAILED, reason, detail, resets_at=resets_at)


def _reset_words(resets_at: datetime) -> str:
    return f"The limit is over at {resets_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC."


def _vanished(exit_code: int | None, stderr_tail: str) -> Verdict:
    if exit_code == 0:
        detail = "The agent's process ended (exit 0) without saying how its turn went"
        return Verdict(Outcome.FAILED, Reason.NO_RESULT, detail + _last_words(stderr_tail))
    detail = f"The agent's process ended early ({described(exit_code)})"
    return Verdict(Outcome.FAILED, Reason.CRASHED, detail + _last_words(stderr_tail))


def _last_words(stderr_tail: str) -> str:
    """The end of the sentence: a program that gives up says why in its last line."""
    _, _, last = stderr_tail.strip().rpartition("\n")
    return f": {last.strip()[:_LAST_WORDS]}" if last else "."


def unlaunched(
    end: TurnEnd | None, exit_code: int | None, stderr_tail: str = "", *, ready: bool
) -> Failure | None:
    """Why a process never came to work on the message: it died before it was ready, or had no tools.

    None if it did come to work, or says itself what is wrong.
    """
    if end is not None:
        no_tools = end.reason is Reason.TOOLS_UNAVAILABLE
        return Failure(Reason.TOOLS_UNAVAILABLE, end.detail) if no_tools else None
    if ready:
        return None
    verdict = _vanished(exit_code, stderr_tail)
    return Failure(verdict.reason or Reason.CRASHED, verdict.detail)


def given_up(last: Failure, launches: int) -> Failure:
    """The end of a message that no launch got to work."""
    detail = f"Given up after {launches} launches. The last: {last.detail}"
    return Failure(last.reason, detail, dead=True)


def described(exit_code: int | None) -> str:
    """An exit code in words: `exit 1`, `killed by SIGKILL`."""
    if exit_code is None:
        return "it could not be ended"
    if exit_code >= 0:
        return f"exit {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
