"""Which session of its program a run goes on with, and what a fresh one is told of an earlier one."""

from typing import Final

import anyio

from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.drivers.table import DRIVERS
from cloudagent_daemon.runs import prompts
from cloudagent_daemon.runs.ports import Uplink, UplinkError
from cloudagent_daemon.runs.workspace import SessionRecord, Workspace
from cloudagent_protocol.frames import Deliver, ListMessages

#: How long a run may wait for the backend to tell what was said before.
_HISTORY_S: Final = 5.0


class Resuming:
    """The session of one run's conversation.

    Args:
        known: what the disk knew of it when the run began.
    """

    def __init__(
        self,
        deliver: Deliver,
        workspace: Workspace,
        known: SessionRecord | None,
        uplink: Uplink,
        keeper: Keeper,
    ) -> None:
        self._deliver = deliver
        self._workspace = workspace
        self._known = known
        self._uplink = uplink
        self._keeper = keeper
        #: The session that the disk knows this conversation by.
        self._kept: str | None = None

    async def chosen(self) -> tuple[str | None, str]:
        """The session to resume, or None and what to tell a fresh one of an earlier one."""
        if self._known is None:
            return None, ""
        if not self._workspace.resumable(self._known) or not self._driver_resumes():
            return None, await self.handoff()
        self._kept = self._known.session_id
        return self._known.session_id, ""

    def _driver_resumes(self) -> bool:
        driver = DRIVERS.get(self._deliver.agent.driver)
        return driver is None or driver.resumes

    async def handoff(self) -> str:
        """What was said in the conversation before, in words for a fresh session."""
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

    async def keep(self, session_id: str | None) -> None:
        """Has the conversation's next run find this session; None: there is nothing to keep."""
        if session_id is None or session_id == self._kept:
            return
        self._kept = session_id
        conversation = self._deliver.message.conversation_id
        await self._keeper.in_thread(self._workspace.keep_session, conversation, session_id)
