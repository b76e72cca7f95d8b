"""What people do with messages, runs and files. Each is one transaction; see `transactions.py`."""

import sqlite3
import time

from anyio.lowlevel import checkpoint

from cloudagent_backend.delivery import (
    approvals,
    budget_decisions,
    decisions,
    expecting,
    ladder,
    queueing,
    removing,
    resuming,
    stopping,
    waiting,
)
from cloudagent_backend.delivery.decisions import Decided
from cloudagent_backend.delivery.queueing import Submission, Submitted
from cloudagent_backend.delivery.transactions import Once, Transactions, as_it_is
from cloudagent_backend.store import agents
from cloudagent_backend.store.approvals import ApprovalRow
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.frames import (
    Expect,
)
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    ConversationId,
    HostId,
    MessageId,
    RunId,
    UserId,
)
from cloudagent_protocol.resources import (
    Agent,
    Approval,
    ApprovalAnswer,
    Chain,
    ChainDecide,
    Message,
    Run,
    Trace,
)


class PeoplesVerbs(Transactions):
    """For the API, on a person's behalf."""

    async def submit(self, submission: Submission, once: Once[Submitted] = as_it_is) -> Message:
        """Take a message in; it is on the disk when this returns.

        `once` goes around the work, in its transaction: it is the caller's idempotency.

        Raises:
            Refused: see `queueing.submit`.
        """

        def work(c: sqlite3.Connection) -> Submitted:
            way = None if submission.host_id else self._way
            done = queueing.submit(c, submission, self._backlog_cap, way)
            # A machine that is here need not wait for the dispatcher and one more commit.
            self._lease_ready(c, done.hosts)
            return done

        done = await self._write(once(work), "submit", repeatable=True)
        for one in done.gone:
            self._hub.push(one.row.host_id, one.frame)
        for host_id in self._with_helpers(done.hosts):
            self._hub.hint(host_id)
        self._fanout.notify(submission.user_id)
        if done.gone:
            await checkpoint()  # it goes out before the answer to its sender is put together
        return done.message

    async def cancel(self, user_id: UserId, actor: str, message_id: MessageId) -> Trace:
        """Cancel what of the message is queued, interrupt what a machine has.

        Raises:
            Refused: there is no such message, or it is all over.
        """

        def work(c: sqlite3.Connection) -> tuple[Trace, set[HostId]]:
            message, rows = stopping.cancel(c, user_id, actor, message_id)
            return ladder.trace_of(c, user_id, message), {row.host_id for row in rows}

        trace, told = await self._database.write(work)
        self._changed(user_id, told)
        return trace

    async def edit(self, user_id: UserId, actor: str, message_id: MessageId, text: str) -> Message:
        """Change what a message says while it waits in the queue.

        Raises:
            Refused: see `waiting.edit`.
        """
        message = await self._database.write(
            lambda c: waiting.edit(c, user_id, actor, message_id, text)
        )
        self._fanout.notify(user_id)
        return message

    async def move(
        self,
        user_id: UserId,
        message_id: MessageId,
        before: MessageId | None,
        once: Once[Message] = as_it_is,
    ) -> Message:
        """Give a message another place while it waits in the queue.

        Raises:
            Refused: see `waiting.move`.
        """
        message = await self._database.write(
            once(lambda c: waiting.move(c, user_id, message_id, before))
        )
        self._fanout.notify(user_id)
        return message

    async def remove_file(self, user_id: UserId, attachment_id: AttachmentId) -> str:
        """Take a file away; returns where its bytes lie, which are nobody's then.

        Raises:
            Refused: see `removing.remove_file`.
        """
        row = await self._database.write(lambda c: removing.remove_file(c, user_id, attachment_id))
        self._fanout.notify(user_id)
        return row.sha256

    async def retry(
        self, user_id: UserId, actor: str, message_id: MessageId, once: Once[Trace] = as_it_is
    ) -> Trace:
        """Deliver a message again where its last delivery failed, died or was cancelled.

        Raises:
            Refused: see `queueing.retry`.
        """
        told: set[HostId] = set()

        def work(c: sqlite3.Connection) -> Trace:
            done = queueing.retry(c, user_id, actor, message_id, self._backlog_cap)
            told.update(done.hosts)
            self._lease_ready(c, done.hosts)
            return ladder.trace_of(c, user_id, done.message)

        trace = await self._write(once(work), "submit")
        self._changed(user_id, set(self._with_helpers(told)))
        return trace

    async def go_on(
        self, user_id: UserId, actor: str, message_id: MessageId, once: Once[Trace] = as_it_is
    ) -> Trace:
        """Let a message go on that a rate limit has cut off, as soon as that is over.

        Raises:
            Refused: see `resuming.go_on`.
        """
        told: set[HostId] = set()

        def work(c: sqlite3.Connection) -> Trace:
            done = resuming.go_on(c, user_id, actor, message_id)
            told.update(done.hosts)
            self._lease_ready(c, done.hosts)
            return ladder.trace_of(c, user_id, done.message)

        trace = await self._write(once(work), "submit")
        self._changed(user_id, set(self._with_helpers(told)))
        return trace

    async def interrupt(
        self,
        user_id: UserId,
        actor: str,
        run_id: RunId,
        once: Once[RunRow] = as_it_is,
        *,
        now: bool = False,
    ) -> Run:
        """Ask the machine to stop the run; `now`: to end it at once.

        Raises:
            Refused: there is no such run, or it is over.
        """
        run = await self._database.write(
            once(lambda c: stopping.interrupt(c, user_id, actor, run_id, now=now))
        )
        self._changed(user_id, {run.host_id})
        return run.resource

    async def expect(self, user_id: UserId, conversation_id: ConversationId) -> None:
        """Tell the machine, if it is here, that a person may be about to write.

        Raises:
            Refused: there is no such conversation.
        """
        agent = await self._database.read(lambda c: expecting.expected(c, user_id, conversation_id))
        if agent and self._is_open(agent.host_machine_id):
            frame = Expect(agent=agents.spec(agent), conversation_id=conversation_id)
            self._hub.expect(agent.host_machine_id, frame, time.monotonic())

    async def decide(
        self,
        user_id: UserId,
        by: str,
        chain_id: MessageId,
        body: ChainDecide,
        once: Once[Decided] = as_it_is,
    ) -> Chain:
        """Let a paused chain go on, or stop it.

        Raises:
            Refused: there is no such chain, or somebody has answered already.
        """

        def work(c: sqlite3.Connection) -> Decided:
            decided = decisions.decide(c, user_id, by, chain_id, body, self._limits)
            self._lease_ready(c, decided.hosts)
            return decided

        decided = await self._write(once(work), "decide")
        self._changed(user_id, decided.hosts)
        return decided.chain

    async def answer(
        self,
        user_id: UserId,
        by: str,
        approval_id: str,
        body: ApprovalAnswer,
        once: Once[ApprovalRow] = as_it_is,
    ) -> Approval:
        """Decide what an agent asks; on the disk, and on its way to the machine, when this returns.

        Raises:
            Refused: see `approvals.answer`.
        """
        decided = await self._write(
            once(lambda c: approvals.answer(c, user_id, by, approval_id, body)), "decide"
        )
        self._changed(user_id, {decided.host_id})
        return decided.resource

    async def decide_budget(
        self,
        user_id: UserId,
        by: str,
        agent_id: AgentId,
        body: ChainDecide,
        once: Once[Agent] = as_it_is,
    ) -> Agent:
        """Let an agent go on that has used up its budget of the day, or stop what waits for it.

        Raises:
            Refused: there is no such agent, or somebody has answered already.
        """
        told: set[HostId] = set()

        def work(c: sqlite3.Connection) -> Agent:
            agent, hosts_of = budget_decisions.decide(c, user_id, by, agent_id, body)
            told.update(hosts_of)
            self._lease_ready(c, hosts_of)
            return agents.resource(c, agent)

        agent = await self._write(once(work), "decide")
        self._changed(user_id, told)
        return agent
