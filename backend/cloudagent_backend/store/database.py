"""SQLite behind one writer thread with group commit, and a few reader threads.

Whoever asks to write while a commit is on its way to the disk shares the next one: under load one
fsync carries hundreds of changes, and an idle system waits for no timer.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from cloudagent_backend.store import schema

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Changes in one transaction at most, so that the first of them does not wait for too many.
MAX_BATCH: Final = 512
#: How long a write waits for another process (`migrate`, `create-user`, a backup) to let go of the file.
BUSY_TIMEOUT_S: Final = 15.0
READERS: Final = 4


class DatabaseError(Exception):
    """The database cannot be opened or used; the text is for the operator."""


@dataclass(slots=True)
class _Job:
    """Works that somebody waits for together; each is undone alone if it fails."""

    works: Sequence[Callable[[sqlite3.Connection], Any]]
    repeatable: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Any]]


@dataclass(slots=True)
class _Failed:
    error: Exception


class Database:
    """An open database. Work functions run in its threads: they may block, and must not await."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, "database-reader", self._open_reader)
        self._reader_connections: list[sqlite3.Connection] = []
        self._writer = threading.Thread(target=self._write_loop, name="database-writer")
        self._closed = False

    async def write(
        self, work: Callable[[sqlite3.Connection], T], *, repeatable: bool = False
    ) -> T:
        """Run `work` in the next transaction; return its result once that is on the disk.

        An exception of `work` rolls back what it did, nothing else. A caller that is cancelled
        while waiting does not stop the work. One that is `repeatable`, because it changes nothing but
        the database, costs less among its like: it may be undone with them, and is run again then.

        Raises:
            DatabaseError: the database is closed.
            sqlite3.Error: the transaction could not be committed.
        """
        [result] = await self._write([work], repeatable=repeatable)
        if isinstance(result, _Failed):
            raise result.error
        return result

    async def write_each(
        self, works: Sequence[Callable[[sqlite3.Connection], T]]
    ) -> list[T | Exception]:
        """As `write`, of many that somebody waits for together: each has its result or its fault."""
        results = await self._write(works) if works else []
        return [one.error if isinstance(one, _Failed) else one for one in results]

    async def _write(
        self, works: Sequence[Callable[[sqlite3.Connection], Any]], *, repeatable: bool = False
    ) -> list[Any]:
        if self._closed:
            raise DatabaseError("the database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._jobs.put(_Job(works, repeatable, loop, future))
        return await future

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one snapshot of what is committed; it cannot write."""
        if self._closed:
            raise DatabaseError("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    # --- the writer thread ---

    def start(self) -> None:
        self._writer.start()

    def close(self) -> None:
        """Finish what was asked, then close. Blocks: at most one batch and a checkpoint."""
        self._closed = True
        self._jobs.put(None)
        self._writer.join()
        self._readers.shutdown()
        for connection in self._reader_connections:
            connection.close()

    def _write_loop(self) -> None:
        connection = connect(self.path)
        # What undoes a work that fails (`_run`): else SQLite keeps it in a file, a page for each page
        # that a work changes. Not in `connect`: a migration may sort more than memory holds.
        connection.execute("PRAGMA temp_store = MEMORY")
        open_for_more = True
        while open_for_more:
            batch, open_for_more = self._next_batch()
            if batch:
                _settle(batch, _commit(connection, batch))
        connection.close()

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Everything that waits, at least one; and whether more may come."""
        batch: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    # --- the reader threads ---

    def _open_reader(self) -> None:
        connection = connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        self._local.connection = connection
        self._reader_connections.append(connection)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection = self._local.connection
        connection.execute("BEGIN")
        try:
            return work(connection)
        finally:
            connection.execute("ROLLBACK")


def _commit(connection: sqlite3.Connection, batch: list[_Job]) -> list[list[Any]] | _Failed:
    """The results of each job; or why none of them was kept."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        results = _results(connection, batch)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        logger.exception("a transaction failed", extra={"action": "commit", "writes": len(batch)})
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return _Failed(error)
    return results


def _results(connection: sqlite3.Connection, batch: list[_Job]) -> list[list[Any]]:
    results: list[list[Any]] = []
    for repeatable, group in groupby(batch, attrgetter("repeatable")):
        jobs = list(group)
        together = _run_together(connection, jobs) if repeatable else None
        results += together or [[_run(connection, work) for work in job.works] for job in jobs]
    return results


def _run_together(connection: sqlite3.Connection, jobs: list[_Job]) -> list[list[Any]] | None:
    """With one savepoint for all (one for each is a tenth of their cost); null, and undone, if one fails."""
    results = _run(connection, lambda c: [[work(c) for work in job.works] for job in jobs])
    return None if isinstance(results, _Failed) else results


def _run(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        result = work(connection)
    except Exception as error:
        if not connection.in_transaction:
            # A full disk makes SQLite end the whole transaction by itself, the others' work too.
            raise sqlite3.OperationalError(f"the transaction was lost: {error}") from error
        connection.execute("ROLLBACK TO one")
        result = _Failed(error)
    connection.execute("RELEASE one")
    return result


def _settle(batch: list[_Job], results: list[list[Any]] | _Failed) -> None:
    """Wake the callers, with one call into each event loop."""
    each = [results] * len(batch) if isinstance(results, _Failed) else results
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, result in zip(batch, each, strict=True):
        by_loop.setdefault(job.loop, []).append((job.future, result))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, answers)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.warning("writes finished after their event loop", extra={"action": "settle"})


def _answer(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(result, _Failed):
            future.set_exception(result.error)
        else:
            future.set_result(result)


def is_full(error: BaseException | None) -> bool:
    """Whether a failure comes down to a disk without room."""
    while error is not None:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__
    return False


def connect(path: Path) -> sqlite3.Connection:
    """A connection as every thread of ours uses it: durable, explicit transactions, named columns."""
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:  # the file is no database, which the first statement finds
        connection.close()
        raise
    return connection


def path_of(url_or_path: str | Path) -> Path:
    """The file that `sqlite:///PATH` or a plain path names.

    Raises:
        DatabaseError: it is another kind of database.
    """
    text = str(url_or_path)
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith("sqlite:///") or text == "sqlite:///":
        raise DatabaseError(f"not a database this version can use: {text}; use sqlite:///PATH")
    return Path(text.removeprefix("sqlite:///")).expanduser()


def migrate(url_or_path: str | Path) -> int:
    """Make the file (0600, in a 0700 directory) and bring it to the newest schema.

    Returns the number of migrations that were applied.

    Raises:
        DatabaseError: the file cannot be made or read, or is of a newer version.
    """
    path = path_of(url_or_path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = connect(path)
        try:
            return schema.migrate(connection)
        finally:
            connection.close()
    except (OSError, sqlite3.Error, schema.NewerSchemaError) as error:
        raise DatabaseError(f"cannot open the database {path}: {error}") from error


@asynccontextmanager
async def open_database(url_or_path: str | Path) -> AsyncGenerator[Database]:
    """Migrate and open; on leaving, everything that was asked for is on the disk.

    Raises:
        DatabaseError: see `migrate`.
    """
    await anyio.to_thread.run_sync(migrate, url_or_path)
    database = Database(path_of(url_or_path))
    database.start()
    try:
        yield database
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(database.close)
