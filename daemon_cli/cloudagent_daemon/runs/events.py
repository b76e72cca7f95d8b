"""What a run makes of each thing that its agent does, and of each that it asks for."""

import logging

from cloudagent_daemon.bridge.tools import NAMES
from cloudagent_daemon.drivers.base import (
    SERVER,
    Decision,
    PermissionAsked,
    Reported,
    TextDelta,
    TurnEnd,
)
from cloudagent_daemon.runs.approvals import Asking
from cloudagent_daemon.runs.changes import Change
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.launches import Launches
from cloudagent_daemon.runs.report import Reporter
from cloudagent_daemon.runs.resuming import Resuming
from cloudagent_daemon.runs.steering import Steering
from cloudagent_protocol.events import Ready, ToolCall
from cloudagent_protocol.ids import RunId

logger = logging.getLogger(__name__)


class Events:
    """Hands each to whom it concerns."""

    def __init__(
        self,
        run_id: RunId,
        desk: RunDesk,
        asking: Asking,
        change: Change,
        resuming: Resuming,
        launches: Launches,
        steering: Steering,
        reporter: Reporter,
    ) -> None:
        self._run_id = run_id
        self._desk = desk
        self._asking = asking
        self._change = change
        self._resuming = resuming
        self._launches = launches
        self._steering = steering
        self._reporter = reporter

    async def take(self, event: Reported) -> None:
        if isinstance(event, TextDelta):
            self._reporter.delta(event)
            return
        if isinstance(event, TurnEnd):
            await self._resuming.keep(event.session_id if event.reason is None else None)
            return
        if isinstance(event, Ready):
            await self._resuming.keep(event.session_id)
        if isinstance(event, ToolCall):
            await self._called(event)
        await self._reporter.event(event)

    async def _called(self, call: ToolCall) -> None:
        self._asking.saw(call)
        if _is_ours(call):
            return
        self._change.acted(call)
        if self._desk.record.sends:
            self._desk.record.worked_since = True
            await self._desk.keep_record()

    async def taken_up(self, turn_id: str) -> None:
        """The agent has begun to work on what it knows by this id."""
        await self._launches.taken_up()
        await self._steering.taken_up(turn_id)

    async def withdrawn(self, asked_id: str) -> None:
        """Its program has taken that question back (`PermissionAsked.id`)."""
        await self._asking.take_back(asked_id)

    async def decide(self, asked: PermissionAsked) -> Decision:
        """Whether the agent may do what it asks for; waits for people where they decide."""
        if self._desk.record.sends and not asked.ours and not self._desk.record.worked_since:
            self._desk.record.worked_since = True  # it has not said its last word
            await self._desk.keep_record()
        if not asked.ours:
            await self._change.looked(asked)
        decision = await self._asking.decide(asked)
        logger.info(
            "%s: %s",
            "allowed" if decision.allow else "denied",
            asked.tool,
            extra={"action": "permission", "kind": asked.kind, "run_id": self._run_id},
        )
        return decision


def _is_ours(call: ToolCall) -> bool:
    # Most call our tools mcp__cloudagent__send_message and so on; the rest of a name may be a model's words.
    return call.name.removeprefix(f"mcp__{SERVER}__") in NAMES
