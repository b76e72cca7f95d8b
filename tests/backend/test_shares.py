"""How a host's window is shared between its agents, as a rule."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloudagent_backend.delivery.shares import allot
from cloudagent_backend.store.deliveries import DeliveryRow
from cloudagent_protocol.ids import (
    AgentId,
    ConversationId,
    DeliveryId,
    HostId,
    MessageId,
    UserId,
)
from cloudagent_protocol.resources import DeliveryMode

ONE, OTHER, THIRD = AgentId("agent_1"), AgentId("agent_2"), AgentId("agent_3")


def row(agent: AgentId, seq: int) -> DeliveryRow:
    return DeliveryRow(
        id=DeliveryId(f"dlv_{agent}_{seq}"),
        user_id=UserId("usr_1"),
        host_id=HostId("host_1"),
        agent_id=agent,
        conversation_id=ConversationId("conv_1"),
        message_id=MessageId(f"msg_{seq}"),
        seq=seq,
        mode=DeliveryMode.INTERRUPT if seq < 0 else DeliveryMode.QUEUE,
    )


def line(agent: AgentId, *seqs: int) -> list[DeliveryRow]:
    return [row(agent, seq) for seq in seqs]


def seqs(chosen: list[DeliveryRow]) -> list[int]:
    return [one.seq for one in chosen]


def test_one_agent_alone_gets_the_whole_window_in_its_order() -> None:
    assert seqs(allot(3, {}, {ONE: line(ONE, 1, 2, 3, 4)})) == [1, 2, 3]


def test_a_first_message_does_not_wait_for_a_window_that_another_agent_has_filled() -> None:
    waiting = {ONE: line(ONE, *range(5, 1_000)), OTHER: line(OTHER, 1_000, 1_001)}
    assert seqs(allot(4, {ONE: 4}, waiting)) == [1_000]


def test_free_places_go_to_whoever_has_fewest() -> None:
    waiting = {ONE: line(ONE, *range(10, 20)), OTHER: line(OTHER, *range(30, 40))}
    chosen = Counter(one.agent_id for one in allot(8, {ONE: 4, OTHER: 1}, waiting))
    assert chosen == {OTHER: 3}
    chosen = Counter(one.agent_id for one in allot(10, {ONE: 4, OTHER: 1}, waiting))
    assert chosen == {ONE: 1, OTHER: 4}


def test_what_interrupts_goes_past_a_full_window_but_not_without_end() -> None:
    waiting = {ONE: line(ONE, *range(-9, 0), 7)}
    assert seqs(allot(4, {ONE: 4}, waiting)) == [-9, -8, -7, -6]
    assert seqs(allot(4, {ONE: 8}, waiting)) == []


@given(
    window=st.integers(1, 6),
    in_flight=st.dictionaries(st.sampled_from([ONE, OTHER, THIRD]), st.integers(0, 8)),
    lengths=st.dictionaries(st.sampled_from([ONE, OTHER, THIRD]), st.integers(0, 9)),
    interrupting=st.dictionaries(st.sampled_from([ONE, OTHER, THIRD]), st.integers(0, 3)),
)
def test_nobody_starves_and_nothing_is_without_bound(
    window: int,
    in_flight: dict[AgentId, int],
    lengths: dict[AgentId, int],
    interrupting: dict[AgentId, int],
) -> None:
    waiting = {
        agent: line(agent, *range(-interrupting.get(agent, 0), 0), *range(1, 1 + length))
        for agent, length in lengths.items()
    }
    chosen = allot(window, in_flight, waiting)
    assert chosen == sorted(chosen, key=lambda one: one.seq)
    held = Counter(in_flight)
    for agent, rows in waiting.items():
        mine = [one for one in chosen if one.agent_id == agent]
        assert mine == rows[: len(mine)]
        held[agent] += len(mine)
        if rows:
            assert held[agent]
    total = sum(in_flight.values())
    if chosen:
        assert held.total() <= max(total, 2 * window) + len(waiting)
    if held.total() < window:
        assert all(
            len(rows) <= held[agent] - in_flight.get(agent, 0) for agent, rows in waiting.items()
        )
