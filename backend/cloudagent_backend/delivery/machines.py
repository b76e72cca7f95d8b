"""What machines do: come and go, take work, report. Each is one transaction; see `transactions.py`."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from cloudagent_backend import crash
from cloudagent_backend.delivery import (
    handshake,
    receipts,
    relay,
    reports,
    rights,
    sending,
)
from cloudagent_backend.delivery.groups import Applied, Reported
from cloudagent_backend.delivery.handshake import Greeting
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.sending import ReadyHost
from cloudagent_backend.delivery.transactions import Transactions, Work
from cloudagent_backend.store import messages
from cloudagent_protocol.events import Finished, Started, Text
from cloudagent_protocol.frames import (
    Ack,
    AgentEntry,
    Delta,
    FindAgent,
    FoundAgent,
    Heartbeat,
    Hello,
    ListAgents,
    ListMessages,
    RunReport,
)
from cloudagent_protocol.ids import (
    DeliveryId,
)
from cloudagent_protocol.resources import (
    Message,
)


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
        receipts.acked(c, acks)
        crash.point("received", "uncommitted")
        return Applied(len(acks))

    return work


def _changes_nothing(machine: Machine, frames: Sequence[Reported]) -> bool:
    return all(machine.changes_nothing(frame) for frame in frames)


class MachinesVerbs(Transactions):
    """For the links of daemons."""

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
            if not rights.may_read(c, machine, query.agent_id, query.conversation_id):
                return None
            before = None
            if query.before is not None:
                before = messages.position(c, query.conversation_id, query.before)
                if before is None:
                    return []
            return messages.preceding(c, query.conversation_id, before, query.limit).data[::-1]

        return await self._database.read(work)

    async def list_agents(self, machine: Machine, query: ListAgents) -> list[AgentEntry] | None:
        """Whom an agent may message; null if it is not one of the machine's."""

        def work(c: sqlite3.Connection) -> list[AgentEntry] | None:
            if not rights.is_of(c, machine, query.agent_id):
                return None
            return relay.roster(c, machine.user_id, query.agent_id)

        return await self._database.read(work)

    async def find_agent(self, machine: Machine, query: FindAgent) -> FoundAgent | str:
        """Where a message to another agent goes, or why it may not be sent."""

        def work(c: sqlite3.Connection) -> FoundAgent | str:
            if not rights.is_of(c, machine, query.agent_id):
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
