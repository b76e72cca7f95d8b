"""The record of a run's launches: which process is given its message, written down before it is."""

import uuid
from collections.abc import Callable, Sequence

import anyio

from cloudagent_daemon import crash
from cloudagent_daemon.runs.desk import RunDesk
from cloudagent_daemon.runs.ports import Launch, Uplink
from cloudagent_daemon.runs.report import Reporter, now
from cloudagent_daemon.runs.worker import Worker
from cloudagent_protocol.events import Reason, Retry, Started
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import RunId


class Launches:
    """Those of one run.

    Args:
        aboard: the messages whose turn it is as well.
        attempt: how often the delivery was begun, this time counted.
        stays: whether a process may live longer than the run.
    """

    def __init__(
        self,
        deliver: Deliver,
        aboard: Sequence[Deliver],
        attempt: int,
        run_id: RunId,
        desk: RunDesk,
        reporter: Reporter,
        uplink: Uplink,
        stays: Callable[[Worker], bool],
    ) -> None:
        self._deliver = deliver
        self._aboard = aboard
        self._attempt = attempt
        self._run_id = run_id
        self._desk = desk
        self._reporter = reporter
        self._uplink = uplink
        self._stays = stays
        self._count = 0
        #: That a warm process has the message is in the spool, and not in the record yet.
        self._record_follows = False

    def begin(self) -> str:
        """Gives the launch that comes next its id; `keep` writes it down."""
        self._desk.record.launch_id = launch_id = uuid.uuid4().hex
        return launch_id

    async def keep(self) -> None:
        await self._desk.keep_record()

    async def given(self, worker: Worker, *, resumed: bool) -> None:
        """Writes down that it is given the message, before it is."""
        self._count += 1
        child = worker.child
        started = Started(
            at=now(),
            driver=self._deliver.agent.driver,
            attempt=self._attempt,
            launch_id=child.launch_id,
            pid=child.pid,
            resumed=resumed,
        )
        if self._desk.record.launch_id != child.launch_id:
            # A warm one: nothing was written yet, and who waits for it waits for the disk once, for
            # the spool. The record is for a life that has lost that: it follows once the agent works.
            self._desk.record.launch_id = child.launch_id
            self._record_follows = True
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._given_all, worker)
                tasks.start_soon(self._reporter.event, started)
            return
        await self._given_all(worker)
        crash.point("after_spawn")
        if self._count == 1:
            await self._reporter.event(started)

    async def _given_all(self, worker: Worker) -> None:
        for one in (self._deliver, *self._aboard):
            await self.given_too(worker, one, self._attempt)

    async def given_too(self, worker: Worker, deliver: Deliver, attempt: int) -> None:
        """Writes down that the process is given this message, durably."""
        child = worker.child
        await self._uplink.launched(
            Launch(
                run_id=self._run_id,
                delivery_id=deliver.delivery_id,
                launch_id=child.launch_id,
                pid=child.pid,
                started_at=child.started_at,
                attempt=attempt,
                stays=self._stays(worker),
            )
        )

    async def taken_up(self) -> None:
        """The agent works: what was left for later is written down."""
        if self._record_follows:
            self._record_follows = False
            # Not synced: the record counts where the spool is lost, and then the power has not gone.
            await self._desk.keep_record(synced=False)

    async def failed(self) -> int:
        """Counts one more that failed; returns how many have.

        Counted on the disk, so that a daemon that is restarted meanwhile goes on counting.
        """
        failed = self._desk.record.failed_launches + 1
        self._desk.record.failed_launches = failed
        await self._desk.keep_record()
        return failed

    async def tell_retry(self, reason: Reason, detail: str, delay_s: float = 0.0) -> None:
        """Says that another one follows, and why."""
        attempt = self._count + 1
        await self._reporter.event(
            Retry(at=now(), attempt=attempt, reason=reason, detail=detail, delay_s=delay_s)
        )
