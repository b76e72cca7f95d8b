"""One life of the daemon: what is started in which order, and how it ends. All is composed here."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from cloudagent_daemon import status
from cloudagent_daemon.about import About
from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.checking import Checking
from cloudagent_daemon.config import Settings
from cloudagent_daemon.control_server import ControlServer
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.ending import FLUSH_S, INTERRUPTED, Ending, longest_s
from cloudagent_daemon.guards import Guards
from cloudagent_daemon.holds import fence, heed_guards, heed_installation, tell_pauses
from cloudagent_daemon.installation import Installation, place
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.courier import Courier
from cloudagent_daemon.link.files import Files
from cloudagent_daemon.link.keyfile import KeyFile
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.obeying import Obeying
from cloudagent_daemon.process import Ladder
from cloudagent_daemon.programs import Programs
from cloudagent_daemon.reconnecting import Reconnecting
from cloudagent_daemon.rounds import Rounds
from cloudagent_daemon.runs import limits_file
from cloudagent_daemon.runs.breaker import Breaker
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.limits import Limits
from cloudagent_daemon.runs.once import OneMessage
from cloudagent_daemon.runs.picking import copies_of
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.runner import Runner
from cloudagent_daemon.runs.uplink import LiveRuns, SpoolUplink
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.service.notify import Notifier, without_manager
from cloudagent_daemon.tunnel import Tunnel
from cloudagent_daemon.waits import any_of, first_of
from cloudagent_protocol.resources import Runtime

logger = logging.getLogger(__name__)

#: The last reports of a job whose turn is over: it has no next life, and a connection that broke may
#: come back meanwhile. Whoever ends a job early gives it seconds, as any other daemon has.
JOB_FLUSH_S: Final = 60.0
#: How long a one-shot daemon waits for its host's name before it goes on without.
NAMED_S: Final = 5.0
#: What is told of the standing, to the service manager and in the file for `status`, comes no more often.
STATUS_S: Final = 0.2
KEY_REJECTED: Final = 4
#: Of a job that came to its end but hung there: its own verdict (ci.py) was not told, so it is no 0.
JOB_HUNG: Final = 1


class Daemon:
    """The parts that live as long as the process; `run` starts and ends them.

    Args:
        say: takes a line for the person at the terminal.
        job: of a daemon that lives for one message.
        tunnel: that the way leads through.
    """

    def __init__(
        self,
        settings: Settings,
        way: Way,
        spool: Spool,
        say: Callable[[str], None],
        job: OneMessage | None = None,
        tunnel: Tunnel | None = None,
    ) -> None:
        self._ladder = Ladder(settings.limits.term_timeout_s)
        self._notify = Notifier(settings.environment)
        # For children. Its PATH is replaced once, before the first of them is started.
        environment = without_manager(settings.environment)
        settings = replace(settings, environment=environment)
        self._settings = settings
        #: When what no event tells of is looked at.
        self.rounds = Rounds()
        self._installation = Installation(place(), environment, rounds=self.rounds)
        self._spool = spool
        self._say = say
        self._job = job
        live = LiveRuns()
        key, stored_in = settings.machine_key, settings.config_file
        key_file = (
            KeyFile(stored_in, settings.server_url, settings.host_id, key) if stored_in else None
        )
        current_key = key_file.current if key_file else always(key)
        way_open = tunnel.ready if tunnel else None
        self.guards = Guards(
            settings.limits, [settings.runtime_dir, settings.agents_dir], rounds=self.rounds
        )
        keeper = Keeper(self.guards.trouble)
        self.client = LinkClient(
            WebSocketTransport(way, current_key, way_open),
            spool,
            # Asked once there is a connection, when `about` is long there.
            lambda: self.about.hello(),
            lambda: self.about.heartbeat(),
            keeper=keeper,
            rounds=self.rounds,
        )
        spool_uplink = SpoolUplink(spool, self.client, live, keeper)
        self._masks = Masks(settings)
        self._bridge = Bridge(settings.state_dir, settings.runtime_dir, keeper)
        uplink = job.uplink(spool_uplink) if job else spool_uplink
        self._warm = Warm(0 if job else settings.limits.warm_s, settings.limits.max_warm)
        files = Files(way, current_key, way_open)
        self._courier = Courier(spool, files, copies_of(settings), self.client, keeper)
        self._changes = Changes(settings, self._masks, uplink)
        runner = Runner(
            settings,
            self._bridge,
            uplink,
            self._masks,
            keeper,
            ladder=self._ladder,
            warm=self._warm,
            answers=spool,
            files=files,
            changes=self._changes,
        )
        self._ahead = runner.ahead
        self.queue = RunQueue(
            spool,
            job.runs(runner) if job else runner,
            uplink,
            max_runs=settings.limits.max_runs,
            admit=self.guards.admit,
            breaker=Breaker(time.monotonic, settings.limits.crash_pause_s),
            limits=Limits(
                environment,
                lambda: datetime.now(UTC),
                time.monotonic,
                limits_file.load(settings.state_dir),
            ),
            keep=partial(limits_file.keep, settings.state_dir),
            fetch=None if job else runner.fetch,
        )
        self.about = About(
            settings=settings,
            spool=spool,
            client=self.client,
            queue=self.queue,
            guards=self.guards,
            installation=self._installation,
            masks=self._masks,
            live=live,
            key=key_file,
            tunnel=tunnel,
            warm=self._warm,
        )
        self.reconnecting = Reconnecting(self.client, key_file, tunnel)
        self._programs = programs = Programs(
            environment, self._masks, self.about, self.queue, spool_uplink, say
        )
        self._obeying = Obeying(settings, self.client, self.queue, programs, self._installation)
        self._checking = Checking(
            settings, self.client, programs, self._bridge, self._masks, self.about
        )

    async def run(self, ending: Ending) -> None:
        """Serves until an end is wanted, then drains."""
        self._ladder.hurry = ending.at_once
        async with anyio.create_task_group() as tasks:
            # The connection comes first: a slow start must not look like a dead machine.
            tasks.start_soon(self.client.run)
            tasks.start_soon(self.rounds.run)
            tasks.start_soon(self.reconnecting.watch_tunnel)
            if self._settings.service:
                await self._programs.ask_login_shell()
            tasks.start_soon(self._introduce, ending)
            await tasks.start(self._bridge.serve)
            await tasks.start(self._warm.serve)
            if self._settings.state_dir:
                await tasks.start(self._control(self._settings.state_dir).serve)
            await self._changes.recover()
            tasks.start_soon(self.queue.run)
            tasks.start_soon(self._courier.run)
            tasks.start_soon(fence, self.client, self.queue, self._warm)
            tasks.start_soon(self.reconnecting.watch_key)
            tasks.start_soon(self.guards.watch)
            tasks.start_soon(heed_guards, self.guards, self.queue, self._warm, self.client)
            tasks.start_soon(tell_pauses, self.about, self.queue, self.client)
            tasks.start_soon(self._programs.heed_missing)
            if not self._settings.one_shot:
                tasks.start_soon(self._programs.heed_models)
            tasks.start_soon(self._installation.watch)
            again = None if self._settings.one_shot else ending
            tasks.start_soon(heed_installation, self._installation, self.queue, self.client, again)
            tasks.start_soon(self._obeying.run, ending)
            if self._ahead:
                tasks.start_soon(self._obeying.expect, self._ahead)
            tasks.start_soon(self._tell_manager, ending)
            logger.info("Serving", extra={"action": "serve", "profile": self._settings.profile})
            await ending.wanted.wait()
            logger.info(
                "%s",
                f"restarting: {ending.why}" if ending.why else "stopping",
                extra={"action": "stop", "running": len(self.queue.working)},
            )
            # Nothing new is taken, and the backend is told so; the link and its heartbeats go on.
            self.queue.close()
            self._warm.close()
            self.client.beat()
            patience_s = await self._in_peace(ending)
            # Not before: from here on a manager's own time runs.
            self._notify.stopping()
            term_s, flush_s = self._settings.limits.term_timeout_s, self._flush_s(ending)
            ending.at_the_latest(longest_s(patience_s, term_s, flush_s))
            await self._drain(ending, patience_s, flush_s)
            tasks.cancel_scope.cancel()

    async def _in_peace(self, ending: Ending) -> float:
        """Lets runs end before a restart that nobody waits for.

        Returns how many seconds they may still take: none, unless a request came meanwhile.
        """
        if not ending.requested.is_set():
            with anyio.move_on_after(ending.patience_s):
                await first_of(ending.requested.wait, self.queue.idle)
        return self._settings.limits.stop_timeout_s if ending.requested.is_set() else 0.0

    def _flush_s(self, ending: Ending) -> float:
        """How long the last reports may take."""
        return JOB_FLUSH_S if self._job and ending.code != INTERRUPTED else FLUSH_S

    async def _tell_manager(self, ending: Ending) -> None:
        """Ready once all is loaded; from then on alive for as long as this loop gets its turn.

        It is the loop that serves deliveries: if it hangs, the watchdog bites (security.md D-6).
        """
        await self._bridge.warm_up()
        self._notify.ready()
        while True:
            changes = [self.client.changed, self.queue.changed, ending.wanted]
            self._notify.alive(self.about.standing_text(draining=ending.wanted.is_set()))
            with anyio.move_on_after(self._notify.pet_s):
                await any_of([event for event in changes if not event.is_set()])
            await anyio.sleep(STATUS_S)

    def _control(self, state_dir: Path) -> ControlServer:
        async def report() -> dict[str, Any]:
            return {"schema": status.SCHEMA, **self.about.report()}

        answers = {
            "report": report,
            "check": self._checking.check,
            "reload": self.reconnecting.reload,
        }
        return ControlServer(answers, state_dir, self._settings.runtime_dir)

    async def _introduce(self, ending: Ending) -> None:
        """Looks what agent programs there are, tells the person, and the backend."""
        await self._programs.look()
        self._say("Detected runtimes:")
        for runtime in self.about.runtimes:
            self._say(f"  {_line(runtime)}")
        await self._programs.tell()
        host = self._settings.host_id or await self._host_id()
        server = self._settings.server_url
        lasting = " (ephemeral, removed on exit)" if self._job else ""
        self._say(f"Connecting to {server} as host {host or '(the backend will name it)'}{lasting}")
        if self._job:
            await self._job.watch(self.client, self._refusals)
            if not ending.wanted.is_set():  # a second request would leave no time to report
                ending.request(JOB_HUNG)
            return
        if self._settings.one_shot and self.client.standing.state == "unauthorized":
            ending.request(KEY_REJECTED)
        self._programs.want_models()

    async def _host_id(self) -> str | None:
        with anyio.move_on_after(NAMED_S):
            while self.client.connection is None and self.client.standing.attempt == 0:
                await self.client.changed.wait()
        return self.client.connection.welcome.host_id if self.client.connection else None

    async def _drain(self, ending: Ending, patience_s: float, flush_s: float) -> None:
        async with anyio.create_task_group() as tasks:

            async def hurry() -> None:
                await ending.at_once.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(hurry)
            await self.queue.drain(patience_s, another_life=not self._settings.one_shot)
            if self._job:
                await self._flush_job(self._job, flush_s)
            elif self.client.connection:
                with anyio.move_on_after(flush_s):
                    await self.client.flush()
            tasks.cancel_scope.cancel()

    def _refusals(self) -> str:
        return "; ".join(guard.detail for guard in self.guards.refusing)

    async def _flush_job(self, job: OneMessage, flush_s: float) -> None:
        """Nothing of it is on a disk: what is not said now is lost."""
        try:
            with anyio.move_on_after(flush_s):
                await self.client.flush()
        finally:
            job.unsent = self._spool.marks.unsent


def _line(runtime: Runtime) -> str:
    if runtime.problem:
        return f"✗ {runtime.name}  {runtime.problem}"
    version = f" {runtime.version}" if runtime.version else ""
    warning = f"  ! {runtime.warning}" if runtime.warning else ""
    return f"✓ {runtime.name}{version}  ({runtime.path or 'built in'}){warning}"
