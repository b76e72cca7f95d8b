"""Runs deliveries: each from a delivered message to exactly one `Finished`, whatever goes wrong."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.link.files import Files
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.process import Ladder
from cloudagent_daemon.runs.ahead import Ahead
from cloudagent_daemon.runs.attempts import RELAUNCH_S
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.conclusion import settle
from cloudagent_daemon.runs.enclosed import IN_RUN_S, PATIENCE_S, Porter
from cloudagent_daemon.runs.launching import Launcher
from cloudagent_daemon.runs.ports import Answers, Parked, Ride, StopSignal, Uplink
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.run import Assignment, Run, Shared
from cloudagent_daemon.runs.trees import Trees
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import (
    NewerRecordError,
    SessionRecord,
    TurnRecord,
    Workspace,
)
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import DeliveryId, new_run_id

logger = logging.getLogger(__name__)


class Runner:
    """Runs deliveries; holds no state between them but for processes that stay `warm`.

    Several may run at once.
    """

    def __init__(
        self,
        settings: Settings,
        bridge: Bridge,
        uplink: Uplink,
        masks: Masks,
        keeper: Keeper | None = None,
        *,
        relaunch_s: Sequence[float] = RELAUNCH_S,
        ladder: Ladder | None = None,
        warm: Warm | None = None,
        answers: Answers | None = None,
        files: Files | None = None,
        changes: Changes | None = None,
    ) -> None:
        self._settings = settings
        self._keeper = keeper = keeper or Keeper()
        self._uplink = uplink
        self._warm = warm
        self._trees = Trees(settings, masks)
        self._fetcher = Porter(files, uplink, keeper)
        # A job has nothing else to do than to wait for its files; elsewhere that was done before.
        patience_s = PATIENCE_S if settings.one_shot else IN_RUN_S
        launcher = Launcher(
            settings, bridge, masks, keeper, ladder or Ladder(settings.limits.term_timeout_s)
        )
        self._shared = Shared(
            settings=settings,
            uplink=uplink,
            keeper=keeper,
            launcher=launcher,
            warm=warm,
            answers=answers,
            porter=Porter(files, uplink, keeper, patience_s=patience_s),
            changes=changes or Changes(settings, masks, uplink),
            relaunch_s=relaunch_s,
        )
        self.ahead = Ahead(settings, launcher, warm, uplink, keeper) if warm else None
        self._live: dict[DeliveryId, Run] = {}

    async def run(
        self, deliver: Deliver, *, attempt: int, stop: StopSignal, aboard: Sequence[Deliver] = ()
    ) -> Finished | Parked:
        """Does one delivery's work; returns when `finish` has, and its process tree is gone or warm.

        Messages that are `aboard` were taken up by its turn before that left: it is theirs as well.

        `Parked`: people do not answer; it is to be run again when they have.

        Raises nothing but cancellation: then the process tree is gone too and nothing is reported,
        so that the daemon's next life finds the delivery unfinished and runs it again.
        """
        async with self._home() as tasks:
            return await self._run(deliver, aboard, attempt, stop, tasks)
        raise AssertionError("a task group passes no exception by")

    @asynccontextmanager
    async def _home(self) -> AsyncGenerator[anyio.abc.TaskGroup]:
        """Where processes live: with those that stay, or as long as the run."""
        if self._warm:
            yield self._warm.tasks
            return
        async with anyio.create_task_group() as tasks:
            yield tasks

    async def _run(
        self,
        deliver: Deliver,
        aboard: Sequence[Deliver],
        attempt: int,
        stop: StopSignal,
        tasks: anyio.abc.TaskGroup,
    ) -> Finished | Parked:
        try:
            workspace = Workspace(self._settings.agents_dir, deliver.agent)
            misplaced = await self._trees.settle(workspace, deliver.message.conversation_id)
            earlier, session = await self._keeper.in_thread(_remembered, workspace, deliver)
            if earlier and (
                finished := await settle(deliver, workspace, earlier, self._uplink, self._keeper)
            ):
                return finished
            given = Assignment(
                deliver=deliver,
                aboard=aboard,
                attempt=_counted(attempt, earlier),
                stop=stop,
                workspace=workspace,
                session=session,
                earlier=earlier,
                misplaced=misplaced,
            )
            self._live[deliver.delivery_id] = run = Run(self._shared, given, tasks)
            return await run.go()
        except NewerRecordError as error:
            logger.error("%s", error, extra={"action": "newer_record"})  # noqa: TRY400 - the trace tells nothing more
            return await self._give_up(deliver, str(error))
        except Exception as error:
            # The edge of a run: a fault of ours ends it with a word to the person, not the daemon.
            about = {"agent_id": deliver.agent.id, "delivery_id": deliver.delivery_id}
            logger.exception("a run failed", extra={"action": "run_failed", **about})
            detail = f"The daemon could not do this run ({error!r}); its log has more."
            return await self._give_up(deliver, detail)
        finally:
            self._live.pop(deliver.delivery_id, None)

    async def fetch(self, deliver: Deliver, stop: StopSignal) -> None:
        """Brings the files of a message, as far as they can be had; its run tells what is missing."""
        workspace = Workspace(self._settings.agents_dir, deliver.agent)
        await self._keeper.in_thread(workspace.prepare)
        await self._fetcher.bring(deliver, workspace, stop)

    async def steer(self, into: DeliveryId, deliver: Deliver, *, attempt: int) -> Ride | None:
        """Puts a message into the turn of that delivery; None: it cannot be.

        What became of it is told by the ride once that run is over.
        """
        run = self._live.get(into)
        return await run.steering.steer(deliver, attempt) if run else None

    async def _give_up(self, deliver: Deliver, detail: str) -> Finished:
        finished = Finished(
            seq=1,
            at=now(),
            outcome=Outcome.FAILED,
            reason=Reason.INTERNAL,
            detail=detail,
        )
        try:
            await Reporter(self._uplink, deliver, new_run_id()).finish(finished)
        except Exception:
            # Nobody is left to tell: the delivery stays unfinished, and the next life takes it up.
            logger.exception("a failed run could not be reported", extra={"action": "run"})
        return finished


def _remembered(
    workspace: Workspace, deliver: Deliver
) -> tuple[TurnRecord | None, SessionRecord | None]:
    """What the disk knows of the delivery and of its conversation. Blocks, once for both."""
    workspace.prepare()
    conversation_id = deliver.message.conversation_id
    return workspace.turn_of(deliver.delivery_id), workspace.session_of(conversation_id)


def _counted(attempt: int, earlier: TurnRecord | None) -> int:
    """How often the delivery was begun: that it was is known even if the spool that counted is lost."""
    if earlier is None:
        return attempt
    return max(attempt - 1, 1) if earlier.parked else max(attempt, 2)
