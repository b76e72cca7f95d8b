"""Group commit: works on one SQLite connection, in a thread; what waits together is one commit.

A commit costs an fsync, whatever is in it; so under load the cost is shared, and an idle daemon
pays one for one change (performance.md §1). The thread is the committer's own: to borrow one for each
commit cost as much as to keep ten deliveries.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
from anyio.to_thread import run_sync

from cloudagent_daemon.disk import NotKeptError

T = TypeVar("T")
S = TypeVar("S")


class SpoolError(NotKeptError):
    """The disk did not take a change; `str()` says why. Nothing of it was kept."""


class _Job:
    def __init__(
        self, work: Callable[[sqlite3.Connection], Any], done: asyncio.Future[Any]
    ) -> None:
        self.work = work
        self.done = done
        self.result: Any = None
        self.error: Exception | None = None


class Committer(Generic[S]):
    """Takes work while `committing` lasts; made in the event loop that it answers.

    Args:
        connection: the thread's alone until `close` returns.
        observe: asked in each transaction; `observed` holds its last answer.
        observed: its answer at the start.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        observe: Callable[[sqlite3.Connection], S],
        observed: S,
    ) -> None:
        self._connection = connection
        self._observe = observe
        self.observed = observed
        #: Another one after each commit that has written something.
        self.version = connection.total_changes
        #: Set, and replaced, after each commit.
        self.committed = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self._said: list[_Job] = []
        self._waiting: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._closed = False
        # What it has not committed when the process ends was promised to nobody.
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns when the work is committed; what it raises undoes only this work.

        A caller that is cancelled meanwhile does not stop the work.

        Raises:
            SpoolError: the disk did not take it.
        """
        if self._closed:
            raise SpoolError("the spool is closed")
        job = _Job(work, self._loop.create_future())
        if not self._said:
            # What is said in the same breath is one commit: who says it may be about to.
            self._loop.call_soon(self._loop.call_soon, self._hand_over)
        self._said.append(job)
        return await job.done

    async def close(self) -> None:
        """Returns when what was asked is committed, and answered."""
        self._closed = True
        self._hand_over()
        self._waiting.put(None)
        await run_sync(self._thread.join)

    def _hand_over(self) -> None:
        said, self._said = self._said, []
        self._waiting.put(said)

    def _answer(self, batch: list[_Job], observed: S, version: int) -> None:
        self.observed, self.version = observed, version
        self.committed.set()
        self.committed = anyio.Event()
        for job in batch:
            if job.done.done():  # its caller was cancelled
                continue
            if job.error:
                job.done.set_exception(job.error)
            else:
                job.done.set_result(job.result)

    # --- the thread ---

    def _run(self) -> None:
        observed = self.observed
        more = True
        while more:
            batch, more = self._next_batch()
            if batch:
                observed = self._committed(batch, observed)
                version = self._connection.total_changes
                self._loop.call_soon_threadsafe(self._answer, batch, observed, version)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Everything that waits, once there is something; and whether more may come."""
        batch: list[_Job] = []
        said = self._waiting.get()
        while said is not None:
            batch += said
            try:
                said = self._waiting.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _committed(self, batch: list[_Job], before: S) -> S:
        """What is observed after the batch is on the disk, or each of it has its error."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                _try(connection, job)
            observed = self._observe(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) > 1:
                # One was too much for the disk; the others shall not fail for it.
                for job in batch:
                    job.error = None
                    before = self._committed([job], before)
            else:
                batch[0].error = SpoolError(f"the spool cannot be written: {error}")
            return before
        return observed


def _try(connection: sqlite3.Connection, job: _Job) -> None:
    """Whatever a work raises is for who asked; the others of the batch are kept."""
    connection.execute("SAVEPOINT job")
    try:
        job.result = job.work(connection)
    except Exception as error:
        if not connection.in_transaction:
            # A full disk makes SQLite end the whole transaction by itself, the others' work too.
            raise sqlite3.OperationalError(f"the transaction was lost: {error}") from error
        connection.execute("ROLLBACK TO job")
        job.error = error
    connection.execute("RELEASE job")


@asynccontextmanager
async def committing(
    connection: sqlite3.Connection, observe: Callable[[sqlite3.Connection], S]
) -> AsyncGenerator[Committer[S]]:
    """A committer over `connection`, which is closed at the end."""
    committer = Committer(connection, observe, await run_sync(observe, connection))
    try:
        yield committer
    finally:
        with anyio.CancelScope(shield=True):
            await committer.close()
            await run_sync(connection.close)
