"""What a run's turn says to its agent: the message, and what the agent must know beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudagent_daemon.drivers.base import Picture, Turn
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.workspace import TurnRecord
from cloudagent_protocol.frames import Deliver


@dataclass
class Opening:
    """The parts of which each attempt's turn is made; filled as they are known."""

    deliver: Deliver
    #: What the turn had taken up before it left.
    aboard: Sequence[Deliver]
    #: What is told of earlier attempts.
    note: str = ""
    #: What is told of decisions that came while nothing ran.
    resumes_with: str = ""
    #: Where the files of the message are, in words for the agent.
    enclosed: str = ""
    #: Those that its model is shown.
    pictures: list[Picture] = field(default_factory=list[Picture])

    def turn(self, session_id: str | None, handoff: str) -> Turn:
        """For that session, or for a fresh one, which is told of an earlier one with `handoff`."""
        if session_id and self.resumes_with:  # the session has the message already
            return Turn(self.resumes_with)
        message = self.deliver.message
        prompt = f"{handoff}{self.note}{prompts.origin(message)}{message.text}{self.enclosed}"
        for one in self.aboard:
            prompt += f"\n\n{prompts.origin(one.message)}{one.message.text}"
        whole = f"{prompt}\n\n{self.resumes_with}" if self.resumes_with else prompt
        return Turn(whole, self.pictures)


def note_of(
    deliver: Deliver, earlier: TurnRecord | None, attempt: int, acted_on: prompts.Answers
) -> str:
    """What the agent is told of earlier attempts at this message, if there were any.

    `acted_on` is what those had asked people, and been told.
    """
    sent = _sent_in(earlier)
    if _cut_off(earlier, attempt):
        return prompts.interrupted(sent, acted_on)
    if earlier:
        return prompts.paused(sent, acted_on)
    return prompts.retried(deliver.retry) if deliver.retry and deliver.retry.began else ""


def _cut_off(earlier: TurnRecord | None, attempt: int) -> bool:
    """Whether an earlier process of this delivery was cut off, rather than having left in order."""
    return attempt > 1 if earlier is None or earlier.parked else True


def _sent_in(earlier: TurnRecord | None) -> list[str]:
    """What an attempt that was cut off had sent, and to whom, as its successor is told."""
    if earlier is None:
        return []
    return [
        f"(to the agent {name}) {send.text}"
        if (name := earlier.asked.get(send.message_id))
        else send.text
        for send in earlier.sends
    ]
