"""A run's events, numbered, on their way to the backend."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import anyio

from cloudagent_daemon.drivers.base import TextDelta
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.runs.ports import Uplink
from cloudagent_protocol.events import (
    Finished,
    Retry,
    RunEvent,
    Stderr,
    Text,
    ToolCall,
    ToolResult,
    UsageReported,
)
from cloudagent_protocol.frames import MAX_FRAME_BYTES, Deliver, Delta, RunReport
from cloudagent_protocol.ids import DeliveryId, RunId

#: Room that a frame needs beside its event.
_FRAME_MARGIN_BYTES: Final = 4_096
#: What need not be known of a run: messages, starts and ends are always kept.
_DETAILS: Final = (Stderr, Text, ToolCall, ToolResult, UsageReported)
LEFT_OUT: Final = (
    "cloudagent: this machine has 10,000 reports that its backend has not taken yet. Until it takes "
    "some, text and tool calls of runs are not kept; messages and outcomes are."
)


class Reporter:
    """Numbers a run's events from 1 and hands them on in that order."""

    def __init__(self, uplink: Uplink, deliver: Deliver, run_id: RunId) -> None:
        self._uplink = uplink
        self._deliver = deliver
        self._run_id = run_id
        self._delivery_ids = [deliver.delivery_id]
        self._in_order = anyio.Lock()
        self._left_out = False
        #: Number of the last event.
        self.last_seq = 0

    def join(self, delivery_id: DeliveryId) -> None:
        """From now on the run is that delivery's too."""
        self._delivery_ids.append(delivery_id)

    async def event(self, event: RunEvent) -> None:
        """Reports an event; durable when it returns.

        Where too much waits for the backend already, details are left out, and that is said once.
        """
        if self._uplink.full and isinstance(event, _DETAILS):
            if self._left_out:
                return
            self._left_out = True
            event = Stderr(at=event.at, text=LEFT_OUT)
        async with self._in_order:
            # Counted first: one that is cancelled may be kept all the same, and an end that had its
            # number would be taken for a repetition of it.
            self.last_seq += 1
            numbered = event.model_copy(update={"seq": self.last_seq})
            await self._uplink.report(self.frame(fitted(numbered)))

    async def finish(self, finished: Finished) -> None:
        """Reports the run's last event, which already has its number."""
        await self._uplink.finish(self.frame(fitted(finished)))

    def delta(self, delta: TextDelta) -> None:
        self._uplink.delta(
            Delta(
                run_id=self._run_id,
                agent_id=self._deliver.agent.id,
                conversation_id=self._deliver.message.conversation_id,
                block=delta.block,
                offset=delta.offset,
                text=delta.text,
            )
        )

    def frame(self, event: RunEvent) -> RunReport:
        return RunReport(
            run_id=self._run_id,
            agent_id=self._deliver.agent.id,
            conversation_id=self._deliver.message.conversation_id,
            delivery_ids=list(self._delivery_ids),
            event=event,
        )


def now() -> datetime:
    return datetime.now(UTC)


def fitted(event: RunEvent) -> RunEvent:
    """The event, cut down if it would not fit a frame of the link."""
    if _fits(event):
        return event
    changes: Mapping[str, Any] = {}
    match event:
        case Text() | Stderr():
            changes = {"text": clip(event.text)[0]}
        case ToolResult():
            changes = {"output": clip(event.output, 2_000)[0], "truncated": True}
        case Retry() | Finished():
            changes = {"detail": clip(event.detail)[0]}
        case ToolCall():
            changes = {"input": {"left out": "too large to show"}}
        case _:
            pass
    return event.model_copy(update=dict(changes))


def _fits(event: RunEvent) -> bool:
    return len(event.model_dump_json().encode()) <= MAX_FRAME_BYTES - _FRAME_MARGIN_BYTES
