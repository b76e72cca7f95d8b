"""What a run does for its agent's tools, and what is written down of it before it is handed on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from cloudagent_daemon import crash
from cloudagent_daemon.bridge.tools import Asked, ToolError
from cloudagent_daemon.disk import Keeper
from cloudagent_daemon.runs.approvals import Asking, ParkedError
from cloudagent_daemon.runs.picking import Baggage, UnpickedError
from cloudagent_daemon.runs.ports import Uplink, UplinkError
from cloudagent_daemon.runs.report import now
from cloudagent_daemon.runs.workspace import TurnRecord, Workspace
from cloudagent_protocol.attachments import MAX_ATTACHMENTS
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.frames import (
    AgentEntry,
    Decide,
    Deliver,
    FindAgent,
    ListAgents,
    ListMessages,
    Send,
)
from cloudagent_protocol.ids import ConversationId, MessageId, RunId, new_message_id


@dataclass
class _Pending:
    """A question of the agent's, and its answer once there is one."""

    answer: Decide | None = None
    one_at_a_time: anyio.Lock = field(default_factory=anyio.Lock)


class RunDesk:
    """The desk (`bridge.tools.Desk`) of one run.

    Args:
        stir: called with each call of a tool: the agent is alive.
    """

    def __init__(
        self,
        deliver: Deliver,
        run_id: RunId,
        workspace: Workspace,
        uplink: Uplink,
        stir: Callable[[], None],
        keeper: Keeper | None = None,
        *,
        asking: Asking | None = None,
        baggage: Baggage | None = None,
    ) -> None:
        self._keeper = keeper or Keeper()
        #: What is worked on: the message that came last.
        self._deliver = deliver
        #: The deliveries whose turn this is.
        self._deliveries = [deliver.delivery_id]
        self._run_id = run_id
        self._workspace = workspace
        self._uplink = uplink
        self._stir = stir
        self._asking = asking
        self._baggage = baggage
        self._asked: dict[tuple[str, ...], _Pending] = {}
        self._writing = anyio.Lock()
        self.record = TurnRecord(run_id=run_id, launch_id="")
        #: The agent's reason for saying nothing, if it gave one.
        self.silence: str | None = None

    # --- for the run ---

    def go_on_from(self, earlier: TurnRecord) -> None:
        """What an attempt that was cut off has sent counts for this one, and is not lost with it."""
        self.record.sends, self.record.asked = earlier.sends, earlier.asked
        self.record.files = earlier.files
        self.record.worked_since = True
        self.record.failed_launches = earlier.failed_launches

    @property
    def replies(self) -> int:
        return len(self.record.sends) - len(self.record.asked)

    async def publish(self, text: str) -> None:
        """Sends the agent's last words and files, which it has not sent itself."""
        await self._send(text, auto=True, files=self.record.files)

    def leave_behind(self) -> list[Attachment]:
        """What was to go with a message that never came, and is dropped once that is written down."""
        left, self.record.files = self.record.files, []
        return left

    async def drop(self, files: Sequence[Attachment]) -> None:
        """These are not sent."""
        if self._baggage and files:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._baggage.drop, files)

    async def join(self, deliver: Deliver) -> None:
        """One more message is put into the turn; what was sent so far was no answer to it."""
        self._deliveries.append(deliver.delivery_id)
        self.record.worked_since = True
        await self.keep_record()

    def carry(self, deliver: Deliver) -> None:
        """This message was taken up by the turn that goes on now."""
        self._deliveries.append(deliver.delivery_id)
        self.work_on(deliver)

    async def leave(self) -> None:
        """Its agent leaves in good order, and goes on when people have answered.

        Of what was put into the turn that is not written down: without that turn it was cut off.
        """
        await self.keep_record()
        async with self._writing:
            self.record.parked = True
            snapshot = self.record.model_copy(deep=True)
            keep = partial(self._workspace.keep_turn, self._deliveries[0], snapshot)
            await self._keeper.in_thread(keep)

    def work_on(self, deliver: Deliver) -> None:
        """The agent has taken this message up: what it sends from now on answers it."""
        self._deliver = deliver

    async def part(self, deliver: Deliver) -> None:
        """This message was not taken up after all."""
        self._deliveries.remove(deliver.delivery_id)
        async with self._writing:
            await self._keeper.in_thread(self._workspace.forget_turn, deliver.delivery_id)

    async def keep_record(self, *, synced: bool = True) -> None:
        """Writes the record down; not `synced`, it outlives the daemon, not the machine's power."""
        # One at a time: of two threads the later could be the first to finish.
        async with self._writing:
            snapshot = self.record.model_copy(deep=True)
            for delivery in self._deliveries:
                keep = partial(self._workspace.keep_turn, delivery, snapshot, synced=synced)
                await self._keeper.in_thread(keep)

    # --- for the tools ---

    @property
    def memory(self) -> Path:
        return self._workspace.memory

    async def send(
        self, text: str, conversation_id: ConversationId | None, paths: Sequence[str] = ()
    ) -> MessageId:
        here = conversation_id in (None, self._deliver.message.conversation_id)
        if not here:
            # The backend's answer to this says whether the agent belongs there.
            await self.list_messages(conversation_id, 1, None)
        elif why := _too_deep(self._deliver):
            raise ToolError(why)
        self._stir()
        waiting = self.record.files if here else []
        _check_count(len(waiting) + len(paths))
        picked = list[Attachment]()
        try:
            for path in paths:
                picked.append(await self._pick(path, "Nothing was sent"))
        except BaseException:
            await self.drop(picked)
            raise
        return await self._send(text, conversation_id, files=[*waiting, *picked])

    async def attach(self, path: str) -> Attachment:
        self._stir()
        _check_count(len(self.record.files) + 1)
        kept = await self._pick(path, "Nothing was attached")
        alike = (kept.name, kept.sha256)
        if known := next((f for f in self.record.files if (f.name, f.sha256) == alike), None):
            await self.drop([kept])  # such as by a turn that was cut off
            return known
        self.record.files.append(kept)
        self.record.worked_since = True
        await self.keep_record()
        return kept

    async def _pick(self, path: str, otherwise: str) -> Attachment:
        if self._baggage is None:
            raise ToolError(f"{otherwise}: files cannot be sent from here.")
        try:
            kept = await anyio.to_thread.run_sync(self._baggage.pick, path)
        except UnpickedError as error:
            raise ToolError(f"{otherwise}: {error}") from error
        crash.point("after_copy")
        return kept

    async def list_messages(
        self, conversation_id: ConversationId | None, limit: int, before: MessageId | None
    ) -> list[dict[str, Any]]:
        self._stir()
        query = ListMessages(
            agent_id=self._deliver.agent.id,
            conversation_id=conversation_id or self._deliver.message.conversation_id,
            limit=limit,
            before=before,
        )
        try:
            return await self._uplink.list_messages(query)
        except UplinkError as error:
            raise ToolError(str(error)) from error

    def stay_silent(self, reason: str) -> None:
        self._stir()
        self.silence = reason

    async def list_agents(self) -> list[AgentEntry]:
        self._stir()
        try:
            return await self._uplink.list_agents(ListAgents(agent_id=self._deliver.agent.id))
        except UplinkError as error:
            raise ToolError(str(error)) from error

    async def message_agent(self, wanted: str, text: str) -> Asked:
        self._stir()
        query = FindAgent(
            agent_id=self._deliver.agent.id, wanted=wanted, caused_by=self._deliver.message.id
        )
        try:
            found = await self._uplink.find_agent(query)
        except UplinkError as error:
            raise ToolError(f"Nothing was sent to {wanted}: {error}") from error
        here = found.conversation_id == self._deliver.message.conversation_id
        sent = await self._send(text, found.conversation_id, asked=None if here else found.name)
        return Asked(sent, found.name, answers_here=not here, waits_for=found.waits_for)

    async def ask_user(self, question: str, options: list[str]) -> str:
        self._stir()
        if self._asking is None or not self._asking.can_ask:
            raise ToolError("Nobody can be asked from here. Send your question as a message.")
        if self.record.sends and not self.record.worked_since:
            self.record.worked_since = True
            await self.keep_record()
        # A program that gives a call up calls again: it then waits for the same answer.
        pending = self._asked.setdefault((question, *options), _Pending())
        async with pending.one_at_a_time:
            if pending.answer is None:
                try:
                    pending.answer = await self._asking.question(question, options)
                except ParkedError as error:
                    raise ToolError("Your work is paused until somebody has answered.") from error
        said = pending.answer
        if said.answer is None:
            why = f": {said.reason}" if said.reason else ""
            return f"There is no answer{why}. ({said.actor} was asked.) Go on as you think best."
        return f"{said.actor} answered: {said.answer}"

    async def _send(
        self,
        text: str,
        conversation_id: ConversationId | None = None,
        *,
        auto: bool = False,
        asked: str | None = None,
        files: Sequence[Attachment] = (),
    ) -> MessageId:
        here = self._deliver.message.conversation_id
        target = conversation_id or here
        send = Send(
            message_id=new_message_id(),
            agent_id=self._deliver.agent.id,
            conversation_id=target,
            run_id=self._run_id,
            text=text,
            in_reply_to=self._deliver.message.id if target == here else None,
            caused_by=self._deliver.message.id,
            auto_published=auto,
            sent_at=now(),
            attachments=list(files) or None,
        )
        self.record.sends.append(send)
        self.record.files = [one for one in self.record.files if one not in files]
        if asked is not None:
            self.record.asked[send.message_id] = asked
        self.record.worked_since = asked is not None
        await self.keep_record()
        await self._uplink.report(send)
        crash.point("after_send")
        return send.message_id


def _check_count(count: int) -> None:
    if count > MAX_ATTACHMENTS:
        raise ToolError(
            f"A message may have {MAX_ATTACHMENTS} files, and this would be {count}. Send some of them "
            "first, or pack them into one."
        )


def _too_deep(deliver: Deliver) -> str | None:
    """Why a reply to another agent would not be delivered; null if it would, or goes to people."""
    message, limit = deliver.message, deliver.hop_limit
    # What comes from an agent and is worked on where it stands is answered to that agent.
    for_agent = message.author.type == "agent" and message.written_in is None
    if not for_agent or limit is None or message.depth < limit:
        return None
    return (
        f"Nothing was sent: it would be number {message.depth + 1} in a chain of messages that a "
        f"person began, and an agent gets none above {limit}. End your turn; what you write last "
        "is shown to the person."
    )
