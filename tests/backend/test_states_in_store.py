"""The life of deliveries in the real store, beside a model of it, under writers that read too early.

The model knows the table of moves by heart: what `delivery/states.py` allows is compared with what is
written here, and what the store does with both.
"""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from typing_extensions import override

from cloudagent_backend.delivery import ladder, states, stopping
from cloudagent_backend.store import agents, conversations, deliveries, hosts, outbox, schema, users
from cloudagent_backend.store.deliveries import DeliveryRow, NewRung
from cloudagent_protocol.events import Reason
from cloudagent_protocol.ids import DeliveryId, MessageId
from cloudagent_protocol.resources import (
    AgentCreate,
    DeliveryState,
    Driver,
    HostMachineCreate,
    RungName,
)

S = DeliveryState
OPEN = [S.QUEUED, S.LEASED, S.RECEIVED, S.RUNNING, S.WAITING]
ENDS = [S.DONE, S.FAILED, S.CANCELLED, S.DEAD]
#: From, to. Written out, and not derived, so that a slip in the table is seen.
ALLOWED = {
    (S.QUEUED, S.LEASED),
    (S.QUEUED, S.RECEIVED),
    (S.QUEUED, S.CANCELLED),
    (S.QUEUED, S.DEAD),
    (S.LEASED, S.QUEUED),
    (S.LEASED, S.RECEIVED),
    (S.LEASED, S.DEAD),
    (S.RECEIVED, S.QUEUED),
    (S.RECEIVED, S.RUNNING),
    *((S.RECEIVED, end) for end in ENDS),
    (S.RUNNING, S.QUEUED),
    (S.RUNNING, S.RUNNING),
    (S.RUNNING, S.WAITING),
    *((S.RUNNING, end) for end in ENDS),
    (S.WAITING, S.QUEUED),
    (S.WAITING, S.RUNNING),
    *((S.WAITING, end) for end in ENDS),
}
CAP = 5


def test_the_table_allows_what_is_written_here_and_nothing_else() -> None:
    table = {(here, there) for here, targets in states.MOVES.items() for there in targets}
    assert table == ALLOWED


@dataclass
class Known:
    """What a delivery should be."""

    state: S = S.QUEUED
    rungs: list[str] = field(default_factory=lambda: ["stored"])
    outcome: str | None = None
    attempt: int = 0
    interrupted_by: str | None = None
    held: bool = False


class Store(RuleBasedStateMachine):
    """One host with one agent; each rule is one transaction, and some begin with an old look."""

    ids: Bundle[DeliveryId] = Bundle("ids")
    looks: Bundle[DeliveryRow] = Bundle("looks")

    def __init__(self) -> None:
        super().__init__()
        self.c = sqlite3.connect(":memory:", isolation_level=None)
        self.c.row_factory = sqlite3.Row
        schema.migrate(self.c)
        self.c.execute("PRAGMA foreign_keys = ON")
        self.user = users.create(self.c, "ana@example.com", name="ana").id
        self.host = hosts.create(self.c, self.user, HostMachineCreate(name="mbp")).id
        wanted = AgentCreate(name="shop", driver=Driver.SCRIPTED, host_machine_id=self.host)
        self.agent = agents.create(self.c, self.user, wanted).id
        self.conversation = conversations.create(self.c, self.user, [self.agent]).id
        self.known: dict[DeliveryId, Known] = {}
        self.ladders: dict[DeliveryId, str] = {}

    def load(self, delivery_id: DeliveryId) -> DeliveryRow:
        row = deliveries.load(self.c, delivery_id)
        assert row
        return row

    # --- what happens ---

    @rule(target=ids)
    def submit(self) -> Any:
        seq = outbox.next_delivery_seq(self.c, self.host, CAP)
        waiting = sum(one.state in OPEN for one in self.known.values())
        assert (seq is None) == (waiting >= CAP)
        delivery_id = DeliveryId(f"dlv_{len(self.known):04}")
        if seq is None:  # an id that is not there: to be asked for all the same
            return delivery_id
        row = DeliveryRow(
            id=delivery_id,
            user_id=self.user,
            host_id=self.host,
            agent_id=self.agent,
            conversation_id=self.conversation,
            message_id=MessageId("msg_1"),
            seq=seq,
        )
        assert deliveries.insert(self.c, row, [NewRung(RungName.STORED, "ana")]) == self.load(
            row.id
        )
        self.known[row.id] = Known()
        return row.id

    @rule(target=looks, delivery_id=ids)
    def look(self, delivery_id: DeliveryId) -> DeliveryRow:
        """What a writer has read, who writes later."""
        row = deliveries.load(self.c, delivery_id)
        assert (row is not None) == (delivery_id in self.known)
        return row or DeliveryRow(
            delivery_id, self.user, self.host, self.agent, self.conversation, MessageId("msg_1"), 1
        )

    @rule(row=looks, to=st.sampled_from(S), attempt=st.integers(1, 3))
    def move(self, row: DeliveryRow, to: S, attempt: int) -> None:
        """By a row as it was read some time ago: what counts is how it stands."""
        known = self.known.get(row.id)
        outcome = to.value if to in ENDS else None
        rung = NewRung(RungName.WAITING, f"to {to}")
        moved = ladder.move(self.c, row, to, rung, outcome=outcome, attempt=attempt)
        if known is None or (known.state, to) not in ALLOWED:
            assert moved is None
            return
        assert moved == self.load(row.id)
        known.state, known.attempt = to, attempt
        known.outcome = outcome or known.outcome
        known.rungs.append("waiting")

    @rule(row=looks)
    def note(self, row: DeliveryRow) -> None:
        noted = deliveries.note(self.c, row, NewRung(RungName.SEEN, "shop", at_us=1))
        if known := self.known.get(row.id):
            known.rungs.append("seen")
            assert noted == self.load(row.id)

    @rule(row=looks)
    def receive(self, row: DeliveryRow) -> None:
        """An ack, by a row of this moment: that is how it is called."""
        known = self.known.get(row.id)
        if known is None:
            return
        ladder.receive(self.c, self.load(row.id), "mbp")
        if known.state in {S.QUEUED, S.LEASED}:
            known.rungs += ["received"] if "sent" in known.rungs else ["sent", "received"]
            known.state = S.RECEIVED

    @rule(row=looks, actor=st.sampled_from(["ana", "backend"]))
    def stop(self, row: DeliveryRow, actor: str) -> None:
        known = self.known.get(row.id)
        if known is None:
            return
        stopping.stop(self.c, self.load(row.id), actor)
        if known.state is S.QUEUED:
            known.state, known.outcome = S.CANCELLED, "cancelled"
            known.rungs.append("cancelled")
        elif known.state in OPEN:
            known.interrupted_by = known.interrupted_by or actor

    @rule(row=looks)
    def hold_or_release(self, row: DeliveryRow) -> None:
        known = self.known.get(row.id)
        if known is None or known.state is not S.QUEUED:
            return
        if known.held:
            deliveries.release(self.c, self.load(row.id), 1_000)
        else:
            deliveries.hold(self.c, self.load(row.id), NewRung(RungName.WAITING, "backend"))
            known.rungs.append("waiting")
        known.held = not known.held

    @rule(row=looks)
    def give_up(self, row: DeliveryRow) -> None:
        known = self.known.get(row.id)
        ladder.close(self.c, row, S.DEAD, actor="backend", detail="no", reason=Reason.AGENT_UNKNOWN)
        if known and known.state in OPEN:
            known.state, known.outcome = S.DEAD, "dead"
            known.rungs.append("dead")

    @rule(delivery_id=ids)
    def read_a_row_that_somebody_else_has_changed(self, delivery_id: DeliveryId) -> None:
        """A writer whose row differs in a field that moves do not look at loses nothing."""
        row = deliveries.load(self.c, delivery_id)
        if row is None:
            return
        deliveries.interrupted(self.c, row.id, "ana")
        first = self.known[row.id].interrupted_by or "ana"
        self.known[row.id].interrupted_by = first
        assert self.load(row.id) == replace(row, interrupted_by=first)

    # --- what must hold, always ---

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        for delivery_id, known in self.known.items():
            row = self.load(delivery_id)
            assert row.state is known.state
            assert (row.outcome, row.attempt) == (known.outcome, known.attempt)
            assert (row.interrupted_by, row.held) == (known.interrupted_by, known.held)
            assert [rung["rung"] for rung in json.loads(row.rungs)] == known.rungs

    @invariant()
    def ladders_only_grow_and_their_times_never_go_back(self) -> None:
        for delivery_id in self.known:
            ladder_now = self.load(delivery_id).rungs
            assert ladder_now.startswith(self.ladders.get(delivery_id, "[")[:-1])
            self.ladders[delivery_id] = ladder_now
            times = [rung["at"] for rung in json.loads(ladder_now)]
            assert times == sorted(times)

    @invariant()
    def what_is_open_is_counted_and_found(self) -> None:
        by_state: Callable[..., set[DeliveryId]] = lambda *wanted: {  # noqa: E731 (a query, in place)
            one for one, known in self.known.items() if known.state in wanted
        }
        held = {one for one in by_state(S.QUEUED) if self.known[one].held}
        assert {row.id for row in deliveries.in_flight(self.c, self.host)} == by_state(*OPEN[1:])
        queued = {row.id for row in deliveries.queued(self.c, self.host, self.agent, 100)}
        assert queued == by_state(S.QUEUED) - held
        assert {row.id for row in deliveries.held_of_host(self.c, self.host)} == held
        assert {row.id for row in deliveries.open_of_host(self.c, self.host)} == by_state(*OPEN)
        [backlog] = self.c.execute("SELECT backlog FROM links").fetchall() or [(0,)]
        assert backlog[0] == len(by_state(*OPEN))

    @override
    def teardown(self) -> None:
        self.c.close()


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to make a failure shorter takes minutes
)
