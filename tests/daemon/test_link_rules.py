"""The link's rules without I/O: backoff, and text that is being written."""

from datetime import UTC, datetime

from cloudagent_daemon.link.backoff import Backoff, is_fatal, is_rejection
from cloudagent_daemon.link.deltas import MAX_CHARS, Deltas
from cloudagent_daemon.link.transport import KeyRejectedError, LinkClosedError, UnreachableError
from cloudagent_protocol.errors import CloseCode
from cloudagent_protocol.events import Finished, Outcome, Text
from cloudagent_protocol.frames import Delta, RunReport
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, RunId

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def upper(_: float, high: float) -> float:
    return high


def test_the_wait_doubles_from_half_a_second_to_a_minute() -> None:
    backoff = Backoff(upper)
    waits = [backoff.delay(UnreachableError("down"), 0.0) for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_the_jitter_is_full() -> None:
    backoff = Backoff(lambda low, high: low)
    assert [backoff.delay(UnreachableError("down"), 0.0) for _ in range(5)] == [0.0] * 5


def test_chance_is_used_unless_told_otherwise() -> None:
    waits = {Backoff().delay(UnreachableError("down"), 0.0) for _ in range(20)}
    assert len(waits) > 1
    assert all(0 <= wait <= 0.5 for wait in waits)


def test_a_minute_of_stability_makes_the_next_failure_a_first_one() -> None:
    backoff = Backoff(upper)
    for _ in range(6):
        backoff.delay(LinkClosedError(1006), 1.0)
    assert backoff.delay(LinkClosedError(1006), 60.0) == 0.5


def test_a_refused_key_or_protocol_is_tried_again_after_five_minutes_only() -> None:
    for end in (
        KeyRejectedError("401"),
        LinkClosedError(CloseCode.UNAUTHORIZED),
        LinkClosedError(CloseCode.REVOKED),
        LinkClosedError(CloseCode.UPGRADE_NEEDED),
    ):
        assert is_fatal(end)
        assert Backoff(upper).delay(end, 0.0) == 300
    assert not is_rejection(LinkClosedError(CloseCode.UPGRADE_NEEDED))


def test_two_daemons_of_one_host_give_each_other_up_to_five_minutes() -> None:
    backoff = Backoff(upper)
    waits = [backoff.delay(LinkClosedError(CloseCode.SUPERSEDED), 0.0) for _ in range(12)]
    assert waits[0] == 0.5
    assert waits[-1] == 300


def test_a_machine_without_network_looks_every_few_seconds_however_long_that_lasts() -> None:
    backoff = Backoff(upper)
    waits = [backoff.delay(UnreachableError("no name", offline=True), 0.0) for _ in range(12)]
    assert waits[0] == 0.5
    assert max(waits) == waits[-1] == 8


def test_what_the_backend_asks_for_is_waited_for() -> None:
    assert Backoff(upper).delay(UnreachableError("429", retry_after_s=7), 0.0) == 7.5
    assert Backoff(upper).delay(LinkClosedError(CloseCode.SLOW_DOWN), 0.0) == 60.5


def piece(offset: int, text: str, block: int = 0, run: str = "run_1") -> Delta:
    return Delta(
        run_id=RunId(run),
        agent_id=AgentId("a"),
        conversation_id=ConversationId("c"),
        block=block,
        offset=offset,
        text=text,
    )


def said(event: Text | Finished) -> RunReport:
    return RunReport(
        run_id=RunId("run_1"),
        agent_id=AgentId("a"),
        conversation_id=ConversationId("c"),
        delivery_ids=[DeliveryId("d")],
        event=event,
    )


def taken(deltas: Deltas) -> list[tuple[int, int, str]]:
    return [(d.block, d.offset, d.text) for d in deltas.take()]


def test_pieces_are_joined_and_go_out_once() -> None:
    deltas = Deltas()
    deltas.add(piece(0, "Hel"))
    deltas.add(piece(3, "lo "))
    assert taken(deltas) == [(0, 0, "Hello ")]
    deltas.add(piece(6, "wörld"))
    assert taken(deltas) == [(0, 6, "wörld")]
    assert taken(deltas) == []


def test_a_new_connection_begins_with_the_whole_block() -> None:
    deltas = Deltas()
    deltas.add(piece(0, "Hello"))
    deltas.take()
    deltas.begin_again()
    assert taken(deltas) == [(0, 0, "Hello")]


def test_a_finished_text_is_not_sent_as_pieces_any_more() -> None:
    deltas = Deltas()
    deltas.add(piece(0, "Hello"))
    deltas.reported(said(Text(at=NOW, block=0, text="Hello")))
    deltas.begin_again()
    assert taken(deltas) == []
    deltas.add(piece(0, "Next", block=1))
    assert taken(deltas) == [(1, 0, "Next")]
    deltas.reported(said(Finished(at=NOW, outcome=Outcome.REPLIED)))
    deltas.begin_again()
    assert taken(deltas) == []


def test_pieces_that_do_not_join_on_are_left_out() -> None:
    deltas = Deltas()
    deltas.add(piece(5, "late"))
    assert taken(deltas) == []
    deltas.add(piece(0, "ab"))
    deltas.add(piece(7, "gap"))
    assert taken(deltas) == [(0, 0, "ab")]


def test_a_block_is_kept_up_to_a_bound() -> None:
    deltas = Deltas()
    deltas.add(piece(0, "x" * MAX_CHARS))
    deltas.add(piece(MAX_CHARS, "y"))
    assert [len(text) for _, _, text in taken(deltas)] == [MAX_CHARS]
