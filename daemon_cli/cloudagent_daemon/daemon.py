"""One life of the daemon: what is started in which order, and how it ends. All is composed here."""

import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from cloudagent_daemon import selfcheck, status
from cloudagent_daemon.about import About
from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.config import Settings
from cloudagent_daemon.control_server import ControlServer
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.models import Models
from cloudagent_daemon.drivers.table import detect
from cloudagent_daemon.ending import FLUSH_S, INTERRUPTED, Ending, longest_s, why_no_restart
from cloudagent_daemon.guards import Guards
from cloudagent_daemon.installation import Installation, place
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.link.courier import Courier
from cloudagent_daemon.link.files import Files
from cloudagent_daemon.link.keyfile import KeyFile
from cloudagent_daemon.link.spool import Spool
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_daemon.mask import Masks, UnmaskedError
from cloudagent_daemon.process import Ladder
from cloudagent_daemon.rounds import Rounds
from cloudagent_daemon.runs import limits_file
from cloudagent_daemon.runs.ahead import Ahead
from cloudagent_daemon.runs.breaker import Breaker
from cloudagent_daemon.runs.changes import Changes
from cloudagent_daemon.runs.limits import Limits
from cloudagent_daemon.runs.once import OneMessage
from cloudagent_daemon.runs.picking import copies_of
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_daemon.runs.runner import Runner
from cloudagent_daemon.runs.uplink import LiveRuns, SpoolUplink
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.service import login_path
from cloudagent_daemon.service.notify import Notifier, without_manager
from cloudagent_daemon.tunnel import Tunnel
from cloudagent_protocol.frames import (
    Command,
    CommandOp,
    CommandResult,
    HostReport,
)
from cloudagent_protocol.resources import Runtime
from cloudagent_protocol.version import DISTRIBUTION

logger = logging.getLogger(__name__)

#: The last reports of a job whose turn is over: it has no next life, and a connection that broke may
#: come back meanwhile. Whoever ends a job early gives it seconds, as any other daemon has.
JOB_FLUSH_S: Final = 60.0
#: How long a one-shot daemon waits for its host's name before it goes on without.
NAMED_S: Final = 5.0
#: What is told of the standing, to the service manager and in the file for `status`, comes no more often.
STATUS_S: Final = 0.2
KEY_CHECK_S: Final = 1.0
#: How often a program is looked for that a message waits for.
LOOK_S: Final = 30.0
#: What runs may still take when another version is installed: nobody waits for it, and a run that is
#: cut off must be resumed.
UPGRADE_S: Final = 300.0

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
        self._tunnel = tunnel
        self._ladder = Ladder(settings.limits.term_timeout_s)
        self._notify = Notifier(settings.environment)
        #: For children. Its PATH is replaced once, before the first of them is started.
        self._environment = without_manager(settings.environment)
        settings = replace(settings, environment=self._environment)
        self._settings = settings
        #: When what no event tells of is looked at.
        self.rounds = Rounds()
        self._installation = Installation(place(), self._environment, rounds=self.rounds)
        self._spool = spool
        self._say = say
        self._job = job
        live = LiveRuns()
        key, stored_in = settings.machine_key, settings.config_file
        self._key = (
            KeyFile(stored_in, settings.server_url, settings.host_id, key) if stored_in else None
        )
        self.guards = Guards(
            settings.limits, [settings.runtime_dir, settings.agents_dir], rounds=self.rounds
        )
        keeper = Keeper(self.guards.trouble)
        self.client = LinkClient(
            WebSocketTransport(
                way,
                self._key.current if self._key else always(key),
                tunnel.ready if tunnel else None,
            ),
            spool,
            # Asked once there is a connection, when `about` is long there.
            lambda: self.about.hello(),
            lambda: self.about.heartbeat(),
            keeper=keeper,
            rounds=self.rounds,
        )
        self._uplink = SpoolUplink(spool, self.client, live, keeper)
        self._masks = Masks(settings)
        self._models, self._models_wanted = Models(), anyio.Event()
        self._bridge = Bridge(settings.state_dir, settings.runtime_dir, keeper)
        uplink = job.uplink(self._uplink) if job else self._uplink
        self._warm = Warm(0 if job else settings.limits.warm_s, settings.limits.max_warm)
        files = Files(
            way,
            self._key.current if self._key else always(key),
            tunnel.ready if tunnel else None,
        )
        self._courier = Courier(spool, files, copies_of(settings), self.client, keeper)
        self._changes = Changes(settings, self._masks, uplink)
        self._runner = runner = Runner(
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
        self.queue = RunQueue(
            spool,
            job.runs(runner) if job else runner,
            uplink,
            max_runs=settings.limits.max_runs,
            admit=self.guards.admit,
            breaker=Breaker(time.monotonic, settings.limits.crash_pause_s),
            limits=Limits(
                self._environment,
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
            key=self._key,
            tunnel=tunnel,
            warm=self._warm,
        )

    async def run(self, ending: Ending) -> None:
        """Serves until an end is wanted, then drains."""
        self._ladder.hurry = ending.at_once
        async with anyio.create_task_group() as tasks:
            # The connection comes first: a slow start must not look like a dead machine.
            tasks.start_soon(self.client.run)
            tasks.start_soon(self.rounds.run)
            if self._tunnel:
                tasks.start_soon(self._watch_tunnel, self._tunnel)
            if self._settings.service:
                await self._ask_login_shell()
            tasks.start_soon(self._introduce, ending)
            await tasks.start(self._bridge.serve)
            await tasks.start(self._warm.serve)
            if self._settings.state_dir:
                await tasks.start(self._control(self._settings.state_dir).serve)
            await self._changes.recover()
            tasks.start_soon(self.queue.run)
            tasks.start_soon(self._courier.run)
            tasks.start_soon(self._fence)
            if self._key:
                tasks.start_soon(self._watch_key, self._key)
            tasks.start_soon(self.guards.watch)
            tasks.start_soon(self._heed_guards)
            tasks.start_soon(self._heed_pauses)
            tasks.start_soon(self._heed_missing)
            if not self._settings.one_shot:
                tasks.start_soon(self._heed_models)
            tasks.start_soon(self._installation.watch)
            tasks.start_soon(self._heed_installation, ending)
            tasks.start_soon(self._obey_people, ending)
            if ahead := self._runner.ahead:
                tasks.start_soon(self._expect, ahead)
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

    async def _heed_installation(self, ending: Ending) -> None:
        """Another version leads to a restart; with none that works, nothing is started."""
        while True:
            installation = self._installation
            changed = installation.changed
            self.queue.hold("installation", held=bool(installation.holds))
            self.client.beat()
            if installation.state == "changed" and not self._settings.one_shot:
                ending.restart(installation.detail, UPGRADE_S)
            await changed.wait()

    async def _obey_people(self, ending: Ending) -> None:
        """What people ask of this daemon at the page, one after the other."""
        while True:
            command = await self.client.commands.take()
            said = {"action": "command", "op": command.op[:50], "actor": command.actor[:100]}
            logger.info("%s asks for %s", said["actor"], said["op"], extra=said)
            match command.op:
                case CommandOp.RESCAN:
                    await self._rescan(command)
                case CommandOp.RESTART:
                    await self._restart(command, ending)
                case _:
                    error = f"this daemon ({DISTRIBUTION}) knows no {said['op']!r}"
                    await self.client.reply(CommandResult(id=command.id, error=error))

    async def _expect(self, ahead: Ahead) -> None:
        """Where a person looks, the agent's process may be started before there is a message."""
        while True:
            expected = await self.client.commands.expected()
            if self.queue.would_begin(expected.agent, expected.conversation_id):
                await ahead.start(expected)

    async def _rescan(self, command: Command) -> None:
        if self._settings.service:
            await self._ask_login_shell()  # what was installed since may be on another PATH
        await self._look_for_runtimes()
        self.queue.lift()  # a person has had a look: who was left alone is tried at once
        await self.queue.keep_limits()
        await self._uplink.report(HostReport(runtimes=self.about.runtimes))
        with anyio.move_on_after(FLUSH_S):
            await self.client.flush()  # so that who asked sees it
        await self.client.reply(CommandResult(id=command.id))
        self._models_wanted.set()

    async def _restart(self, command: Command, ending: Ending) -> None:
        unusable = self._installation.detail if self._installation.holds else ""
        why_not = why_no_restart(ending, one_shot=self._settings.one_shot, unusable=unusable)
        await self.client.reply(CommandResult(id=command.id, error=why_not))
        if why_not is None:
            ending.restart(f"{command.actor} asked for it", self._settings.limits.stop_timeout_s)

    async def _fence(self) -> None:
        """Starts nothing while another daemon has the host, or the key is no good.

        Once the host is removed, nothing goes on either; what it has to tell stays on the disk.
        """
        while True:
            changed = self.client.changed
            self.queue.hold("superseded", held=self.client.superseded)
            self.queue.hold("unauthorized", held=self.client.standing.state == "unauthorized")
            self.queue.hold("revoked", held=self.client.revoked)
            barred = self.client.superseded or self.client.revoked
            # Those that work now, too: their turns end later than this.
            self._warm.bar("this daemon has no more to do with its host" if barred else None)
            if self.client.revoked:
                self.queue.stop_all("the backend, where this machine's key was revoked")
            await changed.wait()

    async def _watch_key(self, key: KeyFile) -> None:
        """While the key is rejected, looks for another one; no event tells of it."""
        while True:
            changed = self.client.changed
            rejected = self.client.standing.state == "unauthorized"
            if rejected and await key.renewed():
                self.client.reconnect()
            with anyio.move_on_after(KEY_CHECK_S if rejected else math.inf):
                await changed.wait()

    async def _watch_tunnel(self, tunnel: Tunnel) -> None:
        """Once the way is there again, nothing waits for the end of a backoff."""
        while True:
            changed = tunnel.changed
            if tunnel.standing.state == "up" and self.client.standing.next_at is not None:
                self.client.reconnect()
            await changed.wait()

    async def reload(self) -> dict[str, Any]:
        """Takes another key over, if there is one. No run is touched."""
        renewed = await self._key.renewed() if self._key else False
        if renewed or self.client.standing.state != "connected":
            self.client.reconnect()
        return {
            "schema": "cloudagent.reload/1",
            "key_renewed": renewed,
            "note": self._key.note if self._key else "",
        }

    async def _heed_guards(self) -> None:
        """While the machine lacks something, nothing is started on it."""
        while True:
            changed, refusing = self.guards.changed, self.guards.refusing
            self.queue.hold("guards", held=bool(refusing))
            self.client.beat()
            if any(guard.name == "memory" for guard in refusing):
                self._warm.clear("this machine is short of memory")
            for guard in refusing:
                logger.warning("%s", guard.detail, extra={"action": guard.state})
            await changed.wait()

    async def _heed_pauses(self) -> None:
        """The backend is told at once of an agent that is left alone, and of the end of that."""
        said = self.about.pauses()
        while True:
            changed = self.queue.changed
            if said != (said := self.about.pauses()):
                self.client.beat()
            await changed.wait()

    async def _heed_missing(self) -> None:
        """While a message waits for a program that is not there, it is looked for, now and again."""
        while True:
            changed = self.queue.changed
            waits = any(map(self.queue.order.queued, self.queue.missing.all()))
            if waits:
                before = self.about.runtimes
                await self._look_for_runtimes()
                if self.about.runtimes != before:
                    await self._uplink.report(HostReport(runtimes=self.about.runtimes))
                await anyio.sleep(LOOK_S)  # no event tells of a program that somebody installs
            else:
                await changed.wait()

    async def _ask_login_shell(self) -> None:
        """A service manager's PATH does not know where people install coding agents."""
        shell = login_path.shell_of(self._environment)
        try:
            mask = await self._masks.of_run()
            found = await login_path.ask(shell, self._environment, mask=mask)
        except UnmaskedError as error:
            found = login_path.LoginPath(shell, problem=str(error))
        if found.problem:
            logger.warning("PATH as installed: %s", found.problem, extra={"action": "path"})
        installed = self._environment.get("PATH", "").split(os.pathsep)
        self._environment["PATH"] = login_path.joined(found.entries, installed)

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

        answers = {"report": report, "check": self.check, "reload": self.reload}
        return ControlServer(answers, state_dir, self._settings.runtime_dir)

    async def check(self) -> dict[str, Any]:
        """Tries everything once, from where the daemon lives; the backend learns what was found."""
        environment = self._settings.environment
        await self._look_for_runtimes()
        return {
            "schema": "cloudagent.check/1",
            "profile": self._settings.profile,
            "daemon_version": DISTRIBUTION,
            "program": sys.argv[0],
            "python": sys.executable,
            "pid": os.getpid(),
            "path": environment.get("PATH", "").split(os.pathsep),
            "runtimes": [runtime.model_dump() for runtime in self.about.runtimes],
            "tools": await selfcheck.tools_start(
                self._bridge, self._masks, self._settings.runtime_dir, environment
            ),
            "backend": await self._round_trip(),
        }

    async def _round_trip(self) -> dict[str, Any]:
        async def say() -> None:
            await self._uplink.report(HostReport(runtimes=self.about.runtimes))
            await self.client.flush()

        if self.client.connection is None:
            return selfcheck.failed(self.client.standing.detail or "not connected yet")
        return await selfcheck.round_trip(say)

    async def _introduce(self, ending: Ending) -> None:
        """Looks what agent programs there are, tells the person, and the backend."""
        await self._look_for_runtimes()
        self._say("Detected runtimes:")
        for runtime in self.about.runtimes:
            self._say(f"  {_line(runtime)}")
        await self._uplink.report(HostReport(runtimes=self.about.runtimes))
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
        self._models_wanted.set()

    async def _look_for_runtimes(self) -> None:
        try:
            mask = await self._masks.of_run()
        except (UnmaskedError, OSError) as error:
            self._say(f"✗ {error}")
        else:
            found = await detect(self._settings.environment, mask)
            self.about.runtimes = self._models.added(found)
            self.queue.found(self.about.runtimes)

    async def _heed_models(self) -> None:
        """Told after the programs themselves, which take seconds to say what they offer."""
        while True:
            await self._models_wanted.wait()
            self._models_wanted = anyio.Event()
            with suppress(UnmaskedError, OSError):  # was said when the programs were looked for
                mask, before = await self._masks.of_run(), self.about.runtimes
                await self._models.ask(before, self._settings.environment, mask)
                self.about.runtimes = self._models.added(self.about.runtimes)
                if self.about.runtimes != before:
                    await self._uplink.report(HostReport(runtimes=self.about.runtimes))

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


async def any_of(events: Iterable[anyio.Event]) -> None:
    await first_of(*(event.wait for event in events))


async def first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Returns when the first of them does."""
    async with anyio.create_task_group() as tasks:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            tasks.cancel_scope.cancel()

        for one in waits:
            tasks.start_soon(wait, one)


def _line(runtime: Runtime) -> str:
    if runtime.problem:
        return f"✗ {runtime.name}  {runtime.problem}"
    version = f" {runtime.version}" if runtime.version else ""
    warning = f"  ! {runtime.warning}" if runtime.warning else ""
    return f"✓ {runtime.name}{version}  ({runtime.path or 'built in'}){warning}"
