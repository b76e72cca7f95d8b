"""A job's life: its host is made, the daemon takes one message, the host is removed again.

Nothing of it is written below the home. The host goes on every way out; where that cannot be done,
the backend does it once the host has been away for its `ttl_s` (decisions/0010).
"""

import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon import life
from cloudagent_daemon.config import Settings
from cloudagent_daemon.ending import INTERRUPTED, Ending
from cloudagent_daemon.link.ephemeral import Backend, RefusedError
from cloudagent_daemon.link.transport import KeyRejectedError, LinkError, UnreachableError
from cloudagent_daemon.link.way import way_of
from cloudagent_daemon.runs.once import OneMessage, words
from cloudagent_daemon.tunnel import tunnel_of
from cloudagent_protocol.events import Outcome, Reason
from cloudagent_protocol.resources import EphemeralHost

logger = logging.getLogger(__name__)

SCHEMA: Final = "cloudagent.run/1"
EXIT_CODES: Final = {
    "done": 0,
    "failed": 1,
    "refused": 2,
    "unauthorized": 4,
    "unreachable": 5,
    "idle": 7,
    "interrupted": 130,
}
#: A backend that cannot be reached is asked again for so long, so far apart.
MAKE_S: Final = 30.0
AGAIN_S: Final = 2.0
#: How long the host's removal may take.
REMOVE_S: Final = 15.0

_DONE: Final = frozenset({Outcome.REPLIED, Outcome.SILENT, Outcome.AUTO_PUBLISHED})


@dataclass
class Job:
    """What came of it.

    `verdict` is one of `EXIT_CODES`; `why` and `next_step` are for a person where it is no turn's.
    """

    verdict: str = "interrupted"
    why: str = ""
    next_step: str = ""
    host: EphemeralHost | None = None
    removed: bool = False
    #: Why the host is still there.
    left: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


async def run(
    settings: Settings,
    agent: str | None,
    watched: OneMessage,
    say: Callable[[str], None],
    *,
    make_s: float = MAKE_S,
) -> Job:
    """From the making of the host to its removal; signals end it, in order.

    Args:
        settings: of a one-shot daemon, with the key of the machine that the host is made for.
        agent: id or name of the one agent to serve; None for all of the machine's.
        watched: made for this job; knows afterwards what came of its message.
        say: takes a line for the person who reads the job's log.
        make_s: how long a backend that cannot be reached is asked again.
    """
    job = Job()
    ending = Ending()
    tunnel = await run_sync(tunnel_of, settings)
    backend = Backend(way_of(settings), tunnel.ready if tunnel else None)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey, signals, ending)
            if tunnel:  # from before the host is made until it is removed
                tasks.start_soon(tunnel.run)
            try:
                job.host = await _make(backend, settings, agent, ending, job, make_s)
                if job.host and not ending.requested.is_set():
                    own = replace(
                        settings,
                        machine_key=job.host.raw_key,
                        host_id=job.host.id,
                        # What ends a job early gives it seconds, not a minute.
                        limits=replace(settings.limits, stop_timeout_s=0.0),
                    )
                    await life.live(own, say, ending, watched, tunnel=tunnel)
                    _judge(job, watched)
            finally:
                with anyio.CancelScope(shield=True):
                    await _remove(backend, job)
            tasks.cancel_scope.cancel()
    return job


async def _obey(signals: AsyncIterator[signal.Signals], ending: Ending) -> None:
    async for _ in signals:
        ending.request(INTERRUPTED)


async def _make(
    backend: Backend,
    settings: Settings,
    agent: str | None,
    ending: Ending,
    job: Job,
    make_s: float,
) -> EphemeralHost | None:
    """The job's host, or None and the job's verdict; a first signal lets a request end."""
    hostname = socket.gethostname()
    deadline = anyio.current_time() + make_s
    while not ending.requested.is_set():
        try:
            return await _unless(
                ending.at_once, lambda: backend.make(settings.machine_key, hostname, agent)
            )
        except KeyRejectedError as error:
            job.verdict, job.why = "unauthorized", str(error)
            job.next_step = "make a new key on the page (Hosts), and put it into the job's secrets"
            return None
        except RefusedError as error:
            job.verdict, job.why, job.next_step = "refused", str(error), error.next_step
            return None
        except UnreachableError as error:
            if anyio.current_time() + AGAIN_S > deadline:
                job.verdict, job.why = "unreachable", str(error)
                job.next_step = f"curl {settings.server_url}/healthz   (from the same machine)"
                return None
            logger.warning("%s; trying again", error, extra={"action": "make_host"})
        with anyio.move_on_after(AGAIN_S):
            await ending.requested.wait()
    return None


async def _unless(
    event: anyio.Event, work: Callable[[], Awaitable[EphemeralHost]]
) -> EphemeralHost | None:
    """What `work` returns or raises, or None if the event came first."""
    outcome: EphemeralHost | LinkError | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            outcome = await work()
        except LinkError as error:  # out of here, so that no group is wrapped around it
            outcome = error
        tasks.cancel_scope.cancel()
    if isinstance(outcome, LinkError):
        raise outcome
    return outcome


def _judge(job: Job, watched: OneMessage) -> None:
    finished = watched.turn.finished
    if finished is not None and watched.unsent:
        job.verdict = "unreachable"
        job.why = f"the turn's end did not reach the backend ({watched.unsent} reports are lost)"
        job.next_step = f"cloudagent trace {_message_id(watched)}"
    elif finished is not None and finished.outcome in _DONE:
        job.verdict = "done"
    elif watched.gave_up:
        job.verdict, job.why = watched.gave_up, watched.why
    elif finished is not None and finished.reason is not Reason.DAEMON_STOPPED:
        job.verdict = "failed"


def _message_id(watched: OneMessage) -> str:
    return watched.turn.deliver.message.id if watched.turn.deliver else "MESSAGE"


async def _remove(backend: Backend, job: Job) -> None:
    if job.host is None:
        return
    job.left = f"no answer within {REMOVE_S:.0f} s"
    with anyio.move_on_after(REMOVE_S):
        while True:
            try:
                await backend.remove(job.host.raw_key)
            except LinkError as error:
                job.left = str(error)
                await anyio.sleep(AGAIN_S)
            else:
                job.removed, job.left = True, ""
                return


def result(job: Job, watched: OneMessage, server_url: str) -> dict[str, Any]:
    """The job's result as one JSON object (`cloudagent.run/1`)."""
    turn, host = watched.turn, job.host
    deliver, frame, finished = turn.deliver, turn.frame, turn.finished
    lasted = round(turn.ended_at - turn.began_at, 3) if turn.ended_at and turn.began_at else None
    return {
        "schema": SCHEMA,
        "verdict": job.verdict,
        "exit_code": job.exit_code,
        "server_url": server_url,
        "host_id": host.id if host else None,
        "host_removed": job.removed,
        "agent": {"id": deliver.agent.id, "name": deliver.agent.name} if deliver else None,
        "message_id": deliver.message.id if deliver else None,
        "conversation_id": deliver.message.conversation_id if deliver else None,
        "delivery_id": frame.delivery_ids[0] if frame else None,
        "run_id": frame.run_id if frame else None,
        "outcome": finished.outcome.value if finished else None,
        "reason": str(finished.reason) if finished and finished.reason else None,
        "detail": (finished.detail if finished else job.why) or None,
        "reply": turn.reply,
        "usage": turn.usage.model_dump(exclude_none=True) if turn.usage else None,
        "duration_s": lasted,
    }


def farewell(job: Job) -> str:
    """The last line of a job's log."""
    if job.host is None:
        return "No host was made. Nothing was written to ~/.cloudagent."
    if job.removed:
        return "Host removed. Nothing was written to ~/.cloudagent."
    return (
        f"Host {job.host.id} could not be removed ({job.left}); the backend removes it within"
        f" {words(job.host.ttl_s)}. Nothing was written to ~/.cloudagent."
    )
