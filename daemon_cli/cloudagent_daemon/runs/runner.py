"""One run, whole: from a delivered message to exactly one `Finished`."""

import logging
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from cloudagent_daemon import crash, footprint
from cloudagent_daemon.bridge.server import Bridge, Session
from cloudagent_daemon.bridge.tools import TOOLS, Toolbox
from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import (
    SERVER,
    Command,
    Decision,
    DriverError,
    DriverSession,
    Job,
    PermissionAsked,
    Reported,
    TextDelta,
    ToolServer,
    Turn,
    TurnEnd,
)
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.drivers.table import DRIVERS, driver_named
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Child, Ladder, SpawnError, end_leftover
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.attempt import Attempt, Seen
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.environment import child_environment
from cloudagent_daemon.runs.outcome import (
    Facts,
    Failure,
    Verdict,
    given_up,
    judge,
    unlaunched,
)
from cloudagent_daemon.runs.permission import by_mode
from cloudagent_daemon.runs.ports import Launch, StopSignal, Uplink, UplinkError
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.workspace import NewerRecordError, SpawnRecord, TurnRecord, Workspace
from cloudagent_protocol.content import MAX_TEXT_CHARS
from cloudagent_protocol.events import Finished, Outcome, Ready, Reason, Retry, Started, ToolCall
from cloudagent_protocol.frames import Deliver, ListMessages
from cloudagent_protocol.ids import RunId, new_run_id

logger = logging.getLogger(__name__)

#: How long a run may wait for the backend to tell what was said before.
_HISTORY_S: Final = 5.0
#: How long to wait after each launch that failed; when they are used up, the message is given up.
RELAUNCH_S: Final = (1.0, 5.0)
_OUR_TOOLS: Final = frozenset(tool.name for tool in TOOLS)
#: After these, a resumed session is given up and the message put to a fresh one.
_SESSION_FAULTS: Final = frozenset(
    {Reason.SESSION_LOST, Reason.CONTEXT_OVERFLOW, Reason.INVALID_REQUEST}
)


class Runner:
    """Runs deliveries; holds no state between them, so several may run at once."""

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
    ) -> None:
        self._settings = settings
        self._keeper = keeper or Keeper()
        self._bridge = bridge
        self._uplink = uplink
        self._masks = masks
        self._relaunch_s = relaunch_s
        self._ladder = ladder or Ladder(settings.limits.term_timeout_s)

    async def run(self, deliver: Deliver, *, attempt: int, stop: StopSignal) -> Finished:
        """Does one delivery's work; returns when its process tree is gone and `finish` returned.

        Raises nothing but cancellation: then the process tree is gone too and nothing is reported,
        so that the daemon's next life finds the delivery unfinished and runs it again.
        """
        try:
            workspace = Workspace(self._settings.agents_dir, deliver.agent)
            await self._keeper.in_thread(workspace.prepare)
            earlier = await anyio.to_thread.run_sync(workspace.turn_of, deliver.delivery_id)
            if earlier and (finished := await self._settled(deliver, workspace, earlier)):
                return finished
            if earlier:  # it was begun, even if the spool that counted it is lost
                attempt = max(attempt, 2)
            run = _Run(
                self._settings,
                self._bridge,
                self._uplink,
                self._masks,
                self._keeper,
                deliver,
                workspace,
                self._relaunch_s,
                self._ladder,
            )
            return await run.go(attempt, stop, earlier)
        except NewerRecordError as error:
            logger.error("%s", error, extra={"action": "newer_record"})  # noqa: TRY400 - the trace tells nothing more
            return await self._give_up(deliver, str(error))
        except Exception as error:
            # The edge of a run: a fault of ours ends it with a word to the person, not the daemon.
            about = {"agent_id": deliver.agent.id, "delivery_id": deliver.delivery_id}
            logger.exception("a run failed", extra={"action": "run_failed", **about})
            detail = f"The daemon could not do this run ({error!r}); its log has more."
            return await self._give_up(deliver, detail)

    async def _settled(
        self, deliver: Deliver, workspace: Workspace, earlier: TurnRecord
    ) -> Finished | None:
        """Ends what an earlier life of the daemon left, and the delivery too if its turn was over.

        Over means: the verdict was written down, or the agent's last act was a reply. What it sent
        is handed on again under the same ids, which changes nothing if it had arrived.
        """
        await end_leftover(0, 0.0, earlier.launch_id)
        for send in earlier.sends:
            await self._uplink.report(send)
        finished = earlier.finished
        if finished is None and earlier.sends and not earlier.worked_since:
            detail = "The daemon stopped right after this reply; the turn was not repeated."
            finished = Finished(seq=1, at=now(), outcome=Outcome.REPLIED, detail=detail)
            earlier = earlier.model_copy(update={"run_id": new_run_id()})
        if finished is None:
            return None
        if earlier.finished is None:
            earlier = earlier.model_copy(update={"finished": finished})
            await self._keeper.in_thread(workspace.keep_turn, deliver.delivery_id, earlier)
        await Reporter(self._uplink, deliver, earlier.run_id).finish(finished)
        return finished

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
        bridge: Bridge,
        uplink: Uplink,
        masks: Masks,
        keeper: Keeper,
        deliver: Deliver,
        workspace: Workspace,
        relaunch_s: Sequence[float],
        ladder: Ladder,
    ) -> None:
        self._settings = settings
        self._ladder = ladder
        self._relaunch_s = relaunch_s
        self._bridge = bridge
        self._uplink = uplink
        self._masks = masks
        self._keeper = keeper
        self._deliver = deliver
        self._workspace = workspace
        self._run_id: RunId = new_run_id()
        self._reporter = Reporter(uplink, deliver, self._run_id)
        self._desk = RunDesk(deliver, self._run_id, workspace, uplink, self._stir, keeper)
        self._launches = 0
        self._attempt: Attempt | None = None

    async def go(self, attempt: int, stop: StopSignal, earlier: TurnRecord | None) -> Finished:
        note = prompts.interrupted(_sent_in(earlier)) if earlier or attempt > 1 else ""
        if not note and self._deliver.retry and self._deliver.retry.began:
            note = prompts.retried(self._deliver.retry)
        if earlier:
            self._desk.go_on_from(earlier)
        toolbox = Toolbox(self._desk)
        async with self._folder() as folder, self._bridge.session(toolbox, folder) as place:
            seen, failure = await self._attempts(note, attempt, stop, folder, place)
        return await self._conclude(seen, failure, stop)

    # --- processes ---

    async def _attempts(
        self, note: str, attempt: int, stop: StopSignal, folder: Path, place: Session
    ) -> tuple[Seen, Failure | None]:
        """Processes until one has had its turn; each cause of a further one counts once."""
        session_id, handoff = await self._session()
        tried: set[Reason] = set()
        while True:
            if stop.requested:
                return Seen(), None
            message = self._deliver.message
            prompt = f"{handoff}{note}{prompts.origin(message)}{message.text}"
            try:
                seen = await self._process(
                    self._job(session_id, folder, place), Turn(prompt), attempt, stop, place
                )
            except DriverError as error:
                return Seen(), Failure(error.reason, str(error))
            except (SpawnError, UnmaskedError) as error:
                seen, failed = Seen(), Failure(Reason.SPAWN_FAILED, str(error))
            else:
                again = self._worth_another(seen, session_id, stop)
                if again is not None and again not in tried:
                    tried.add(again)
                    if again in _SESSION_FAULTS:
                        session_id, handoff = None, await self._handoff()
                    await self._tell_retry(again, seen.end.detail if seen.end else "")
                    continue
                failed = _unlaunched(seen)
            if failed is None or stop.requested:
                return seen, seen.failure
            delay_s = await self._after_failed_launch()
            if delay_s is None:
                return seen, given_up(failed, self._desk.record.failed_launches)
            tried.discard(Reason.TOOLS_UNAVAILABLE)
            await self._tell_retry(failed.reason, failed.detail, delay_s)
            with anyio.move_on_after(delay_s):
                await stop.wait()

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
        if reason in _SESSION_FAULTS and session_id and untouched:
            return reason
        return None

    async def _process(
        self, job: Job, turn: Turn, attempt: int, stop: StopSignal, place: Session
    ) -> Seen:
        """One process, from its command to its end.

        Raises:
            DriverError: there is nothing to start.
            SpawnError: it could not be started.
            UnmaskedError: it would have seen what it must not.
        """
        mask = await self._masks.of_run(self._workspace.home, job.run_dir, place.socket_path)
        driver = driver_named(self._deliver.agent.driver).open(job)
        command = await self._keeper.in_thread(_prepared, driver)
        crash.point("before_spawn")
        launch_id = uuid.uuid4().hex
        self._desk.record.launch_id = launch_id
        await self._desk.keep_record()
        spawn = SpawnRecord(
            run_id=self._run_id,
            launch_id=launch_id,
            argv=list(command.argv),
            cwd=str(job.cwd),
            started_at=now(),
        )

        async def started(child: Child) -> None:
            place.admit(child.pid)
            await self._started(child, attempt, resumed=job.session_id is not None)
            spawn.pid = child.pid
            await anyio.to_thread.run_sync(self._keep_spawn, spawn)

        place.toolbox.next_process()
        self._attempt = Attempt(
            session=driver,
            command=command,
            turn=turn,
            env=self._environment(command),
            cwd=job.cwd,
            launch_id=launch_id,
            on_start=started,
            on_event=self._event,
            stop=stop,
            hang_timeout_s=self._deliver.agent.hang_timeout_s
            or self._settings.limits.hang_timeout_s,
            tools_listed=place.toolbox.listed,
            decide=self._decide,
            mask=mask,
            memory_limit=await anyio.to_thread.run_sync(footprint.most, self._settings.limits),
            ladder=self._ladder,
        )
        try:
            seen = await self._attempt.run()
        except SpawnError as error:
            spawn.problem = str(error)
            raise
        else:
            spawn.exit_code, spawn.stderr_tail = seen.exit_code, seen.stderr_tail
        finally:
            self._attempt = None
            spawn.ended_at = now()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._keep_spawn, spawn)
        return seen

    async def _started(self, child: Child, attempt: int, *, resumed: bool) -> None:
        self._launches += 1
        await self._uplink.launched(
            Launch(
                run_id=self._run_id,
                delivery_id=self._deliver.delivery_id,
                launch_id=child.launch_id,
                pid=child.pid,
                started_at=child.started_at,
                attempt=attempt,
            )
        )
        crash.point("after_spawn")
        if self._launches == 1:
            await self._reporter.event(
                Started(
                    at=now(),
                    driver=self._deliver.agent.driver,
                    attempt=attempt,
                    launch_id=child.launch_id,
                    pid=child.pid,
                    resumed=resumed,
                )
            )

    def _stir(self) -> None:
        if self._attempt is not None:
            self._attempt.sign_of_life()

    async def _decide(self, asked: PermissionAsked) -> Decision:
        decision = by_mode(self._deliver.agent.mode, asked)
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
        if isinstance(event, ToolCall) and self._desk.record.sends and not _is_ours(event):
            self._desk.record.worked_since = True
            await self._desk.keep_record()
        await self._reporter.event(event)

    def _job(self, session_id: str | None, folder: Path, place: Session) -> Job:
        space = self._workspace
        system = prompts.system_prompt(
            self._deliver.agent, cwd=space.cwd, memory=space.memory, notes=space.notes
        )
        return Job(
            agent=self._deliver.agent,
            home=space.home,
            cwd=space.cwd,
            sessions_dir=space.sessions,
            run_dir=folder,
            tools=ToolServer(place.command, place.socket_path, place.token_file, _OUR_TOOLS),
            system_prompt=system,
            session_id=session_id,
            new_session_id=str(uuid.uuid4()),
            environment=self._settings.environment,
        )

    def _environment(self, command: Command) -> dict[str, str]:
        return child_environment(
            self._settings.environment,
            inherits=command.inherits,
            agent=self._deliver.agent.env,
            command=command.env,
            secrets=(self._settings.machine_key,),
        )

    @asynccontextmanager
    async def _folder(self) -> AsyncGenerator[Path]:
        """A folder that lives as long as the run."""
        parent = self._settings.runtime_dir
        folder = await self._keeper.in_thread(_make_folder, parent)
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove_folder, folder)

    # --- sessions ---

    async def _session(self) -> tuple[str | None, str]:
        """The session to resume, or None and what to tell a fresh one of an earlier one."""
        conversation = self._deliver.message.conversation_id
        record = await anyio.to_thread.run_sync(self._workspace.session_of, conversation)
        if record is None:
            return None, ""
        if not self._workspace.resumable(record) or not self._driver_resumes():
            return None, await self._handoff()
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
        if session_id is None:
            return
        conversation = self._deliver.message.conversation_id
        await self._keeper.in_thread(self._workspace.keep_session, conversation, session_id)

    # --- the end ---

    async def _conclude(self, seen: Seen, failure: Failure | None, stop: StopSignal) -> Finished:
        verdict = judge(
            Facts(
                end=seen.end,
                exit_code=seen.exit_code,
                stderr_tail=seen.stderr_tail,
                failure=failure,
                stopped_by=stop.actor if stop.requested else None,
                daemon_stops=stop.daemon_stops,
                sends=self._desk.replies,
                asked=list(self._desk.record.asked.values()),
                silence=self._desk.silence,
            )
        )
        if verdict.publish is not None:
            await self._desk.publish(clip(verdict.publish, MAX_TEXT_CHARS // 2 - 100)[0])
        finished = self._finished(verdict, seen)
        self._desk.record.finished = finished
        await self._desk.keep_record()
        crash.point("before_finish")
        await self._reporter.finish(finished)
        await anyio.to_thread.run_sync(self._workspace.forget_old_turns)
        return finished

    def _finished(self, verdict: Verdict, seen: Seen) -> Finished:
        return Finished(
            seq=self._reporter.last_seq + 1,
            at=now(),
            outcome=verdict.outcome,
            reason=verdict.reason,
            detail=verdict.detail,
            stopped_by=verdict.stopped_by,
            exit_code=seen.exit_code,
            stderr_tail=seen.stderr_tail,
            session_id=seen.end.session_id if seen.end else None,
            usage=seen.end.usage if seen.end else None,
            resets_at=verdict.resets_at,
        )

    def _keep_spawn(self, record: SpawnRecord) -> None:
        """For a person who looks; nothing waits for it."""
        try:
            self._workspace.keep_spawn(record)
        except OSError as error:
            logger.warning("no last-spawn.json: %s", error, extra={"action": "keep_spawn"})


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
    return call.name.removeprefix(f"mcp__{SERVER}__") in _OUR_TOOLS


def _prepared(driver: DriverSession) -> Command:
    """The driver's command, its files written. Blocks: finding a program looks at the disk."""
    command = driver.launch()
    for path, text in command.files.items():
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    return command


def _make_folder(parent: Path) -> Path:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=parent))


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
