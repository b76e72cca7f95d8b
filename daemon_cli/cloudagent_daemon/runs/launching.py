"""Starts an agent's process, with its folder, its place at the bridge, and what it must not see."""

import logging
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from cloudagent_daemon import crash, footprint
from cloudagent_daemon.bridge.server import Bridge, Session
from cloudagent_daemon.bridge.tools import NAMES
from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers import keys
from cloudagent_daemon.drivers.base import Command, DriverSession, Job, ToolServer
from cloudagent_daemon.drivers.table import driver_named
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.process import Child, Ladder, SpawnError
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.environment import child_environment
from cloudagent_daemon.runs.report import now
from cloudagent_daemon.runs.worker import Plan, Worker
from cloudagent_daemon.runs.workspace import SpawnRecord, Workspace
from cloudagent_protocol.ids import RunId
from cloudagent_protocol.resources import AgentSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A process that is to be started."""

    workspace: Workspace
    #: The run that it is started for.
    run_id: RunId
    launch_id: str
    #: The session to resume, or None for a new one.
    session_id: str | None
    #: Writes down that it is about to be; nothing is started before that is on the disk.
    on_spawn: Callable[[], Awaitable[None]]
    #: Told once it is gone with all that it started.
    on_gone: Callable[[str], Awaitable[None]] | None = None

    @property
    def agent(self) -> AgentSpec:
        return self.workspace.agent


@dataclass(frozen=True)
class Held:
    """A living process and its place at the bridge."""

    worker: Worker
    place: Session

    def tool_servers(self) -> set[int]:
        """Its processes that talk with the bridge."""
        return set(self.place.peers.values())


#: Of what a process was made: with anything else it would be another one.
Print = tuple[object, ...]


class Launcher:
    """Starts processes; what a daemon's life has settled once is in its arguments."""

    def __init__(
        self, settings: Settings, bridge: Bridge, masks: Masks, keeper: Keeper, ladder: Ladder
    ) -> None:
        self._settings = settings
        self._bridge = bridge
        self._masks = masks
        self._keeper = keeper
        self._ladder = ladder

    async def live(self, wanted: Wanted, *, task_status: anyio.abc.TaskStatus[Held]) -> None:
        """A process's life; started with it as soon as there is one, and back when it is gone.

        Raises:
            DriverError: there is nothing to start.
            SpawnError: it could not be started.
            UnmaskedError: it would have seen what it must not.
        """
        async with self._folder() as folder, self._bridge.session(None, folder) as place:
            worker = Worker(await self._plan(wanted, folder, place))
            spawn = SpawnRecord(
                run_id=wanted.run_id,
                launch_id=wanted.launch_id,
                argv=list(worker.plan.command.argv),
                cwd=str(worker.plan.cwd),
                started_at=now(),
            )

            async def started(child: Child) -> None:
                place.admit(child.pid)
                spawn.pid = child.pid
                await anyio.to_thread.run_sync(_keep_spawn, wanted.workspace, spawn)
                task_status.started(Held(worker, place))

            crash.point("before_spawn")
            await wanted.on_spawn()
            try:
                await worker.run(started)
            except SpawnError as error:
                spawn.problem = str(error)
                raise
            finally:
                spawn.exit_code, spawn.stderr_tail = worker.exit_code, worker.stderr_tail
                spawn.ended_at = now()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_keep_spawn, wanted.workspace, spawn)
        if wanted.on_gone:
            await wanted.on_gone(wanted.launch_id)

    def print_of(self, workspace: Workspace, session_id: str) -> Print:
        """What a process of this agent's would be made of now, for that session.

        Its model and permission mode are no part of it: it may be given others (`Worker.adjust`).
        """
        changes = {"hang_timeout_s", "model", "mode"}
        agent = workspace.agent.model_dump(mode="json", exclude=changes)
        return (
            session_id,
            agent,
            self._system_prompt(workspace),
            workspace.place,
            dict(self._settings.environment),
        )

    async def _plan(self, wanted: Wanted, folder: Path, place: Session) -> Plan:
        job = self._job(wanted, folder, place)
        mask = await self._masks.of_run(wanted.workspace.home, job.run_dir, place.socket_path)
        session = driver_named(wanted.agent.driver).open(job)
        place.reserved = session.capabilities.reserves
        command = await self._keeper.in_thread(_prepared, session)
        return Plan(
            session=session,
            command=command,
            env=await self._environment(wanted.agent, command),
            cwd=job.cwd,
            launch_id=wanted.launch_id,
            tools_listed=place.listed,
            mask=mask,
            memory_limit=await anyio.to_thread.run_sync(footprint.most, self._settings.limits),
            ladder=self._ladder,
        )

    def _job(self, wanted: Wanted, folder: Path, place: Session) -> Job:
        space = wanted.workspace
        return Job(
            agent=wanted.agent,
            home=space.home,
            cwd=space.cwd,
            sessions_dir=space.sessions,
            run_dir=folder,
            tools=ToolServer(place.command, place.socket_path, place.token_file, NAMES),
            system_prompt=self._system_prompt(space),
            session_id=wanted.session_id,
            new_session_id=str(uuid.uuid4()),
            environment=self._settings.environment,
        )

    def _system_prompt(self, space: Workspace) -> str:
        return prompts.system_prompt(
            space.agent,
            cwd=space.cwd,
            memory=space.memory,
            notes=space.notes,
            branch=space.place.branch if space.place else None,
            root=space.place.root if space.place else "",
        )

    async def _environment(self, agent: AgentSpec, command: Command) -> dict[str, str]:
        daemon = self._settings.environment
        # Where its login is may be a matter of the agent's own environment, which is added in any case.
        stray = await anyio.to_thread.run_sync(keys.stray, agent.driver, {**daemon, **agent.env})
        return child_environment(
            {name: value for name, value in daemon.items() if name not in stray},
            inherits=command.inherits,
            agent=agent.env,
            command=command.env,
            secrets=(self._settings.machine_key,),
        )

    @asynccontextmanager
    async def _folder(self) -> AsyncGenerator[Path]:
        """A folder that lives as long as the process."""
        parent = self._settings.runtime_dir
        folder = await self._keeper.in_thread(_make_folder, parent)
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove_folder, folder)


def _prepared(session: DriverSession) -> Command:
    """The driver's command, its files written. Blocks: finding a program looks at the disk."""
    command = session.launch()
    for path, text in command.files.items():
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    return command


def _keep_spawn(workspace: Workspace, record: SpawnRecord) -> None:
    """For a person who looks; nothing waits for it."""
    try:
        workspace.keep_spawn(record)
    except OSError as error:
        logger.warning("no last-spawn.json: %s", error, extra={"action": "keep_spawn"})


def _make_folder(parent: Path) -> Path:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=parent))


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
