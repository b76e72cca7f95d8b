from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.link.tables import Waiting
from cloudagent_daemon.runs.order import Order
from cloudagent_protocol.frames import Deliver, DeliveredMessage
from cloudagent_protocol.ids import AgentId, ConversationId, DeliveryId, MessageId
from cloudagent_protocol.resources import AgentSpec, Author, DeliveryMode


def waiting(seq: int, agent: str = "a", conversation: str = "c") -> Waiting:
    return Waiting(
        Deliver(
            delivery_id=DeliveryId(f"dlv_{seq}"),
            delivery_seq=seq,
            mode=DeliveryMode.INTERRUPT if seq < 0 else DeliveryMode.QUEUE,
            agent=AgentSpec(id=AgentId(agent), name=agent, driver="scripted"),
            message=DeliveredMessage(
                id=MessageId(f"msg_{seq}"),
                conversation_id=ConversationId(conversation),
                author=Author(type="user", id="u", name="Ana"),
                text="x",
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            ),
        )
    )


def started(order: Order) -> list[int]:
    found = list[int]()
    while chosen := order.next():
        found.append(chosen.deliver.delivery_seq)
    return found


def test_a_conversation_has_one_run_at_a_time() -> None:
    order = Order(5)
    order.put(waiting(1))
    order.put(waiting(2))
    assert started(order) == [1]
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == [2]


def test_a_conversation_of_two_agents_has_one_run_at_a_time_too() -> None:
    order = Order(5)
    order.put(waiting(1, "a", "shared"))
    order.put(waiting(2, "b", "shared"))
    assert started(order) == [1]


def test_a_run_that_waits_for_people_holds_up_its_own_conversation_only() -> None:
    order = Order(5)
    order.put(waiting(1, "a", "asking"))
    assert started(order) == [1]
    order.ended(DeliveryId("dlv_1"))
    order.park(waiting(1, "a", "asking"))
    order.put(waiting(2, "a", "asking"))
    order.put(waiting(3, "a", "another"))
    assert started(order) == [3]
    order.put(waiting(1, "a", "asking"))  # the answer has come
    assert started(order) == [1]
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == [2]


def test_the_machine_has_a_cap() -> None:
    order = Order(2)
    for seq in range(1, 5):
        order.put(waiting(seq, f"agent {seq}", f"conversation {seq}"))
    assert len(started(order)) == 2


def test_an_agents_messages_start_in_the_order_of_their_seq() -> None:
    order = Order(5)
    order.put(waiting(3, "a", "third"))
    order.put(waiting(2, "a", "busy"))
    order.put(waiting(1, "a", "busy"))
    assert started(order) == [1]
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == [2, 3]


def test_a_long_line_of_one_agent_does_not_keep_another_waiting() -> None:
    order = Order(1)
    for seq in range(1, 10):
        order.put(waiting(seq, "busy", f"conversation {seq}"))
    order.put(waiting(50, "other", "conversation 50"))
    assert started(order) == [1]
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == [50]


def test_the_last_place_is_kept_for_an_agent_that_has_none() -> None:
    order = Order(3)
    for seq in range(1, 10):
        order.put(waiting(seq, "busy", f"conversation {seq}"))
    assert started(order) == [1, 2]
    order.put(waiting(50, "other", "conversation 50"))
    order.put(waiting(51, "other", "conversation 51"))
    assert started(order) == [50]
    order.ended(DeliveryId("dlv_50"))
    assert started(order) == [51]


def test_what_interrupts_starts_next_of_its_agent_and_before_other_agents() -> None:
    order = Order(2)
    order.put(waiting(1, "busy", "shared"))
    assert started(order) == [1]
    order.put(waiting(2, "fresh", "shared"))
    order.put(waiting(3, "busy", "shared"))
    order.put(waiting(-1, "busy", "shared"))
    assert started(order) == []
    running = order.running_in(ConversationId("shared"))
    assert running
    assert running.delivery_seq == 1
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == [-1]
    assert order.running_in(ConversationId("elsewhere")) is None


def test_what_was_removed_does_not_start() -> None:
    order = Order(5)
    order.put(waiting(1))
    order.remove(DeliveryId("dlv_1"))
    assert started(order) == []
    assert order.queued(AgentId("a")) == 0


def test_a_running_delivery_is_not_put_again() -> None:
    order = Order(5)
    order.put(waiting(1))
    assert started(order) == [1]
    order.put(waiting(1))
    order.ended(DeliveryId("dlv_1"))
    assert started(order) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30), st.data())
def test_every_delivery_starts_once_and_never_two_of_a_conversation(
    wanted: list[tuple[str, str]], data: st.DataObject
) -> None:
    order, running, starts = Order(3), dict[int, str](), list[int]()
    agents = {seq: agent for seq, (agent, _) in enumerate(wanted)}
    for seq, (agent, conversation) in enumerate(wanted):
        order.put(waiting(seq, agent, conversation))
    while len(starts) < len(wanted) or running:
        for seq in started(order):
            assert wanted[seq][1] not in running.values()
            running[seq] = wanted[seq][1]
            starts.append(seq)
        assert 0 < len(running) <= 3
        assert len(running) < 3 or len({agents[seq] for seq in running}) > 1
        over = data.draw(st.sampled_from(sorted(running)))
        del running[over]
        order.ended(DeliveryId(f"dlv_{over}"))
    assert sorted(starts) == list(range(len(wanted)))
    for agent in "abc":
        mine = [seq for seq in starts if agents[seq] == agent]
        assert mine == sorted(mine)
