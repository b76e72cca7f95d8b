"""The end of a run: what it came to, written down before it is told."""

import anyio.to_thread

from cloudagent_daemon import crash
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.lines import clip
from cloudagent_daemon.process import end_leftover
from cloudagent_daemon.runs.attempt import Seen
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.outcome import Facts, Failure, Verdict, judge
from cloudagent_daemon.runs.ports import StopSignal, Uplink
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.workspace import TurnRecord, Workspace
from cloudagent_protocol.content import MAX_TEXT_CHARS
from cloudagent_protocol.events import Finished, Outcome
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import new_run_id


async def conclude(
    desk: RunDesk,
    reporter: Reporter,
    workspace: Workspace,
    seen: Seen,
    failure: Failure | None,
    stop: StopSignal,
) -> Finished:
    """Judges the run, publishes what is to be, and tells its end."""
    verdict = judge(
        Facts(
            end=seen.end,
            exit_code=seen.exit_code,
            stderr_tail=seen.stderr_tail,
            failure=failure,
            stopped_by=stop.actor if stop.requested else None,
            ended_by=stop.ended_by,
            daemon_stops=stop.daemon_stops,
            sends=desk.replies,
            asked=list(desk.record.asked.values()),
            silence=desk.silence,
            files=len(desk.record.files),
        )
    )
    if verdict.publish is not None:
        await desk.publish(clip(verdict.publish, MAX_TEXT_CHARS // 2 - 100)[0])
    left = desk.leave_behind()
    finished = _finished(verdict, seen, reporter.last_seq + 1)
    desk.record.finished = finished
    await desk.keep_record()
    await desk.drop(left)
    crash.point("before_finish")
    await reporter.finish(finished)
    await anyio.to_thread.run_sync(workspace.forget_old_turns)
    return finished


def _finished(verdict: Verdict, seen: Seen, seq: int) -> Finished:
    return Finished(
        seq=seq,
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


async def settle(
    deliver: Deliver, workspace: Workspace, earlier: TurnRecord, uplink: Uplink, keeper: Keeper
) -> Finished | None:
    """Ends what an earlier life of the daemon left, and the delivery too if its turn was over.

    Over means: the verdict was written down, or the agent's last act was a reply. What it sent
    is handed on again under the same ids, which changes nothing if it had arrived.
    """
    await end_leftover(0, 0.0, earlier.launch_id)
    for send in earlier.sends:
        await uplink.report(send)
    finished = earlier.finished
    if finished is None and earlier.sends and not earlier.worked_since:
        detail = "The daemon stopped right after this reply; the turn was not repeated."
        finished = Finished(seq=1, at=now(), outcome=Outcome.REPLIED, detail=detail)
        earlier = earlier.model_copy(update={"run_id": new_run_id()})
    if finished is None:
        return None
    if earlier.finished is None:
        earlier = earlier.model_copy(update={"finished": finished})
        await keeper.in_thread(workspace.keep_turn, deliver.delivery_id, earlier)
    await Reporter(uplink, deliver, earlier.run_id).finish(finished)
    return finished
