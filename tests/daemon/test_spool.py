import sqlite3
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typing_extensions import override

from cloudagent_daemon.link import spool_file, tables
from cloudagent_daemon.link.committer import SpoolError
from cloudagent_daemon.link.spool import Spool, open_spool
from cloudagent_daemon.link.spool_file import NewerSpoolError
from cloudagent_daemon.link.tables import Leftover
from cloudagent_protocol.content import Attachment
from cloudagent_protocol.errors import ProtocolError
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.frames import (
    Deliver,
    DeliveredMessage,
    DeliveryReport,
    HostReport,
    Interrupt,
    RunReport,
    Send,
    decode,
)
from cloudagent_protocol.ids import (
    AgentId,
    AttachmentId,
    ConversationId,
    DeliveryId,
    MessageId,
    RunId,
    new_epoch,
)
from cloudagent_protocol.resources import AgentSpec, Author, DeliveryMode, Runtime


def delivery(number: int, *, seq: int = 0, message: str = "") -> Deliver:
    return Deliver(
        seq=seq or number,
        delivery_id=DeliveryId(f"dlv_{number}"),
        delivery_seq=number,
        agent=AgentSpec(id=AgentId("agent_1"), name="Ada", driver="scripted"),
        message=DeliveredMessage(
            id=MessageId(message or f"msg_{number}"),
            conversation_id=ConversationId("conv_1"),
            author=Author(type="user", id="usr_1", name="Ana"),
            text="hello",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    )


def ending(number: int) -> RunReport:
    return RunReport(
        run_id=RunId(f"run_{number}"),
        agent_id=AgentId("agent_1"),
        conversation_id=ConversationId("conv_1"),
        delivery_ids=[DeliveryId(f"dlv_{number}")],
        event=Finished(seq=1, at=datetime(2026, 1, 1, tzinfo=UTC), outcome=Outcome.REPLIED),
    )


def report(name: str) -> HostReport:
    return HostReport(runtimes=[Runtime(name=name)])


async def waiting_ids(spool: Spool) -> list[str]:
    return [c.delivery_id for c in await spool.changes_after(0) if c.waiting]


async def test_who_follows_the_inbox_sees_the_same_as_who_looks_into_it(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.receive([delivery(1)], 1)
        [first] = await spool.changes_after(0)
        assert [first] == await spool.changes_after(0)  # not only the first time
        await spool.receive([delivery(2)], 2)
        await spool.receive([delivery(3)], 3)  # before anybody has looked
        assert [c.delivery_id for c in await spool.changes_after(first.number)] == [
            "dlv_2",
            "dlv_3",
        ]
        await spool.receive([Interrupt(seq=4, delivery_id=DeliveryId("dlv_1"), actor="Ana")], 4)
        await spool.drop([DeliveryId("dlv_2")])  # and then something else has changed
        changes = await spool.changes_after(first.number)
        assert {c.delivery_id: c.waiting is None for c in changes} == {
            "dlv_1": False,
            "dlv_2": True,
            "dlv_3": False,
        }


async def test_what_was_received_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
    async with open_spool(tmp_path / "state.db") as spool:
        assert await waiting_ids(spool) == ["dlv_1", "dlv_2"]
        assert spool.marks.accepted == 2


async def test_a_delivery_that_comes_twice_is_one(tmp_path: Path) -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        await spool.receive([delivery(1, seq=2)], 2)
        assert await waiting_ids(spool) == ["dlv_1"]


async def test_a_batch_of_new_ones_a_double_and_an_interrupt_is_kept_in_its_order() -> None:
    async with open_spool(None) as spool:
        stop = Interrupt(seq=4, delivery_id=DeliveryId("dlv_2"), actor="Ana")
        double = delivery(1, seq=3)
        batch = [delivery(1), delivery(2), double, stop, delivery(3, seq=5)]
        await spool.receive(batch, 5)
        changes = await spool.changes_after(0)
        assert [change.delivery_id for change in changes] == ["dlv_1", "dlv_2", "dlv_3"]
        waiting = [change.waiting for change in changes if change.waiting]
        assert [one.interrupted_by for one in waiting] == [None, "Ana", None]
        assert spool.marks.changes == changes[-1].number


async def test_a_batch_that_is_here_already_is_no_change() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        before = spool.marks
        await spool.receive([delivery(1, seq=3), delivery(2, seq=4)], 4)
        assert spool.marks == replace(before, accepted=4)


async def test_a_delivery_that_stands_twice_in_a_batch_is_one() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), delivery(2), delivery(1, seq=3)], 3)
        assert await waiting_ids(spool) == ["dlv_1", "dlv_2"]


def as_it_came(frame: Deliver) -> str:
    """The same as Python's JSON reads it, and none, or another, as SQLite's does."""
    named_twice = frame.model_dump_json().replace(
        '"agent":{"id":"agent_1"', '"agent":{"id":"agent_0","id":"agent_1"'
    )
    return f'{{"newer":[NaN,-Infinity],{named_twice[1:]}'


async def test_a_delivery_is_kept_as_it_came_whatever_else_it_says() -> None:
    async with open_spool(None) as spool:
        one = delivery(1)
        await spool.receive([one], 1, [as_it_came(one)])
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 42, 1.5), 1)
        interrupting = delivery(2).model_copy(update={"mode": DeliveryMode.INTERRUPT})
        await spool.receive([interrupting], 2, [as_it_came(interrupting)])
        first, second = sorted(
            (c.waiting for c in await spool.changes_after(0) if c.waiting),
            key=lambda waiting: waiting.deliver.seq,
        )
        assert (first.deliver, first.interrupted_by) == (one, "Ana")
        assert second.deliver == interrupting
        assert await spool.waiting(DeliveryId("dlv_2")) == second


async def test_a_word_on_a_delivery_waits_behind_what_its_agent_sends_with_files() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1, [as_it_came(delivery(1))])
        await spool.append(with_files(1, count=1))
        now = datetime(2026, 1, 1, tzinfo=UTC)
        await spool.append(
            DeliveryReport(delivery_id=DeliveryId("dlv_1"), at=now, reason=Reason.NOT_STEERABLE)
        )
        assert (spool.marks.held, spool.marks.last) == (2, 0)


async def test_one_that_interrupts_marks_what_has_begun_in_its_conversation_and_nothing_else() -> (
    None
):
    elsewhere, to_another_agent = delivery(2), delivery(3, message="msg_5")
    elsewhere.message.conversation_id = ConversationId("conv_2")
    interrupting = delivery(5).model_copy(update={"mode": DeliveryMode.INTERRUPT})
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), elsewhere, to_another_agent, delivery(4)], 4)
        for number in (1, 2, 3):
            begun = Leftover(f"l{number}", 42, 1.5)
            await spool.record_launch(DeliveryId(f"dlv_{number}"), begun, 1)
        await spool.receive([interrupting], 5)
        found = [c.waiting for c in await spool.changes_after(0) if c.waiting]
        by = {one.deliver.delivery_id: one.interrupted_by for one in found if one.interrupted_by}
        assert by == {"dlv_1": "Ana"}


@pytest.mark.parametrize("lost", ['"agent":', '"text":'])
async def test_what_another_version_has_kept_and_this_one_cannot_read_stops_no_other(
    lost: str,
) -> None:
    async with open_spool(None) as spool:
        one, two = delivery(1), delivery(2)
        texts = [one.model_dump_json().replace(lost, '"other":'), two.model_dump_json()]
        await spool.receive([one, two], 2, texts)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 42, 1.5), 1)
        await spool.receive([delivery(3).model_copy(update={"mode": DeliveryMode.INTERRUPT})], 3)
        assert await waiting_ids(spool) == ["dlv_2", "dlv_3"]
        assert await spool.held() == ["dlv_1", "dlv_2", "dlv_3"], "it stays for one that can"


async def test_changes_are_followed_by_their_number(tmp_path: Path) -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        first = (await spool.changes_after(0))[-1].number
        await spool.receive(
            [delivery(2), Interrupt(seq=3, delivery_id=DeliveryId("dlv_1"), actor="Ana")], 3
        )
        second, third = await spool.changes_after(first)
        assert second.delivery_id == "dlv_2"
        assert third.waiting
        assert (third.waiting.interrupted_by, third.waiting.ended_by) == ("Ana", None)
        now = Interrupt(seq=4, delivery_id=DeliveryId("dlv_1"), actor="Bo", now=True)
        await spool.receive([now], 4)
        [fourth] = await spool.changes_after(third.number)
        assert fourth.waiting
        assert (fourth.waiting.interrupted_by, fourth.waiting.ended_by) == ("Ana", "Bo")


async def test_a_dropped_delivery_shows_as_over(tmp_path: Path) -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        await spool.drop([DeliveryId("dlv_1")])
        assert [c.waiting for c in await spool.changes_after(1)] == [None]
        assert await spool.held() == []


async def test_a_dropped_delivery_that_a_restored_backend_wants_again_is_taken_in_anew() -> None:
    async with open_spool(None) as spool:
        await spool.receive(
            [delivery(1), Interrupt(seq=2, delivery_id=DeliveryId("dlv_1"), actor="Ana")], 2
        )
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 42, 1.5), 1)
        await spool.drop([DeliveryId("dlv_1")])
        number = spool.marks.changes
        await spool.receive([delivery(1, seq=3)], 3)
        [change] = await spool.changes_after(number)
        assert change.waiting
        assert change.waiting.deliver.message.text == "hello"
        assert (change.waiting.attempts, change.waiting.interrupted_by) == (1, None)
        assert await spool.held() == ["dlv_1"]


async def test_the_end_of_a_run_closes_its_delivery_and_goes_out_once() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 42, 1.5), 1)
        await spool.finish(ending(1))
        assert spool.marks.last == 1
        assert await waiting_ids(spool) == []
        assert await spool.leftovers() == []
        [(seq, text)] = await spool.frames_after(0, 10)
        assert decode(text) == ending(1).model_copy(update={"seq": seq})


async def test_a_finished_delivery_that_is_asked_for_again_is_answered_again_not_run_again() -> (
    None
):
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        await spool.finish(ending(1))
        await spool.receive([delivery(1, seq=2)], 2)
        assert spool.marks.last == 1, "its end is still on its way"
        await spool.acked(1)
        await spool.receive([delivery(1, seq=3)], 3)
        assert spool.marks.last == 2
        assert await waiting_ids(spool) == []


def send(number: int, to: int) -> Send:
    return Send(
        message_id=MessageId(f"msg_reply_{number}"),
        agent_id=AgentId("agent_1"),
        conversation_id=ConversationId("conv_1"),
        run_id=RunId(f"run_{to}"),
        text=f"reply {number}",
        caused_by=MessageId(f"msg_{to}"),
        sent_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


async def test_what_was_said_in_it_is_said_again_before_its_end() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        for frame in (send(1, to=1), send(2, to=2), send(3, to=1)):
            await spool.append(frame)
        await spool.finish(ending(1))
        await spool.acked(4)
        await spool.receive([delivery(1, seq=3)], 3)
        again = [decode(text) for _, text in await spool.frames_after(4, 10)]
        assert again == [
            send(1, to=1).model_copy(update={"seq": 5}),
            send(3, to=1).model_copy(update={"seq": 6}),
            ending(1).model_copy(update={"seq": 7}),
        ]


async def test_only_the_newest_of_what_was_said_is_kept_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "SAID", 2)
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        for number in (1, 2, 3, 3):
            await spool.append(send(number, to=1))
        await spool.finish(ending(1))
        await spool.acked(5)
        await spool.receive([delivery(1, seq=2)], 2)
        again = [decode(text) for _, text in await spool.frames_after(5, 10)]
        assert [one.text for one in again if isinstance(one, Send)] == ["reply 2", "reply 3"]


async def test_a_spool_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.executescript(f"BEGIN; {spool_file._SCHEMA} PRAGMA user_version = 1; COMMIT")
        connection.execute("UPDATE link SET epoch = 'ep_1'")
    connection.close()
    async with open_spool(path) as spool:
        assert spool.marks.epoch == "ep_1"
        await spool.append(send(1, to=1))


async def test_a_delivery_is_held_until_its_end_is_acknowledged() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        await spool.finish(ending(1))
        assert await spool.held() == ["dlv_1", "dlv_2"]
        await spool.acked(1)
        assert await spool.held() == ["dlv_2"]


async def test_a_launch_is_remembered_with_its_attempt(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.receive([delivery(1)], 1)
        await spool.record_launch(DeliveryId("dlv_1"), Leftover("l1", 42, 1.5), 1)
    async with open_spool(tmp_path / "state.db") as spool:
        assert await spool.leftovers() == [Leftover("l1", 42, 1.5)]
        [change] = await spool.changes_after(0)
        assert change.waiting
        assert change.waiting.attempts == 1
        await spool.forget_launches(["l1"])
        assert await spool.leftovers() == []


async def test_an_unreadable_file_is_set_aside_and_said(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    async with open_spool(tmp_path / "state.db") as spool:
        assert spool.note
        assert "set aside" in spool.note
        assert spool.marks.epoch is None
    [aside] = tmp_path.glob("state.db.corrupt-*")
    assert aside.read_bytes().startswith(b"no database")


async def test_a_damaged_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_spool(path) as spool:
        for number in range(200):
            await spool.append(report(f"{number}" * 100))
    data = bytearray(path.read_bytes())
    data[4096 * 5 : 4096 * 8] = b"\xff" * (4096 * 3)
    path.write_bytes(data)
    async with open_spool(path) as spool:
        assert spool.note


async def test_the_file_of_a_newer_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NewerSpoolError, match="schema 99"):
        async with open_spool(path):
            pass
    assert not list(tmp_path.glob("*.corrupt-*"))


async def test_a_file_that_cannot_be_opened_is_an_error_not_a_reset(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(SpoolError, match="cannot be opened"):
        async with open_spool(tmp_path / "state.db"):
            pass


async def test_another_hosts_memory_is_set_aside_not_sent_in_this_ones_name(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_spool(path, host_id="host_1") as spool:
        await spool.receive([delivery(1)], 1)
        await spool.append(report("of an agent of host_1"))
    async with open_spool(path, host_id="host_1") as spool:
        assert (spool.marks.last, spool.note) == (1, None)
    async with open_spool(path, host_id="host_2") as spool:
        assert spool.note
        assert spool.note.startswith("state.db was that of host_1; set aside as state.db.host_1-")
        assert (spool.marks.last, await waiting_ids(spool)) == (0, [])
    [aside] = tmp_path.glob("state.db.host_1-*")
    async with open_spool(aside, host_id="host_1") as spool:
        assert (spool.marks.last, spool.note) == (1, None)


async def test_the_file_is_private(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "daemon" / "state.db"):
        assert (tmp_path / "daemon" / "state.db").stat().st_mode & 0o777 == 0o600


async def test_old_state_is_taken_over_once(tmp_path: Path) -> None:
    old = tmp_path / "state.json"
    old.write_text('{"last_seq": 7, "processed_message_ids": ["msg_1"]}')
    async with open_spool(tmp_path / "state.db", old) as spool:
        await spool.receive([delivery(1), delivery(2)], 2)
        one, two = await spool.changes_after(0)
        assert one.waiting
        assert one.waiting.handled_before
        assert two.waiting
        assert not two.waiting.handled_before
        assert spool.marks.epoch is None
    assert not old.exists()
    async with open_spool(tmp_path / "state.db", old):
        pass


async def test_old_state_that_cannot_be_read_is_set_aside_and_said_once(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[1, 2")
    async with open_spool(tmp_path / "state.db", tmp_path / "state.json") as spool:
        [aside] = tmp_path.glob("state.json.corrupt-*")
        assert spool.note
        assert aside.name in spool.note
    async with open_spool(tmp_path / "state.db", tmp_path / "state.json") as spool:
        assert spool.note is None, "it is said once"
    assert aside.read_text() == "[1, 2"


async def test_a_frame_too_large_for_the_wire_is_refused() -> None:
    async with open_spool(None) as spool:
        with pytest.raises(ProtocolError, match="too large"):
            await spool.append(report("x" * 1_100_000))


async def test_one_bad_change_does_not_take_others_of_its_batch_with_it() -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise ValueError("mine alone")

    outcomes: list[str] = []

    async def attempt(work: Callable[[], Awaitable[Any]]) -> None:
        try:
            await work()
            outcomes.append("kept")
        except ValueError:
            outcomes.append("refused")

    async with open_spool(None) as spool, anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, lambda: spool.append(report("a")))
        tasks.start_soon(attempt, lambda: spool._committer.do(fail))
        tasks.start_soon(attempt, lambda: spool.append(report("b")))
    assert outcomes == ["kept", "refused", "kept"]


async def test_a_caller_that_is_cancelled_does_not_stop_its_change(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(_: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(5)

    async with open_spool(tmp_path / "state.db") as spool, anyio.create_task_group() as tasks:
        tasks.start_soon(spool._committer.do, hold_up)
        await anyio.to_thread.run_sync(begun.wait, 5)
        tasks.start_soon(spool.append, report("a"))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        go_on.set()
    async with open_spool(tmp_path / "state.db") as spool:
        assert [seq for seq, _ in await spool.frames_after(0, 10)] == [1]


async def test_a_full_disk_is_an_error_of_the_change_and_keeps_what_was_there(
    tmp_path: Path,
) -> None:
    async with open_spool(tmp_path / "state.db") as spool:
        await spool.append(report("first"))
        await spool._committer.do(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
        with pytest.raises(SpoolError, match="disk is full"):
            await spool.append(report("x" * 100_000))
        assert [seq for seq, _ in await spool.frames_after(0, 10)] == [1]


def with_files(number: int, count: int, to: int = 1) -> Send:
    files = [
        Attachment(
            id=AttachmentId(f"att_{number}x{each}"),
            name="a.png",
            media_type="image/png",
            size_bytes=1,
            sha256="0" * 64,
        )
        for each in range(count)
    ]
    return send(number, to=to).model_copy(update={"attachments": files or None})


async def test_a_message_waits_for_its_files_and_nobody_else_waits_for_it() -> None:
    async with open_spool(None) as spool:
        sent = with_files(1, 2)
        await spool.append(sent)
        await spool.finish(ending(1))
        await spool.append(report("the machine's"))
        other = ending(2).model_copy(update={"agent_id": AgentId("agent_2")})
        await spool.finish(other)
        await spool.append(sent)  # told again, as by a next life: it changes nothing
        assert [one.id for _, one in await spool.to_bring()] == ["att_1x0", "att_1x1"]
        assert (spool.marks.last, spool.marks.held, spool.marks.unsent) == (2, 3, 5)
        await spool.brought(AttachmentId("att_1x1"))
        assert spool.marks.held == 3
        await spool.brought(AttachmentId("att_1x0"))
        frames = [decode(text) for _, text in await spool.frames_after(2, 10)]
        assert [frame.type for frame in frames] == ["send", "run_report", "send"]
        await spool.acked(2)
        assert await spool.files() == {"att_1x0", "att_1x1"}
        await spool.acked(5)
        assert await spool.files() == set()
        # Its message is known here: told once more, it waits for nothing.
        await spool.append(sent)
        assert spool.marks.last == 6


async def test_what_is_held_is_held_for_the_backend_too_and_not_answered_twice() -> None:
    async with open_spool(None) as spool:
        await spool.receive([delivery(1)], 1)
        await spool.append(with_files(1, 1))
        await spool.finish(ending(1))
        assert await spool.held() == ["dlv_1"]
        await spool.receive([delivery(1, seq=2)], 2)
        assert (spool.marks.last, spool.marks.held) == (0, 2)
        reports = DeliveryReport(
            delivery_id=DeliveryId("dlv_9"), at=datetime.now(UTC), reason=Reason.FETCHING
        )
        await spool.append(reports)
        assert spool.marks.last == 1, "of a delivery that is not known"


class SpoolMachine(RuleBasedStateMachine):
    """The spool beside a model of it, through crashes at any moment.

    A crash is a copy of the files as they lie on the disk, as a kill would leave them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0" / "state.db"
        self.lives = 0
        self.received: set[int] = set()
        self.finished: set[int] = set()
        self.outbox: list[tuple[int, str]] = []
        self.last = 0
        self.accepted = 0
        self.epoch: str | None = None
        self.said = 0
        #: What waits for files of its agent's, in order; and the files of each message there is.
        self.held: list[str] = []
        self.files: dict[str, set[AttachmentId]] = {}
        self.unsettled: set[AttachmentId] = set()

    def post(self, name: str) -> None:
        """Of the one agent: behind what is held, or straight into the outbox."""
        if self.held or self.files.get(name, set()) & self.unsettled:
            self.held.append(name)
        else:
            self.last += 1
            self.outbox.append((self.last, name))

    def do(self, work: Callable[[Spool], Awaitable[Any]]) -> Any:
        """Works on the spool and then crashes: the next life opens what lies on the disk."""
        self.lives += 1
        after = Path(self.folder.name) / str(self.lives) / "state.db"

        async def live() -> Any:
            async with open_spool(self.path) as spool:
                assert spool.note is None
                result = await work(spool)
                after.parent.mkdir()
                for file in self.path.parent.iterdir():
                    (after.parent / file.name).write_bytes(file.read_bytes())
                return result

        try:
            return anyio.run(live)
        finally:
            self.path = after

    @initialize()
    def begin(self) -> None:
        self.reset()

    @rule(numbers=st.lists(st.integers(1, 8), min_size=1, max_size=3))
    def receive(self, numbers: list[int]) -> None:
        first = self.accepted + 1
        frames = [delivery(n, seq=first + i) for i, n in enumerate(numbers)]
        self.accepted += len(frames)
        self.do(lambda spool: spool.receive(frames, self.accepted))
        for number in numbers:
            ending_name = f"end {number}"
            on_its_way = [*(n for _, n in self.outbox), *self.held]
            if number in self.finished and ending_name not in on_its_way:
                self.post(ending_name)
        self.received |= set(numbers)

    @rule(name=st.sampled_from("abc"))
    def append(self, name: str) -> None:
        self.do(lambda spool: spool.append(report(name)))
        self.last += 1
        self.outbox.append((self.last, name))

    @rule(count=st.integers(0, 2))
    def say(self, count: int) -> None:
        self.said += 1
        sent = with_files(self.said, count, to=99)
        self.do(lambda spool: spool.append(sent))
        name = f"said {self.said}"
        self.files[name] = {one.id for one in sent.attachments or ()}
        self.unsettled |= self.files[name]
        self.post(name)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if unsettled := sorted(self.unsettled):
            one = data.draw(st.sampled_from(unsettled))
            self.do(lambda spool: spool.brought(one))
            self.unsettled.remove(one)
            held, self.held = self.held, []
            for name in held:
                self.post(name)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if waiting := sorted(self.received - self.finished):
            number = data.draw(st.sampled_from(waiting))
            self.do(lambda spool: spool.finish(ending(number)))
            self.post(f"end {number}")
            self.finished.add(number)

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        first = self.outbox[0][0] - 1 if self.outbox else self.last
        seq = data.draw(st.integers(first, self.last))
        self.do(lambda spool: spool.acked(seq))
        for name in [name for n, name in self.outbox if n <= seq]:
            self.files.pop(name, None)
        self.outbox = [(n, name) for n, name in self.outbox if n > seq]

    @rule()
    def reset(self) -> None:
        self.epoch = new_epoch()
        self.do(lambda spool: spool.reset_epoch(self.epoch))
        self.unsettled = set().union(*self.files.values())
        again = [*(name for _, name in self.outbox), *self.held]
        self.outbox, self.held, self.last, self.accepted = [], [], 0, 0
        for name in again:
            if len(name) > 1:
                self.post(name)
            else:  # the machine's own word, which waits for nobody
                self.last += 1
                self.outbox.append((self.last, name))

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not self.lives:
            return

        async def look(spool: Spool) -> None:
            marks = spool.marks
            assert (marks.epoch, marks.accepted, marks.last) == (
                self.epoch,
                self.accepted,
                self.last,
            )
            assert set(await waiting_ids(spool)) == {
                f"dlv_{n}" for n in self.received - self.finished
            }
            rows = await spool.frames_after(0, 1000)
            assert [(seq, _name(text)) for seq, text in rows] == self.outbox
            assert marks.held == len(self.held)
            assert {one.id for _, one in await spool.to_bring()} == self.unsettled
            assert await spool.files() == set().union(*self.files.values())
            held = {name.removeprefix("end ") for name in self.held if name.startswith("end ")}
            assert {f"dlv_{n}" for n in held} <= set(await spool.held())

        self.do(look)

    @override
    def teardown(self) -> None:
        self.folder.cleanup()


def _name(text: str) -> str:
    match decode(text):
        case HostReport(runtimes=[runtime]):
            return runtime.name
        case RunReport(delivery_ids=[delivery_id]):
            return f"end {delivery_id.removeprefix('dlv_')}"
        case Send(message_id=message_id):
            return f"said {message_id.removeprefix('msg_reply_')}"
        case other:
            raise AssertionError(other)


SpoolMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSpoolThroughCrashes = SpoolMachine.TestCase
