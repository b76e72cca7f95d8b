"""What is to be done about a delivery before it is given to an agent, or instead. Pure but for the clock."""

import time
from datetime import UTC, datetime
from typing import Final

from cloudagent_daemon.link.tables import Waiting
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.frames import Deliver, RunReport
from cloudagent_protocol.ids import new_run_id

#: Attempts that may end with the daemon's own death, before the message is given up.
MAX_ATTEMPTS: Final = 5


def waits_for_people(waiting: Waiting) -> bool:
    """Whether nothing can be done about it before somebody has decided."""
    if waiting.interrupted_by is not None or waiting.asks_until is None:
        return False
    return waiting.asks_until > time.time()


def without_a_run(waiting: Waiting) -> Finished | None:
    """How a delivery ends that shall not, or not again, be given to an agent."""
    now = datetime.now(UTC)
    if waiting.interrupted_by is not None and waiting.attempts:
        return None  # begun in an earlier life: the runner knows how far, and ends what is left
    if waiting.interrupted_by is not None:
        return Finished(
            at=now,
            outcome=Outcome.CANCELLED,
            reason=Reason.INTERRUPTED,
            detail=f"Stopped by {waiting.interrupted_by} before the agent could begin.",
            stopped_by=waiting.interrupted_by,
        )
    if waiting.handled_before:
        return Finished(
            at=now,
            outcome=Outcome.SILENT,
            detail="An earlier version of this daemon had handled this message.",
        )
    if waiting.attempts >= MAX_ATTEMPTS:
        return Finished(
            at=now,
            outcome=Outcome.DEAD,
            reason=Reason.CRASHED,
            detail=f"Given up: the daemon ended during each of {waiting.attempts} attempts.",
        )
    return None


def only_report(deliver: Deliver, ending: Finished) -> RunReport:
    """The one report of a delivery that had no run."""
    return RunReport(
        run_id=new_run_id(),
        agent_id=deliver.agent.id,
        conversation_id=deliver.message.conversation_id,
        delivery_ids=[deliver.delivery_id],
        event=ending.model_copy(update={"seq": 1}),
    )
