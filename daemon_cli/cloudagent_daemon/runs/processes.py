"""Where a run has its processes from, and where they go: kept warm, started, kept again, or ended."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from cloudagent_daemon.runs.launching import Held, Launcher, Wanted
from cloudagent_daemon.runs.ports import Uplink
from cloudagent_daemon.runs.warm import Key, Warm
from cloudagent_daemon.runs.worker import Worker
from cloudagent_daemon.runs.workspace import Workspace
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import RunId

logger = logging.getLogger(__name__)


class Processes:
    """Those of one run.

    Args:
        warm: has those that stay; None: none does.
        tasks: where processes live.
    """

    def __init__(
        self,
        deliver: Deliver,
        run_id: RunId,
        workspace: Workspace,
        launcher: Launcher,
        warm: Warm | None,
        uplink: Uplink,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._deliver = deliver
        self._run_id = run_id
        self._workspace = workspace
        self._launcher = launcher
        self._warm = warm
        self._uplink = uplink
        self._tasks = tasks

    @property
    def _key(self) -> Key:
        return self._deliver.agent.id, self._deliver.message.conversation_id

    @property
    def keeps(self) -> bool:
        """Whether one would stay now."""
        return self._warm is not None and self._warm.keeps

    def stays(self, worker: Worker) -> bool:
        """Whether this one may live longer than the run."""
        return self.keeps and worker.session.capabilities.warm

    async def take_warm(self, session_id: str | None) -> Held | None:
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
                await self.leave(held)
        return so

    async def start(
        self, launch_id: str, session_id: str | None, on_spawn: Callable[[], Awaitable[None]]
    ) -> Held:
        """Starts one; `on_spawn` has it written down first.

        Raises:
            DriverError, SpawnError, UnmaskedError: as `Launcher.live`.
        """
        wanted = Wanted(
            self._workspace,
            self._run_id,
            launch_id,
            session_id,
            on_spawn=on_spawn,
            on_gone=self._uplink.gone if self.keeps else None,
        )
        return await self._tasks.start(self._launcher.live, wanted)

    def keep(self, held: Held, session_id: str | None) -> bool:
        """Keeps it for the conversation's next message; returns whether it does."""
        if self._warm is None or session_id is None:
            return False
        made_of = self._launcher.print_of(self._workspace, session_id)
        return self._warm.put(self._key, held, made_of)

    async def leave(self, held: Held | None) -> None:
        """Has it gone, whatever cancels us."""
        if held:
            with anyio.CancelScope(shield=True):
                await held.worker.close()
