"""One run under way: its parts put together, and its way through them to an end or to a leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread

from cloudagent_daemon.bridge.tools import Toolbox
from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import DriverError
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.approvals import Asking, UnansweredError
from cloudagent_daemon.runs.attempt import Seen, UnderWay
from cloudagent_daemon.runs.attempts import Attempts
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.conclusion import conclude
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.enclosed import Porter, pictures, words
from cloudagent_daemon.runs.events import Events
from cloudagent_daemon.runs.launches import Launches
from cloudagent_daemon.runs.launching import Launcher
from cloudagent_daemon.runs.opening import Opening, note_of
from cloudagent_daemon.runs.outcome import Failure
from cloudagent_daemon.runs.picking import Baggage, copies_of, reach_of
from cloudagent_daemon.runs.ports import Answers, Parked, StopSignal, Uplink
from cloudagent_daemon.runs.processes import Processes
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.resuming import Resuming
from cloudagent_daemon.runs.steering import Steering
from cloudagent_daemon.runs.turns import Turns
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import SessionRecord, TurnRecord, Workspace
from cloudagent_protocol.events import Finished, Reason
from cloudagent_protocol.frames import Deliver, DeliveryReport
from cloudagent_protocol.ids import new_run_id


@dataclass(frozen=True)
class Shared:
    """What the runs of one daemon have in common."""

    settings: Settings
    uplink: Uplink
    keeper: Keeper
    launcher: Launcher
    warm: Warm | None
    answers: Answers | None
    porter: Porter
    changes: Changes
    relaunch_s: Sequence[float]


@dataclass(frozen=True)
class Assignment:
    """What one run is to do, and what the disk knew of it when it began."""

    deliver: Deliver
    #: What the turn had taken up before it left.
    aboard: Sequence[Deliver]
    #: How often the delivery was begun, this time counted.
    attempt: int
    stop: StopSignal
    workspace: Workspace
    #: The conversation's session.
    session: SessionRecord | None
    #: What an earlier run of the delivery wrote down.
    earlier: TurnRecord | None
    #: Why it has no place to work in.
    misplaced: Failure | None


class Run:
    """Puts the parts together, and goes through them.

    Args:
        tasks: where its processes live.
    """

    def __init__(self, shared: Shared, given: Assignment, tasks: anyio.abc.TaskGroup) -> None:
        self._given = given
        self._porter = shared.porter
        self._uplink = shared.uplink
        settings, uplink, keeper = shared.settings, shared.uplink, shared.keeper
        deliver, workspace, run_id = given.deliver, given.workspace, new_run_id()
        under_way = UnderWay()
        self._reporter = Reporter(uplink, deliver, run_id)
        self._asking = Asking(
            deliver,
            self._reporter,
            shared.answers,
            settings.limits,
            settings.environment,
            workspace.cwd,
            under_way.sign_of_life,
            parks=not settings.one_shot,
        )
        self._asking.stop = given.stop
        self._desk = RunDesk(
            deliver,
            run_id,
            workspace,
            uplink,
            under_way.sign_of_life,
            keeper,
            asking=self._asking,
            baggage=Baggage(partial(reach_of, settings, workspace), copies_of(settings)),
        )
        for one in given.aboard:
            self._reporter.join(one.delivery_id)
            self._desk.carry(one)
        self._change = shared.changes.of(workspace, deliver, run_id)
        self._opening = Opening(deliver, given.aboard)
        resuming = Resuming(deliver, workspace, given.session, uplink, keeper)
        processes = Processes(
            deliver, run_id, workspace, shared.launcher, shared.warm, uplink, tasks
        )
        launches = Launches(
            deliver,
            given.aboard,
            given.attempt,
            run_id,
            self._desk,
            self._reporter,
            uplink,
            processes.stays,
        )
        #: Takes further messages into the turn under way.
        self.steering = Steering(
            deliver, given.stop, under_way, self._desk, launches, self._reporter
        )
        turns = Turns(
            given.stop,
            deliver.agent.hang_timeout_s or settings.limits.hang_timeout_s,
            Toolbox(self._desk),
            partial(self._change.begin, tasks),
            processes,
            launches,
            Events(
                run_id,
                self._desk,
                self._asking,
                self._change,
                resuming,
                launches,
                self.steering,
                self._reporter,
            ),
            under_way,
        )
        self._attempts = Attempts(
            given.stop,
            self._opening,
            self._desk.record,
            shared.relaunch_s,
            resuming,
            processes,
            launches,
            turns,
        )

    async def go(self) -> Finished | Parked:
        given = self._given
        try:
            # Of what was never begun nobody was asked anything: that need not be looked up.
            begun = given.earlier or given.attempt > 1
            acted_on = await self._asking.acted_on() if begun else []
            decided = await self._asking.known() if begun else []
        except UnansweredError as error:
            return await self._conclude(Seen(), Failure(Reason.UNANSWERED, str(error)))
        self._opening.note = note_of(given.deliver, given.earlier, given.attempt, acted_on)
        self._opening.resumes_with = prompts.decided(decided) if decided else ""
        if given.earlier:
            self._desk.go_on_from(given.earlier)
        failure = given.misplaced or await self._enclose()
        seen, failure = (Seen(), failure) if failure else await self._worked()
        await self.steering.close()
        if given.stop.parks:
            return await self._park()
        await self._asking.withdraw()
        return await self._conclude(seen, failure)

    async def _enclose(self) -> Failure | None:
        """Brings the files of the message; returns why they could not be had."""
        given = self._given
        brought = await self._porter.bring(given.deliver, given.workspace, given.stop)
        if isinstance(brought, Failure):
            return brought
        self._opening.enclosed = words(brought)
        if brought:
            self._opening.pictures = await anyio.to_thread.run_sync(pictures, brought)
        return None

    async def _worked(self) -> tuple[Seen, Failure | None]:
        try:
            return await self._attempts.run()
        except DriverError as error:
            return Seen(), Failure(error.reason, str(error))
        except anyio.get_cancelled_exc_class():
            self._change.drop()
            raise
        finally:
            self._change.over()

    async def _conclude(self, seen: Seen, failure: Failure | None) -> Finished:
        workspace, stop = self._given.workspace, self._given.stop
        return await conclude(self._desk, self._reporter, workspace, seen, failure, stop)

    async def _park(self) -> Parked:
        """Leaves the delivery to whoever answers; its next run knows that this one ended in order."""
        first = self._given.deliver.delivery_id
        others = [one.delivery_id for one in (*self._given.aboard, *self.steering.taken)]
        for one in others:
            await self._uplink.stays_aboard(one, first)
        self._desk.record.worked_since = True
        await self._desk.leave()
        for one in (first, *others):
            await self._uplink.report(
                DeliveryReport(
                    delivery_id=one,
                    at=now(),
                    reason=Reason.APPROVAL,
                    detail="nobody has answered yet: the agent has left, and goes on when somebody does",
                )
            )
        return Parked()
