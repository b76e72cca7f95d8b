"""One run, whole: from a delivered message to exactly one `Finished`."""

import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
import anyio.abc

from cloudagent_daemon import crash
from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.bridge.tools import NAMES, Toolbox
from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import (
    SERVER,
    Decision,
    DriverError,
    PermissionAsked,
    Picture,
    Reported,
    TextDelta,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.table import DRIVERS
from cloudagent_daemon.link.files import Files
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Ladder, SpawnError
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.ahead import Ahead
from cloudagent_daemon.runs.approvals import Asking, UnansweredError
from cloudagent_daemon.runs.attempt import Attempt, Seen
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.conclusion import conclude, settle
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.enclosed import IN_RUN_S, PATIENCE_S, Porter, pictures, words
from cloudagent_daemon.runs.launching import Held, Launcher, Wanted
from cloudagent_daemon.runs.outcome import Failure, given_up, unlaunched
from cloudagent_daemon.runs.picking import Baggage, copies_of, reach_of
from cloudagent_daemon.runs.ports import (
    Answers,
    Launch,
    Parked,
    Ride,
    StopSignal,
    Uplink,
    UplinkError,
)
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.trees import Trees
from cloudagent_daemon.runs.warm import Key, Warm
from cloudagent_daemon.runs.worker import Worker
from cloudagent_daemon.runs.workspace import (
    NewerRecordError,
    SessionRecord,
    TurnRecord,
    Workspace,
)
from cloudagent_protocol.events import (
    Finished,
    Outcome,
    Ready,
    Reason,
    Retry,
    Started,
    Steered,
    ToolCall,
)
from cloudagent_protocol.frames import Deliver, DeliveryReport, ListMessages
from cloudagent_protocol.ids import DeliveryId, RunId, new_run_id

logger = logging.getLogger(__name__)

#: How long a run may wait for the backend to tell what was said before.
_HISTORY_S: Final = 5.0
#: How long to wait after each launch that failed; when they are used up, the message is given up.
RELAUNCH_S: Final = (1.0, 5.0)
#: How long a warm process may take to begin its next turn.
_TAKE_UP_S: Final = 10.0
#: After these, a resumed session is given up and the message put to a fresh one.
_SESSION_FAULTS: Final = frozenset(
    {Reason.SESSION_LOST, Reason.CONTEXT_OVERFLOW, Reason.INVALID_REQUEST}
)


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
        self._keeper = keeper or Keeper()
        self._uplink = uplink
        # A job has nothing else to do than to wait for its files; elsewhere that was done before.
        patience_s = PATIENCE_S if settings.one_shot else IN_RUN_S
        self._porter = Porter(files, uplink, self._keeper, patience_s=patience_s)
        self._fetcher = Porter(files, uplink, self._keeper)
        self._answers = answers
        self._relaunch_s = relaunch_s
        ladder = ladder or Ladder(settings.limits.term_timeout_s)
        self._launcher = Launcher(settings, bridge, masks, self._keeper, ladder)
        self._warm = warm
        self._changes = changes or Changes(settings, masks, uplink)
        self._trees = Trees(settings, masks)
        self.ahead = Ahead(settings, self._launcher, warm, uplink, self._keeper) if warm else None
        self._live: dict[DeliveryId, _Run] = {}

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
            if earlier:  # it was begun, even if the spool that counted it is lost
                attempt = max(
                    attempt - 1 if earlier.parked else attempt, 1 if earlier.parked else 2
                )
            run = _Run(
                self._settings,
                self._uplink,
                self._keeper,
                self._launcher,
                self._warm,
                tasks,
                deliver,
                aboard,
                workspace,
                session,
                self._relaunch_s,
                self._answers,
                self._porter,
                self._changes,
            )
            self._live[deliver.delivery_id] = run
            return await run.go(attempt, stop, earlier, misplaced)
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
        return await run.steer(deliver, attempt) if run else None

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


class _Run:
    """One run under way."""

    def __init__(
        self,
        settings: Settings,
        uplink: Uplink,
        keeper: Keeper,
        launcher: Launcher,
        warm: Warm | None,
        tasks: anyio.abc.TaskGroup,
        deliver: Deliver,
        aboard: Sequence[Deliver],
        workspace: Workspace,
        session: SessionRecord | None,
        relaunch_s: Sequence[float],
        answers: Answers | None,
        porter: Porter,
        changes: Changes,
    ) -> None:
        self._settings = settings
        self._relaunch_s = relaunch_s
        self._uplink = uplink
        self._keeper = keeper
        self._launcher = launcher
        self._warm = warm
        self._tasks = tasks
        self._deliver = deliver
        self._workspace = workspace
        #: What the disk knew of the conversation's session when the run began.
        self._known_session = session
        self._run_id: RunId = new_run_id()
        self._reporter = Reporter(uplink, deliver, self._run_id)
        self._asking = Asking(
            deliver,
            self._reporter,
            answers,
            settings.limits,
            settings.environment,
            workspace.cwd,
            self._stir,
            parks=not settings.one_shot,
        )
        self._desk = RunDesk(
            deliver,
            self._run_id,
            workspace,
            uplink,
            self._stir,
            keeper,
            asking=self._asking,
            baggage=Baggage(partial(reach_of, settings, workspace), copies_of(settings)),
        )
        self._toolbox = Toolbox(self._desk)
        #: What the turn had taken up before it left.
        self._aboard = aboard
        for one in aboard:
            self._reporter.join(one.delivery_id)
            self._desk.carry(one)
        self._change = changes.of(workspace, deliver, self._run_id)
        #: What is told of decisions that came while nothing ran.
        self._resumes_with = ""
        self._porter = porter
        #: Where the files of the message are, in words for the agent.
        self._enclosed = ""
        #: Those that its model is shown.
        self._pictures: list[Picture] = []
        self._launches = 0
        #: That a warm process has the message is in the spool, and not in the record yet.
        self._record_follows = False
        self._attempt: Attempt | None = None
        #: The session that the disk knows this conversation by.
        self._session_kept: str | None = None
        #: By the id that the agent knows them by.
        self._rides: dict[str, Ride] = {}
        #: Nothing is put in while what was is counted, nor after that.
        self._steering = anyio.Lock()
        self._closed = False

    async def go(
        self,
        attempt: int,
        stop: StopSignal,
        earlier: TurnRecord | None,
        misplaced: Failure | None = None,
    ) -> Finished | Parked:
        self._asking.stop = stop
        try:
            # Of what was never begun nobody was asked anything: that need not be looked up.
            decided = await self._asking.known() if earlier or attempt > 1 else []
        except UnansweredError as error:
            return await self._conclude(Seen(), Failure(Reason.UNANSWERED, str(error)), stop)
        note = prompts.interrupted(_sent_in(earlier)) if _cut_off(earlier, attempt) else ""
        if not note and self._deliver.retry and self._deliver.retry.began:
            note = prompts.retried(self._deliver.retry)
        if earlier:
            self._desk.go_on_from(earlier)
        self._resumes_with = prompts.decided(decided) if decided else ""
        brought = misplaced or await self._porter.bring(self._deliver, self._workspace, stop)
        if isinstance(brought, Failure):
            seen, failure = Seen(), brought
        else:
            self._enclosed = words(brought)
            if brought:
                self._pictures = await anyio.to_thread.run_sync(pictures, brought)
            seen, failure = await self._worked(note, attempt, stop)
        await self._let_off()
        if stop.parks:
            return await self._park()
        await self._asking.withdraw()
        return await self._conclude(seen, failure, stop)

    async def _worked(
        self, note: str, attempt: int, stop: StopSignal
    ) -> tuple[Seen, Failure | None]:
        try:
            return await self._attempts(note, attempt, stop)
        except DriverError as error:
            return Seen(), Failure(error.reason, str(error))
        except anyio.get_cancelled_exc_class():
            self._change.drop()
            raise
        finally:
            self._change.over()

    async def _conclude(self, seen: Seen, failure: Failure | None, stop: StopSignal) -> Finished:
        return await conclude(self._desk, self._reporter, self._workspace, seen, failure, stop)

    async def _park(self) -> Parked:
        """Leaves the delivery to whoever answers; its next run knows that this one ended in order."""
        taken = [ride.deliver for ride in self._rides.values() if ride.taken]
        others = [one.delivery_id for one in (*self._aboard, *taken)]
        for one in others:
            await self._uplink.stays_aboard(one, self._deliver.delivery_id)
        self._desk.record.worked_since = True
        await self._desk.leave()
        for one in (self._deliver.delivery_id, *others):
            await self._uplink.report(
                DeliveryReport(
                    delivery_id=one,
                    at=now(),
                    reason=Reason.APPROVAL,
                    detail="nobody has answered yet: the agent has left, and goes on when somebody does",
                )
            )
        return Parked()

    # --- processes ---

    async def _attempts(
        self, note: str, attempt: int, stop: StopSignal
    ) -> tuple[Seen, Failure | None]:
        """Processes until one has had its turn; each cause of a further one counts once."""
        session_id, handoff = await self._session()
        warm = await self._warm_one(session_id)
        tried: set[Reason] = set()
        while not stop.requested:
            turn = self._turn(session_id, f"{handoff}{note}")
            seen, failed = await self._try(warm, session_id, turn, attempt, stop)
            was_warm, warm = warm is not None, None
            if was_warm and self._was_not_taken_up(seen, turn, stop):
                await self._tell_retry(Reason.CRASHED, _GONE)
                continue
            again = self._worth_another(seen, session_id, stop)
            if again is not None and again not in tried:
                tried.add(again)
                if again in _SESSION_FAULTS:
                    if again is Reason.INVALID_REQUEST:
                        self._pictures = []  # perhaps its model takes none, or not these: it has the paths
                    session_id, handoff = None, await self._handoff()
                await self._tell_retry(again, seen.end.detail if seen.end else "")
                continue
            failed = failed or _unlaunched(seen)
            if failed is None or stop.requested:
                return seen, seen.failure
            delay_s = await self._after_failed_launch()
            if delay_s is None:
                return seen, given_up(failed, self._desk.record.failed_launches)
            tried.discard(Reason.TOOLS_UNAVAILABLE)
            await self._tell_retry(failed.reason, failed.detail, delay_s)
            with anyio.move_on_after(delay_s):
                await stop.wait()
        await self._leave(warm)
        return Seen(), None

    def _turn(self, session_id: str | None, before: str) -> Turn:
        if session_id and self._resumes_with:  # the session has the message already
            return Turn(self._resumes_with)
        message = self._deliver.message
        prompt = f"{before}{prompts.origin(message)}{message.text}{self._enclosed}"
        for one in self._aboard:
            prompt += f"\n\n{prompts.origin(one.message)}{one.message.text}"
        whole = f"{prompt}\n\n{self._resumes_with}" if self._resumes_with else prompt
        return Turn(whole, self._pictures)

    async def _try(
        self, warm: Held | None, session_id: str | None, turn: Turn, attempt: int, stop: StopSignal
    ) -> tuple[Seen, Failure | None]:
        """One turn in a process: a warm one, or one that is started for it, if that can be.

        Raises:
            DriverError: there is nothing to start.
        """
        try:
            held = warm or await self._launch(session_id)
        except (SpawnError, UnmaskedError) as error:
            return Seen(), Failure(Reason.SPAWN_FAILED, str(error))
        # One that was started ahead may still be starting.
        take_up_s = _TAKE_UP_S if warm and warm.worker.worked else None
        resumed = session_id is not None
        return await self._in(held, turn, attempt, stop, take_up_s, resumed=resumed), None

    def _was_not_taken_up(self, seen: Seen, turn: Turn, stop: StopSignal) -> bool:
        """Whether a warm process has ended without having begun with this message."""
        untouched = turn.id not in seen.taken and not seen.worked
        return untouched and seen.end is None and not stop.requested

    async def _after_failed_launch(self) -> float | None:
        """How long to wait before the next launch; null if there shall be none.

        Counted on the disk, so that a daemon that is restarted meanwhile goes on counting.
        """
        failed = self._desk.record.failed_launches + 1
        self._desk.record.failed_launches = failed
        await self._desk.keep_record()
        return self._relaunch_s[failed - 1] if failed <= len(self._relaunch_s) else None

    async def _tell_retry(self, reason: Reason, detail: str, delay_s: float = 0.0) -> None:
        attempt = self._launches + 1
        await self._reporter.event(
            Retry(at=now(), attempt=attempt, reason=reason, detail=detail, delay_s=delay_s)
        )

    def _worth_another(self, seen: Seen, session_id: str | None, stop: StopSignal) -> Reason | None:
        """Why this process should be followed by another; None if it should not."""
        reason = seen.end.reason if seen.end else None
        if stop.requested or reason is None:
            return None
        if reason is Reason.TOOLS_UNAVAILABLE:
            return reason
        untouched = not self._desk.record.sends and not self._desk.record.worked_since
        shown = reason is Reason.INVALID_REQUEST and self._pictures
        if reason in _SESSION_FAULTS and (session_id or shown) and untouched:
            return reason
        return None

    async def _in(
        self,
        held: Held,
        turn: Turn,
        attempt: int,
        stop: StopSignal,
        take_up_s: float | None,
        *,
        resumed: bool,
    ) -> Seen:
        kept = False
        try:
            await self._started(held.worker, attempt, resumed=resumed)
            held.place.open(self._toolbox)
            self._attempt = Attempt(
                worker=held.worker,
                turn=turn,
                on_event=self._event,
                stop=stop,
                hang_timeout_s=self._deliver.agent.hang_timeout_s
                or self._settings.limits.hang_timeout_s,
                decide=self._decide,
                on_taken=self._taken_up,
                withdrawn=self._asking.take_back,
                keeps=self._keeps,
                shut=held.place.shut,
                spared=held.tool_servers,
                take_up_s=take_up_s,
            )
            self._change.begin(self._tasks)  # a warm one: not before it has its message
            seen = await self._attempt.run()
            kept = self._attempt.kept and self._keep(held, seen)
            return seen
        finally:
            self._attempt = None
            if not kept:
                await self._leave(held)

    async def _launch(self, session_id: str | None) -> Held:
        self._change.begin(self._tasks)  # while the process starts
        launch_id = uuid.uuid4().hex
        self._desk.record.launch_id = launch_id
        wanted = Wanted(
            self._workspace,
            self._run_id,
            launch_id,
            session_id,
            on_spawn=self._desk.keep_record,
            on_gone=self._uplink.gone if self._keeps else None,
        )
        return await self._tasks.start(self._launcher.live, wanted)

    async def _started(self, worker: Worker, attempt: int, *, resumed: bool) -> None:
        """Writes down that it is given the message, before it is."""
        self._launches += 1
        child = worker.child
        started = Started(
            at=now(),
            driver=self._deliver.agent.driver,
            attempt=attempt,
            launch_id=child.launch_id,
            pid=child.pid,
            resumed=resumed,
        )
        if self._desk.record.launch_id != child.launch_id:
            # A warm one: nothing was written yet, and who waits for it waits for the disk once, for
            # the spool. The record is for a life that has lost that: it follows once the agent works.
            self._desk.record.launch_id = child.launch_id
            self._record_follows = True
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._launched, worker, attempt)
                tasks.start_soon(self._reporter.event, started)
            return
        await self._launched(worker, attempt)
        crash.point("after_spawn")
        if self._launches == 1:
            await self._reporter.event(started)

    async def _launched(self, worker: Worker, attempt: int) -> None:
        for one in (self._deliver, *self._aboard):
            await self._uplink.launched(self._launch_record(worker, one, attempt))

    def _launch_record(self, worker: Worker, deliver: Deliver, attempt: int) -> Launch:
        child = worker.child
        return Launch(
            run_id=self._run_id,
            delivery_id=deliver.delivery_id,
            launch_id=child.launch_id,
            pid=child.pid,
            started_at=child.started_at,
            attempt=attempt,
            stays=self._keeps and worker.session.capabilities.warm,
        )

    # --- further messages ---

    async def steer(self, deliver: Deliver, attempt: int) -> Ride | None:
        """Puts a message into the turn; written down first, as a process that is given one is."""
        async with self._steering:
            under_way = None if self._closed else self._attempt
            mine, wanted = self._deliver.agent, deliver.agent
            same = (mine.id, mine.model, mine.mode) == (wanted.id, wanted.model, wanted.mode)
            if deliver.message.attachments:  # they are brought before a turn begins
                return None
            if not same or under_way is None or not under_way.steerable:
                return None
            return await self._put_in(under_way, deliver, attempt)

    async def _put_in(self, under_way: Attempt, deliver: Deliver, attempt: int) -> Ride | None:
        turn, ride = Turn(f"{prompts.origin(deliver.message)}{deliver.message.text}"), Ride(deliver)
        self._rides[turn.id] = ride
        await self._desk.join(deliver)
        await self._uplink.launched(self._launch_record(under_way.worker, deliver, attempt))
        if under_way.steer(turn):
            return ride
        del self._rides[turn.id]
        await self._desk.part(deliver)
        return None

    async def _let_off(self) -> None:
        """Nothing more is put in; what was and was not taken up is none of this run's."""
        async with self._steering:
            self._closed = True
            for ride in self._rides.values():
                if not ride.taken:
                    await self._desk.part(ride.deliver)

    async def _taken_up(self, turn_id: str) -> None:
        if self._record_follows:
            self._record_follows = False
            # Not synced: the record counts where the spool is lost, and then the power has not gone.
            await self._desk.keep_record(synced=False)
        ride = self._rides.get(turn_id)
        if (
            ride is None or self._asking.stop.parks
        ):  # what it begins with as it leaves is told again
            return
        ride.taken = True
        deliver = ride.deliver
        self._reporter.join(deliver.delivery_id)
        self._desk.work_on(deliver)
        await self._reporter.event(
            Steered(at=now(), delivery_id=deliver.delivery_id, message_id=deliver.message.id)
        )

    # --- warm ones ---

    @property
    def _key(self) -> Key:
        return self._deliver.agent.id, self._deliver.message.conversation_id

    @property
    def _keeps(self) -> bool:
        return self._warm is not None and self._warm.keeps

    async def _warm_one(self, session_id: str | None) -> Held | None:
        """The process that has this conversation's session open, if there is one to go on with."""
        if self._warm is None:
            return None
        made_of = self._launcher.print_of(self._workspace, session_id or "")
        held = await self._warm.take(self._key, made_of)
        return held if held and await self._works_as_wanted(held) else None

    async def _works_as_wanted(self, held: Held) -> bool:
        """Whether a warm process has the agent's model and permission mode; one that has not is gone."""
        agent, so = self._deliver.agent, False
        try:
            so = await held.worker.adjust(agent.model, agent.mode)
        finally:
            if not so:
                about = {"action": "warm_end", "agent_id": agent.id, "pid": held.worker.child.pid}
                logger.info("a warm process is ended: it keeps its model or mode", extra=about)
                await self._leave(held)
        return so

    def _keep(self, held: Held, seen: Seen) -> bool:
        session_id = seen.end.session_id if seen.end else None
        if self._warm is None or session_id is None:
            return False
        made_of = self._launcher.print_of(self._workspace, session_id)
        return self._warm.put(self._key, held, made_of)

    async def _leave(self, held: Held | None) -> None:
        """Has it gone, whatever cancels us."""
        if held:
            with anyio.CancelScope(shield=True):
                await held.worker.close()

    # --- what happens in one ---

    def _stir(self) -> None:
        if self._attempt is not None:
            self._attempt.sign_of_life()

    async def _decide(self, asked: PermissionAsked) -> Decision:
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

    async def _event(self, event: Reported) -> None:
        if isinstance(event, TextDelta):
            self._reporter.delta(event)
            return
        if isinstance(event, TurnEnd):
            await self._keep_session(event.session_id if event.reason is None else None)
            return
        if isinstance(event, Ready):
            await self._keep_session(event.session_id)
        if isinstance(event, ToolCall):
            self._asking.saw(event)
            if not _is_ours(event):
                self._change.acted(event)
        if isinstance(event, ToolCall) and self._desk.record.sends and not _is_ours(event):
            self._desk.record.worked_since = True
            await self._desk.keep_record()
        await self._reporter.event(event)

    # --- sessions ---

    async def _session(self) -> tuple[str | None, str]:
        """The session to resume, or None and what to tell a fresh one of an earlier one."""
        record = self._known_session
        if record is None:
            return None, ""
        if not self._workspace.resumable(record) or not self._driver_resumes():
            return None, await self._handoff()
        self._session_kept = record.session_id
        return record.session_id, ""

    def _driver_resumes(self) -> bool:
        driver = DRIVERS.get(self._deliver.agent.driver)
        return driver is None or driver.resumes

    async def _handoff(self) -> str:
        query = ListMessages(
            agent_id=self._deliver.agent.id,
            conversation_id=self._deliver.message.conversation_id,
            before=self._deliver.message.id,
        )
        try:
            with anyio.fail_after(_HISTORY_S):
                return prompts.handoff(await self._uplink.list_messages(query))
        except (UplinkError, TimeoutError):
            return prompts.handoff(None)

    async def _keep_session(self, session_id: str | None) -> None:
        if session_id is None or session_id == self._session_kept:
            return
        self._session_kept = session_id
        conversation = self._deliver.message.conversation_id
        await self._keeper.in_thread(self._workspace.keep_session, conversation, session_id)


#: What is told of a warm process that was gone when the message came to it.
_GONE: Final = "The warm process had ended before it took the message up; another one is started."


def _remembered(
    workspace: Workspace, deliver: Deliver
) -> tuple[TurnRecord | None, SessionRecord | None]:
    """What the disk knows of the delivery and of its conversation. Blocks, once for both."""
    workspace.prepare()
    conversation_id = deliver.message.conversation_id
    return workspace.turn_of(deliver.delivery_id), workspace.session_of(conversation_id)


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


def _unlaunched(seen: Seen) -> Failure | None:
    if seen.failure is not None or seen.worked:
        return None
    return unlaunched(seen.end, seen.exit_code, seen.stderr_tail, ready=seen.ready)


def _is_ours(call: ToolCall) -> bool:
    # Most call our tools mcp__cloudagent__send_message and so on; the rest of a name may be a model's words.
    return call.name.removeprefix(f"mcp__{SERVER}__") in NAMES
