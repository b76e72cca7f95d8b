"""The verbs of delivery, for the API. Each is one transaction; hints and wake-ups follow its commit.

What happens inside the transactions: `sending.py` (down), `reports.py` (up), `handshake.py`.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Final, TypeAlias, TypeVar

from anyio.lowlevel import checkpoint

from cloudagent_backend import crash
from cloudagent_backend.delivery import (
    approvals,
    budget_decisions,
    decisions,
    expecting,
    handshake,
    ladder,
    lending,
    relay,
    removing,
    reports,
    resuming,
    sending,
    waiting,
)
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.decisions import Decided
from cloudagent_backend.delivery.fanout import Fanout
from cloudagent_backend.delivery.handshake import Greeting
from cloudagent_backend.delivery.hints import Hints
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.relay import Relay
from cloudagent_backend.delivery.reports import Applied, Reported
from cloudagent_backend.delivery.sending import ReadyHost, Submission, Submitted
from cloudagent_backend.delivery.straight import Way
from cloudagent_backend.store import agents, deliveries, hosts, messages, usage
from cloudagent_backend.store.agents import AgentRow
from cloudagent_backend.store.approvals import ApprovalRow
from cloudagent_backend.store.database import Database
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_backend.store.hosts import HostRow
from cloudagent_backend.store.runs import RunRow
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Finished, Started, Text
from cloudagent_protocol.frames import (
    Ack,
    AgentEntry,
    Delta,
    Expect,
    FindAgent,
    FoundAgent,
    Heartbeat,
    Hello,
    ListAgents,
    ListMessages,
    RunReport,
)
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    ConversationId,
    DeliveryId,
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

T = TypeVar("T")
#: Wraps the work of one transaction.
Work: TypeAlias = Callable[[sqlite3.Connection], T]
Once: TypeAlias = Callable[[Work[T]], Work[T]]
_DEFAULT: Final = Limits()
#: Deliveries of a removed host that one transaction ends.
_BURIED_AT_ONCE: Final = 500


def _as_it_is(work: Work[T]) -> Work[T]:
    return work


def _makes_room(frame: Reported) -> bool:
    """Whether it leaves the host's window shorter: only an end does."""
    return isinstance(frame, RunReport) and isinstance(frame.event, Finished)


def _steps(frames: Sequence[Reported]) -> Iterator[crash.Step]:
    """What a group of reports is made of."""
    for frame in frames:
        if isinstance(frame, Ack):
            yield "received"
        elif isinstance(frame, RunReport) and isinstance(frame.event, Finished):
            yield "end"
        elif not isinstance(frame, Delta):
            yield "report"


def _passes(frame: Reported) -> bool:
    return isinstance(frame, Ack | Delta | Heartbeat)


def _only_acks(frames: Sequence[Reported]) -> bool:
    return all(isinstance(frame, Ack) for frame in frames)


def _taking_acks(groups: Sequence[tuple[Machine, Sequence[Reported]]]) -> Work[Applied]:
    """What `reports.apply` does for each group, of groups that only acknowledge."""
    acks = [
        (machine, max(frame.seq for frame in frames if isinstance(frame, Ack)))
        for machine, frames in groups
    ]

    def work(c: sqlite3.Connection) -> Applied:
        reports.acked(c, acks)
        crash.point("received", "uncommitted")
        return Applied(len(acks))

    return work


def _changes_nothing(machine: Machine, frames: Sequence[Reported]) -> bool:
    return all(machine.changes_nothing(frame) for frame in frames)


class Service:
    """What people and machines can do with messages, deliveries and runs.

    Args:
        window: deliveries that may be unfinished on a machine at once.
        backlog_cap: unfinished deliveries per host, above which new ones are refused.
        limits: what agents may do by themselves before a person is asked.
    """

    def __init__(
        self,
        database: Database,
        hub: Hub,
        fanout: Fanout,
        *,
        window: int,
        backlog_cap: int,
        limits: Limits = _DEFAULT,
    ) -> None:
        self._database = database
        self._hub = hub
        self._fanout = fanout
        self._backlog_cap = backlog_cap
        self._window = window
        self._limits = limits
        self._relay = Relay(limits, backlog_cap)
        self._way = Way(self._is_open, min(window, backlog_cap), limits.hops)
        #: Hosts that have left, until that is in the store.
        self._left: dict[HostId, Machine] = {}
        #: Hosts that were removed, until what was queued for them is given up.
        self._removed: dict[HostId, None] = {}
        #: Rung when a host has work; the dispatcher listens.
        self.hints: Hints[HostId] = Hints()

    async def start(self) -> None:
        """Before serving: whoever was online when the last process ended is not any more."""
        await self._database.write(hosts.all_offline)
        self._removed = dict.fromkeys(await self._database.read(deliveries.of_removed_hosts))

    # --- people ---

    async def submit(self, submission: Submission, once: Once[Submitted] = _as_it_is) -> Message:
        """Take a message in; it is on the disk when this returns.

        `once` goes around the work, in its transaction: it is the caller's idempotency.

        Raises:
            Refused: see `sending.submit`.
        """

        def work(c: sqlite3.Connection) -> Submitted:
            way = None if submission.host_id else self._way
            done = sending.submit(c, submission, self._backlog_cap, way)
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
            message, rows = sending.cancel(c, user_id, actor, message_id)
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
        once: Once[Message] = _as_it_is,
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
            Refused: see `removing.remove`.
        """
        row = await self._database.write(lambda c: removing.remove(c, user_id, attachment_id))
        self._fanout.notify(user_id)
        return row.sha256

    async def retry(
        self, user_id: UserId, actor: str, message_id: MessageId, once: Once[Trace] = _as_it_is
    ) -> Trace:
        """Deliver a message again where its last delivery failed, died or was cancelled.

        Raises:
            Refused: see `sending.retry`.
        """
        told: set[HostId] = set()

        def work(c: sqlite3.Connection) -> Trace:
            done = sending.retry(c, user_id, actor, message_id, self._backlog_cap)
            told.update(done.hosts)
            self._lease_ready(c, done.hosts)
            return ladder.trace_of(c, user_id, done.message)

        trace = await self._write(once(work), "submit")
        self._changed(user_id, set(self._with_helpers(told)))
        return trace

    async def go_on(
        self, user_id: UserId, actor: str, message_id: MessageId, once: Once[Trace] = _as_it_is
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
        once: Once[RunRow] = _as_it_is,
        *,
        now: bool = False,
    ) -> Run:
        """Ask the machine to stop the run; `now`: to end it at once.

        Raises:
            Refused: there is no such run, or it is over.
        """
        run = await self._database.write(
            once(lambda c: sending.interrupt(c, user_id, actor, run_id, now=now))
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
        once: Once[Decided] = _as_it_is,
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
        once: Once[ApprovalRow] = _as_it_is,
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
        once: Once[Agent] = _as_it_is,
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

    def agent_changed(self, c: sqlite3.Connection, agent: AgentRow) -> None:
        """For the transaction that changes an agent: a larger budget lets it go on."""
        self._lease_ready(c, budget_decisions.look_again(c, agent))

    async def begin_day(self) -> None:
        """What waited for a budget of yesterday goes on; a cheap look while nothing does."""
        if not await self._database.read(lambda c: usage.over_before(c, usage.today())):
            return
        hosts_of, users = await self._database.write(budget_decisions.new_day)
        for user_id in users:
            self._changed(user_id, hosts_of)

    # --- the machines that people own ---

    async def agents_changed(self, host_id: HostId) -> None:
        """The host's agents were made, changed or removed: its daemon is told, and its helpers.

        One that is not here learns its agents by its next welcome; frames for it would pile up.
        """
        told = self._with_helpers([host_id])

        def work(c: sqlite3.Connection) -> None:
            # Asked in here: who comes meanwhile is greeted in a transaction after this one.
            for one in filter(self._hub.here, told):
                sending.change_agents(c, one)

        await self._database.write(work)
        for one in told:
            self._hub.hint(one)

    def agent_removed(self, c: sqlite3.Connection, user_id: UserId, agent_id: AgentId) -> None:
        """For the transaction that removes an agent of the user's; `agents_changed` follows."""
        sending.remove_agent(c, agent_id)

    def host_removed(
        self, c: sqlite3.Connection, user_id: UserId, host_id: HostId
    ) -> list[HostRow]:
        """For the transaction that removes a host of the user's; `hub.disconnect` and `bury` follow.

        Returns the ephemeral hosts that went with it, for `ephemeral_removed`.
        """
        children = self.children_removed(c, host_id)
        sending.remove_host(c, host_id)
        return children

    async def bury(self, removed: HostId | None = None) -> None:
        """Give up what was queued for a removed host, and for those of before.

        A full backlog takes many transactions, so that nobody waits long for the writer. What is cut
        off by an error or a restart goes on at the dispatcher's next look.
        """
        if removed:
            self._removed[removed] = None
        for host_id in list(self._removed):
            while rows := await self._database.write(
                lambda c, host_id=host_id: sending.bury(c, host_id, _BURIED_AT_ONCE)
            ):
                for user_id in {row.user_id for row in rows}:
                    self._fanout.notify(user_id)
            self._removed.pop(host_id, None)

    # --- ephemeral hosts ---

    def children_removed(self, c: sqlite3.Connection, host_id: HostId) -> list[HostRow]:
        """For a transaction: what was made with the host's key goes; `ephemeral_removed` follows."""
        children = hosts.children(c, host_id)
        for child in children:
            lending.remove_host(c, child)
        return children

    async def remove_ephemeral(self, host: HostRow) -> None:
        """The job is over: what it had not begun goes back to the agents' own host."""
        await self._database.write(lambda c: lending.remove_host(c, host))
        self.ephemeral_removed(host)

    async def reap(self, before_us: int) -> int:
        """Remove ephemeral hosts that have been away since then; returns how many."""

        def work(c: sqlite3.Connection) -> list[HostRow]:
            gone = hosts.away_since(c, before_us)
            for host in gone:
                lending.remove_host(c, host)
            return gone

        if not await self._database.read(lambda c: hosts.away_since(c, before_us)):
            return 0
        gone = await self._database.write(work)
        for host in gone:
            self.ephemeral_removed(host)
        return len(gone)

    def ephemeral_removed(self, host: HostRow) -> None:
        """After the commit that removed it."""
        self._hub.disconnect(host.id, CloseCode.REVOKED)
        self._hub.forget(host.id)
        if host.parent_id:  # what it had not begun waits there again
            self._changed(host.user_id, set(self._with_helpers([host.parent_id])))

    # --- machines ---

    async def greet(self, machine: Machine, hello: Hello) -> Greeting:
        """A daemon is here; its session is attached to the hub already."""
        self._left.pop(machine.host_id, None)
        greeting = await self._write(
            lambda c: handshake.greet(c, machine, hello, self._limits), "greet"
        )
        for run_id in greeting.abandoned:
            self._fanout.run_finished(machine.user_id, run_id)
        for run in greeting.live_runs:
            machine.live.add(run.id)
            self._fanout.run_started(run.user_id, run.id, run.agent_id, run.conversation_id)
        self._fanout.notify(machine.user_id)
        return greeting

    async def leave(self, machine: Machine) -> None:
        """The newest connection of a host has ended.

        Raises:
            sqlite3.Error: that could not be noted; `note_left` does it later.
        """
        self._left[machine.host_id] = machine
        await self._note_left(machine)

    async def note_left(self) -> None:
        """Write down which hosts have left, where that failed: none that is away may be shown as here.

        When a network fails, thousands leave at once, each with a `leave` of its own.
        """
        for machine in list(self._left.values()):
            if self._left.get(machine.host_id) is machine:  # else it has come back meanwhile
                await self._note_left(machine)

    async def _note_left(self, machine: Machine) -> None:
        alive = await self._write(lambda c: handshake.leave(c, machine), "leave")
        if self._left.get(machine.host_id) is machine:
            del self._left[machine.host_id]
        for run_id in machine.live - {run.id for run in alive}:  # its host was removed
            self._fanout.run_finished(machine.user_id, run_id)
        self._fanout.notify(machine.user_id)

    async def lease(self, ready: Sequence[ReadyHost]) -> None:
        """Put queued deliveries on their way, as far as these hosts have room."""
        rows = await self._write(
            lambda c: [row for one in ready for row in self._lease(c, one)], "lease"
        )
        for host_id in {row.host_id for row in rows}:
            self._hub.hint(host_id)
        for user_id in {row.user_id for row in rows}:  # one that was given up is told
            self._fanout.notify(user_id)

    async def sent(self, machine: Machine, times_us: Mapping[DeliveryId, int]) -> None:
        """The frames of these deliveries were written to the socket, then; they wait for an ack."""
        await self._write(lambda c: sending.sent(c, times_us), "sent")
        self._fanout.notify(machine.user_id)

    async def apply(self, machine: Machine, frames: Sequence[Reported]) -> Applied:
        """As `apply_all`, of one machine."""
        [applied] = await self.apply_all([(machine, frames)])
        if isinstance(applied, Exception):
            raise applied
        return applied

    async def apply_all(
        self, groups: Sequence[tuple[Machine, Sequence[Reported]]]
    ) -> list[Applied | Exception]:
        """Keep what machines report, in one transaction, then show it to followers, in order.

        A group that failed for a fault of ours is undone alone, and its result is the fault. Pieces
        of text that come before anything that is kept are shown first: they wait for nothing.
        """
        for machine, frames in groups:
            for frame in takewhile(_passes, frames):
                self._show(machine, frame)
        news = [not _changes_nothing(*one) for one in groups]
        kept = iter(await self._keep([one for one, new in zip(groups, news, strict=True) if new]))
        applied = [
            next(kept) if new else Applied(len(frames))
            for new, (_, frames) in zip(news, groups, strict=True)
        ]
        for (machine, frames), new, done in zip(groups, news, applied, strict=True):
            if new:
                for step in _steps(frames):
                    crash.point(step, "committed")
                self._fanout.notify(machine.user_id)
            if isinstance(done, Applied):
                self._show_all(machine, frames, done)
        return applied

    async def _keep(
        self, groups: Sequence[tuple[Machine, Sequence[Reported]]]
    ) -> list[Applied | Exception]:
        """Machines that only acknowledge, as most do under load, are taken in as one."""
        acks = [one for one in groups if _only_acks(one[1])]
        if not acks:
            return await self._database.write_each([self._taking_in(*one) for one in groups])
        works = [self._taking_in(*one) for one in groups if not _only_acks(one[1])]
        together, *kept = await self._database.write_each([_taking_acks(acks), *works])
        if isinstance(together, Exception):  # each by itself: one of them may be to blame
            acked = await self._database.write_each([self._taking_in(*one) for one in acks])
        else:
            acked = [Applied(len(frames)) for _, frames in acks]
        of_acks, of_others = iter(acked), iter(kept)
        return [next(of_acks if _only_acks(frames) else of_others) for _, frames in groups]

    def _show_all(self, machine: Machine, frames: Sequence[Reported], applied: Applied) -> None:
        for host_id in self._with_helpers(applied.hosts):
            self._hub.hint(host_id)
        if any(_makes_room(frame) for frame in frames):
            for one in {machine.host_id, machine.parent_id or machine.host_id}:
                self.hints.hint(one)
        for run_id in applied.abandoned:
            self._fanout.run_finished(machine.user_id, run_id)
        for frame in frames[: applied.count]:
            self._show(machine, frame)

    async def list_messages(self, machine: Machine, query: ListMessages) -> list[Message] | None:
        """The last messages that an agent may read, oldest first; null if it may not."""

        def work(c: sqlite3.Connection) -> list[Message] | None:
            if not reports.may_read(c, machine, query.agent_id, query.conversation_id):
                return None
            before = None
            if query.before is not None:
                before = messages.position(c, query.conversation_id, query.before)
                if before is None:
                    return []
            return messages.preceding(c, query.conversation_id, before, query.limit).data[::-1]

        return await self._database.read(work)

    def _with_helpers(self, host_ids: Iterable[HostId]) -> list[HostId]:
        """These hosts, each after the ephemeral ones that help it: a job waits for its work."""
        return [one for host_id in host_ids for one in (*self._hub.helpers(host_id), host_id)]

    def _is_open(self, host_id: HostId) -> bool:
        """Whether a message may leave for the machine at once; ephemeral ones choose before it."""
        return self._hub.ready(host_id) is not None and not self._hub.helpers(host_id)

    def _lease(self, c: sqlite3.Connection, host: ReadyHost) -> list[DeliveryRow]:
        if self._hub.helps(host.id):
            lending.take(c, host.id)
        return sending.lease(c, host, self._window, self._limits)

    async def list_agents(self, machine: Machine, query: ListAgents) -> list[AgentEntry] | None:
        """Whom an agent may message; null if it is not one of the machine's."""

        def work(c: sqlite3.Connection) -> list[AgentEntry] | None:
            if not reports.is_of(c, machine, query.agent_id):
                return None
            return relay.roster(c, machine.user_id, query.agent_id)

        return await self._database.read(work)

    async def find_agent(self, machine: Machine, query: FindAgent) -> FoundAgent | str:
        """Where a message to another agent goes, or why it may not be sent."""

        def work(c: sqlite3.Connection) -> FoundAgent | str:
            if not reports.is_of(c, machine, query.agent_id):
                return f"{query.agent_id} is no agent of this machine"
            return relay.find(c, machine.user_id, query, self._limits)

        return await self._write(work, "find")

    def _taking_in(self, machine: Machine, frames: Sequence[Reported]) -> Work[Applied]:
        def work(c: sqlite3.Connection) -> Applied:
            applied = reports.apply(c, machine, frames, self._relay)
            self._lease_ready(c, applied.hosts)
            for step in _steps(frames):
                crash.point(step, "uncommitted")
            return applied

        return work

    def _lease_ready(self, c: sqlite3.Connection, host_ids: Iterable[HostId]) -> None:
        """For machines that are here, so that they need not wait for the dispatcher."""
        for host_id in self._with_helpers(host_ids):
            if ready := self._hub.ready(host_id):
                self._lease(c, ready)

    async def _write(self, work: Work[T], *steps: crash.Step, repeatable: bool = False) -> T:
        """One transaction; a test may kill the process before its commit, or right after."""

        def uncommitted(c: sqlite3.Connection) -> T:
            done = work(c)
            for step in steps:
                crash.point(step, "uncommitted")
            return done

        done = await self._database.write(uncommitted, repeatable=repeatable)
        for step in steps:
            crash.point(step, "committed")
        return done

    def _show(self, machine: Machine, frame: Reported) -> None:
        user_id = machine.user_id
        match frame:
            case Delta() if frame.run_id in machine.live:
                self._fanout.delta(user_id, frame)
            case RunReport(event=Started()):
                machine.live.add(frame.run_id)
                self._fanout.run_started(
                    user_id, frame.run_id, frame.agent_id, frame.conversation_id
                )
            case RunReport(event=Text() as event):
                self._fanout.block_finished(user_id, frame.run_id, event.block)
            case RunReport(event=Finished()):
                machine.live.discard(frame.run_id)
                self._fanout.run_finished(user_id, frame.run_id)
            case _:
                pass

    def _changed(self, user_id: UserId, host_ids: set[HostId]) -> None:
        self._fanout.notify(user_id)
        for host_id in host_ids:
            self._hub.hint(host_id)
            self.hints.hint(host_id)
