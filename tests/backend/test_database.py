"""The database: one writer, shared commits, readers beside it; and the schema's steps."""

import sqlite3
import stat
import threading
from contextlib import closing, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from cloudagent_backend.store import deliveries, delivery_schema, events, schema
from cloudagent_backend.store.database import (
    Database,
    DatabaseError,
    connect,
    migrate,
    open_database,
    path_of,
)
from cloudagent_protocol.ids import HostId, UserId
from cloudagent_protocol.resources import DeliveryState, EventType


def insert(c: sqlite3.Connection, name: str) -> None:
    c.execute("INSERT INTO secrets (name, value) VALUES (?, ?)", (name, b""))


def names(c: sqlite3.Connection) -> list[str]:
    return [row["name"] for row in c.execute("SELECT name FROM secrets ORDER BY name")]


async def test_a_write_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await database.write(lambda c: insert(c, "one"))
        other = connect(tmp_path / "a.db")
        assert names(other) == ["one"]
        other.close()


async def test_writes_that_come_together_share_transactions(tmp_path: Path) -> None:
    commits: list[str] = []
    async with open_database(tmp_path / "a.db") as database:

        def count(statement: str) -> None:
            if statement == "COMMIT":
                commits.append(statement)

        await database.write(lambda c: c.set_trace_callback(count))
        async with anyio.create_task_group() as tg:
            for n in range(300):
                tg.start_soon(database.write, lambda c, n=n: insert(c, f"{n:03}"))
        assert len(await database.read(names)) == 300
    assert len(commits) < 100


async def test_a_failing_write_takes_back_its_own_work_only(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:

        def bad(c: sqlite3.Connection) -> None:
            insert(c, "bad")
            raise KeyError("bad")

        async def failing() -> None:
            with pytest.raises(KeyError):
                await database.write(bad)

        async with anyio.create_task_group() as tg:
            tg.start_soon(database.write, lambda c: insert(c, "first"))
            tg.start_soon(failing)
            tg.start_soon(database.write, lambda c: insert(c, "last"))
        assert await database.read(names) == ["first", "last"]


async def test_of_works_that_may_be_repeated_one_that_fails_is_undone_alone(tmp_path: Path) -> None:
    runs: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(_: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(10)

    async def attempt(database: Database, name: str, *, repeatable: bool = True) -> None:
        def work(c: sqlite3.Connection) -> None:
            runs.append(name)
            insert(c, name)
            if name == "bad":
                raise KeyError(name)

        with suppress(KeyError):
            await database.write(work, repeatable=repeatable)

    async with open_database(tmp_path / "a.db") as database, anyio.create_task_group() as tg:
        tg.start_soon(database.write, hold_up)
        await anyio.to_thread.run_sync(begun.wait, 10)
        for name in ("first", "bad", "last"):
            tg.start_soon(attempt, database, name)
        tg.start_soon(lambda: attempt(database, "once", repeatable=False))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    names_now = connect(tmp_path / "a.db")
    assert names(names_now) == ["first", "last", "once"]
    names_now.close()
    assert runs == ["first", "bad", "first", "bad", "last", "once"]


async def test_a_transaction_that_sqlite_itself_ends_fails_for_all_in_it(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        with pytest.raises(sqlite3.OperationalError, match="transaction was lost"):
            await database.write(lambda c: (c.execute("ROLLBACK"), insert(c, "x"), 1 / 0))
        await database.write(lambda c: insert(c, "after"))
        assert "after" in await database.read(names)


async def test_a_cancelled_caller_does_not_disturb_the_others(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await database.write(lambda c: insert(c, "cancelled"))
        await database.write(lambda c: insert(c, "other"))
        assert "other" in await database.read(names)


async def test_a_reader_sees_one_moment_and_cannot_write(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read(lambda c: insert(c, "x"))
        assert await database.read(names) == []


async def test_closing_finishes_what_was_asked(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database, anyio.create_task_group() as tg:
        for n in range(20):
            tg.start_soon(database.write, lambda c, n=n: insert(c, str(n)))
        await anyio.lowlevel.checkpoint()
        tg.cancel_scope.cancel()
    with pytest.raises(DatabaseError, match="closed"):
        await database.write(names)
    with pytest.raises(DatabaseError, match="closed"):
        await database.read(names)
    with closing(connect(tmp_path / "a.db")) as connection:
        assert len(names(connection)) == 20


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.db"
    async with open_database(f"sqlite:///{path}") as database:
        # The file of pending writes is there once something was written.
        await database.write(lambda c: c.execute("CREATE TABLE t (a)"))
        for one, mode in ((path, 0o600), (path.parent, 0o700), (Path(f"{path}-wal"), 0o600)):
            assert stat.S_IMODE(one.stat().st_mode) == mode


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    assert migrate(tmp_path / "a.db") == len(schema.MIGRATIONS)
    assert migrate(tmp_path / "a.db") == 0


def test_an_older_databases_logs_go_on_where_they_were(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    step = schema.MIGRATIONS.index(delivery_schema.EVENT_NUMBERS)
    for script in schema.MIGRATIONS[:step]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {step}")
    connection.execute("INSERT INTO event_logs VALUES ('usr_empty', 7, 6), ('usr_full', 5, 4)")
    connection.execute("INSERT INTO events VALUES ('usr_full', 5, 'ping', 0, '{}')")
    connection.close()
    migrate(tmp_path / "a.db")
    connection = connect(tmp_path / "a.db")
    empty, full = (events.extent(connection, UserId(one)) for one in ("usr_empty", "usr_full"))
    assert (empty.last, empty.trimmed) == (7, 7)
    assert (full.last, full.trimmed) == (5, 4)
    events.append(connection, UserId("usr_empty"), EventType.PING, {})
    assert [row.id for row in events.after(connection, UserId("usr_empty"), 0, 9)] == [8]
    connection.close()


def test_what_an_older_database_has_in_flight_stays_so(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    step = schema.MIGRATIONS.index(delivery_schema.IN_FLIGHT)
    for script in schema.MIGRATIONS[:step]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {step}")
    connection.execute("INSERT INTO conversations VALUES ('conv_1', 'usr_1', NULL, 0, 0, NULL)")
    for number, state in enumerate(DeliveryState):
        connection.execute(
            "INSERT INTO deliveries (id, user_id, host_id, agent_id, conversation_id, message_id,"
            " seq, state, rungs) VALUES (?, 'usr_1', 'host_1', 'agent_1', 'conv_1', 'msg_1', ?, ?,"
            " '[]')",
            (f"dlv_{number}", number, state.value),
        )
    connection.close()
    migrate(tmp_path / "a.db")
    connection = connect(tmp_path / "a.db")
    found = {row.state for row in deliveries.in_flight(connection, HostId("host_1"))}
    assert found == {"leased", "received", "running", "waiting"}
    connection.close()


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path / "a.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(DatabaseError, match="version 999"):
        migrate(tmp_path / "a.db")


def test_a_step_that_fails_leaves_the_version_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", ("CREATE TABLE a (x); CREATE TABLE a (x);",))
    with pytest.raises(DatabaseError, match="already exists"):
        migrate(tmp_path / "a.db")
    connection = connect(tmp_path / "a.db")
    assert schema.version(connection) == 0
    assert not connection.execute("SELECT * FROM sqlite_master").fetchall()
    connection.close()


def test_a_file_that_is_no_database_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("certainly not a database, but long enough to look at" * 20)
    with pytest.raises(DatabaseError, match="not a database"):
        migrate(tmp_path / "a.db")


def test_urls_name_files() -> None:
    assert path_of("sqlite:////var/lib/x.db") == Path("/var/lib/x.db")
    assert path_of("sqlite:///x.db") == Path("x.db")
    assert path_of("x.db") == Path("x.db")
    for url in ("postgres://host/x", "sqlite://", "sqlite:///"):
        with pytest.raises(DatabaseError, match="sqlite:///PATH"):
            path_of(url)


def test_messages_of_an_older_database_are_given_their_chains(tmp_path: Path) -> None:
    connection = connect(tmp_path / "old.db")
    steps = [step for step in schema.MIGRATIONS if "CREATE TABLE chains" in step]
    before = schema.MIGRATIONS.index(steps[0])
    for step in schema.MIGRATIONS[:before]:
        connection.executescript(step)
    connection.execute(f"PRAGMA user_version = {before}")
    connection.execute("INSERT INTO conversations (id, user_id, created_us) VALUES ('c', 'u', 1)")
    for message, author, reply_to in (
        ("m1", "user", None),
        ("m2", "agent", "m1"),
        ("m3", "agent", None),
    ):
        connection.execute(
            "INSERT INTO messages (id, conversation_id, user_id, author_type, author_id,"
            " author_name, text, created_us, in_reply_to) VALUES (?, 'c', 'u', ?, 'x', 'x', '', 1, ?)",
            (message, author, reply_to),
        )
    connection.close()
    migrate(tmp_path / "old.db")
    connection = connect(tmp_path / "old.db")
    rows = connection.execute("SELECT id, chain_id, depth, caused_by FROM messages ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("m1", "m1", 0, None),
        ("m2", "m1", 1, "m1"),
        ("m3", "m3", 1, None),
    ]
    connection.close()
