"""Group commit: works on one SQLite connection, in a thread; what waits together is one commit.

A commit costs an fsync, whatever is in it; so under load the cost is shared, and an idle daemon
pays one for one change (performance.md §1).
"""

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync

from cloudagent_daemon.disk import NotKeptError

T = TypeVar("T")
S = TypeVar("S")


class SpoolError(NotKeptError):
    """The disk did not take a change; `str()` says why. Nothing of it was kept."""


class _Job:
    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.done = anyio.Event()
        self.result: Any = None
        self.error: Exception | None = None


class Committer(Generic[S]):
    """Takes work while `committing` lasts.

    Args:
        connection: used from one thread at a time.
        observe: asked after each commit; `observed` holds its last answer.
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
        self._waiting: list[_Job] = []
        self._wake = anyio.Event()
        self._closed = False

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns when the work is committed; what it raises undoes only this work.

        Raises:
            SpoolError: the disk did not take it.
        """
        if self._closed:
            raise SpoolError("the spool is closed")
        job = _Job(work)
        self._waiting.append(job)
        self._wake.set()
        await job.done.wait()
        if job.error:
            raise job.error
        return job.result

    async def run(self) -> None:
        while not self._closed or self._waiting:
            await self._wake.wait()
            self._wake = anyio.Event()
            # What is said in the same breath is one commit: who says it may be about to.
            await checkpoint()
            if batch := self._waiting:
                self._waiting = []
                await run_sync(self._commit, batch)
                self.committed.set()
                self.committed = anyio.Event()
                for job in batch:
                    job.done.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def _commit(self, batch: list[_Job]) -> None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                connection.execute("SAVEPOINT job")
                try:
                    job.result = job.work(connection)
                except Exception as error:
                    # Whatever it was, it is raised to who asked; the others of the batch are kept.
                    if not connection.in_transaction:
                        raise  # a full disk has rolled all of it back
                    connection.execute("ROLLBACK TO job")
                    job.error = error
                connection.execute("RELEASE job")
            observed = self._observe(connection)
            connection.execute("COMMIT")
            self.observed, self.version = observed, connection.total_changes
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batch) > 1:
                # One was too much for the disk; the others shall not fail for it.
                for job in batch:
                    job.error = None
                    self._commit([job])
            else:
                batch[0].error = SpoolError(f"the spool cannot be written: {error}")


@asynccontextmanager
async def committing(
    connection: sqlite3.Connection, observe: Callable[[sqlite3.Connection], S]
) -> AsyncGenerator[Committer[S]]:
    """A committer over `connection`, which is closed at the end."""
    committer = Committer(connection, observe, await run_sync(observe, connection))
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.run)
            try:
                yield committer
            finally:
                committer.close()
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(connection.close)
