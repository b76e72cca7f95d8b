"""Processes that are started before there is a message: a person looks at their conversation.

Such a process is given nothing: it has read its session, and waits as a warm one does (warm.py). It is
written down as every other, so that the daemon's next life finds it, but it is no delivery's and no
run's: nobody hears of it, and if it does not come about the message starts a process as ever.
"""

import logging
import uuid
from functools import partial

import anyio.to_thread

from cloudagent_daemon.config import Settings
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.base import DriverError
from cloudagent_daemon.drivers.table import DRIVERS
from cloudagent_daemon.mask import UnmaskedError
from cloudagent_daemon.process import SpawnError
from cloudagent_daemon.runs.launching import Held, Launcher, Print, Wanted
from cloudagent_daemon.runs.ports import Uplink
from cloudagent_daemon.runs.trees import take_known, wants_tree
from cloudagent_daemon.runs.warm import Warm
from cloudagent_daemon.runs.workspace import NewerRecordError, Workspace
from cloudagent_protocol.frames import Expect
from cloudagent_protocol.ids import ConversationId, new_run_id

logger = logging.getLogger(__name__)


class Ahead:
    """Starts them, one at a time."""

    def __init__(
        self, settings: Settings, launcher: Launcher, warm: Warm, uplink: Uplink, keeper: Keeper
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._warm = warm
        self._uplink = uplink
        self._keeper = keeper

    async def start(self, expected: Expect) -> bool:
        """Returns whether a process waits for this conversation now that did not before."""
        driver = DRIVERS.get(expected.agent.driver)
        stays_s = self._settings.limits.expect_s
        if not stays_s or driver is None or not driver.warm:
            return False
        space = Workspace(self._settings.agents_dir, expected.agent)
        key = expected.agent.id, expected.conversation_id
        about = {"action": "ahead", "agent_id": expected.agent.id}
        try:
            if not await anyio.to_thread.run_sync(_has_place, space, expected.conversation_id):
                logger.info("no process is started ahead: there is no work tree yet", extra=about)
                return False
            start = partial(self._start, space, expected.conversation_id)
            started = await self._warm.start_ahead(key, stays_s, start)
        except (DriverError, SpawnError, UnmaskedError, NewerRecordError, OSError) as error:
            # Whoever sends a message is told; until then nobody has asked for anything.
            logger.info("no process is started ahead: %s", error, extra=about)
            return False
        if started:
            logger.info("a process is started ahead of a message", extra=about)
        return started

    async def _start(self, space: Workspace, conversation_id: ConversationId) -> tuple[Held, Print]:
        session_id = await anyio.to_thread.run_sync(_session, space, conversation_id)
        launch_id = uuid.uuid4().hex
        wanted = Wanted(
            space,
            new_run_id(),
            launch_id,
            session_id,
            on_spawn=partial(self._uplink.waits, launch_id, 0, 0.0),
            on_gone=self._uplink.gone,
        )
        # Before: what changes meanwhile makes it another one than the message will want.
        made_of = self._launcher.print_of(space, session_id or "")
        held: Held = await self._warm.tasks.start(self._launcher.live, wanted)
        held.worker.attend()
        child = held.worker.child
        await self._uplink.waits(launch_id, child.pid, child.started_at)
        return held, made_of


def _has_place(space: Workspace, conversation_id: ConversationId) -> bool:
    """Settles it where the message's run will work, if that is there. Blocks.

    To make a work tree is a write to the repository, and nobody has asked for anything yet.
    """
    return not wants_tree(space) or take_known(space, conversation_id)


def _session(space: Workspace, conversation_id: ConversationId) -> str | None:
    """The session that a message would resume. Blocks."""
    space.prepare()
    record = space.session_of(conversation_id)
    return record.session_id if record and space.resumable(record) else None
