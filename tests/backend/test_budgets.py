"""What agents use is counted with the end of each turn; above a budget a person is asked, and nothing is lost."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.budgets import passed
from cloudagent_backend.delivery.chains import Limits
from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.store import agents, chains, usage
from cloudagent_backend.store.usage import DayRow
from cloudagent_protocol.events import Usage, UsageReported
from cloudagent_protocol.frames import Deliver
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import (
    Agent,
    AgentLimits,
    ChainDecide,
    ChainState,
    DeliveryTrace,
    Message,
)
from fakes.desk import Desk, Run, now, open_desk

CONTINUE, STOP = ChainDecide(decision="continue"), ChainDecide(decision="stop")
USED = Usage(input_tokens=700, output_tokens=50, cost_usd=0.25)


async def budget(desk: Desk, **limits: Any) -> None:
    def work(c: Any) -> None:
        row = agents.load(c, desk.user_id, desk.agent_id)
        assert row
        desk.service.agent_changed(c, agents.update(c, row, {"limits": limits}))

    await desk.database.write(work)


async def turn(desk: Desk, message: Message, used: Usage | None = USED) -> None:
    run = Run(message)
    await desk.report(run.started(), run.finished(usage=used))


async def spend(desk: Desk, used: Usage = USED) -> None:
    """A message, and its whole turn."""
    message = await desk.say()
    await desk.receive_all()
    await turn(desk, message, used)


async def agent(desk: Desk) -> Agent:
    def work(c: Any) -> Agent:
        row = agents.load(c, desk.user_id, desk.agent_id)
        assert row
        return agents.resource(c, row)

    return await desk.database.read(work)


async def today(desk: Desk) -> DayRow:
    return await desk.database.read(lambda c: usage.load(c, desk.agent_id, usage.today()))


async def trace(desk: Desk, message: Message) -> DeliveryTrace:
    [row] = await desk.rows(message)
    return await desk.database.read(lambda c: ladder.trace(c, row))


async def sent(desk: Desk) -> list[str]:
    return [frame.message.text for frame in await desk.lease() if isinstance(frame, Deliver)]


async def test_what_turns_use_is_summed_for_each_agent_and_day(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        await spend(desk)
        await spend(desk)
        day = await today(desk)
        assert (day.turns, day.input_tokens, day.output_tokens, day.cost_usd) == (2, 1400, 100, 0.5)


async def test_a_report_that_comes_twice_counts_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        end = run.started(), run.finished(usage=USED)
        await desk.report(*end)
        await desk.report(*end)
        assert (await today(desk)).turns == 1


async def test_usage_that_was_told_before_the_process_vanished_counts(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.greet()
        message = await desk.say()
        await desk.receive_all()
        run = Run(message)
        told = run.report(UsageReported(at=now(), usage=USED))
        await desk.report(run.started(), told, run.finished())
        assert (await today(desk)).tokens == 750
        assert (await today(desk)).turns == 1


async def test_above_the_budget_messages_wait_for_a_person_who_lets_it_use_as_much_again(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_tokens=1_000)
        await desk.greet()
        await spend(desk)
        await spend(desk)  # begun below the budget, it may pass it
        message = await desk.say("and this")
        assert await sent(desk) == []
        waits = await trace(desk, message)
        assert (waits.state, waits.reason) == ("queued", "budget")
        assert waits.waits_until is not None
        assert "used 1,500 tokens today" in (waits.rungs[-1].detail or "")
        pause = (await agent(desk)).pause
        assert pause is not None
        assert (pause.waiting, pause.pause) == (1, 1)
        assert await sent(desk) == []  # looked at again, it is held and told once
        assert (await trace(desk, message)).rungs == waits.rungs
        decided = await desk.service.decide_budget(desk.user_id, "ana", desk.agent_id, CONTINUE)
        assert decided.pause is None
        assert await sent(desk) == ["and this"]
        with pytest.raises(Refused, match="ana has answered already: continue"):
            await desk.service.decide_budget(desk.user_id, "bo", desk.agent_id, CONTINUE)
        await desk.receive_all()
        await turn(desk, message)  # 2,250 of 2,500: as much again, from where it was
        await spend(desk)
        await desk.say("third")
        assert await sent(desk) == []
        again = (await agent(desk)).pause
        assert again is not None
        assert again.pause == 2


async def test_a_stop_cancels_what_waits_and_nothing_else(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_cost_usd=0.2)
        await desk.greet()
        await spend(desk)
        message = await desk.say()
        other = await desk.say("hello", agent_id=await desk.add_agent("api"))
        await desk.lease()
        await desk.service.decide_budget(desk.user_id, "ana", desk.agent_id, STOP)
        assert await desk.state(message) == "cancelled"
        assert await desk.state(other) == "leased"
        late = await desk.say()  # and the next one asks again
        assert await sent(desk) == ["hello"]
        assert (await trace(desk, late)).reason == "budget"


async def test_a_larger_budget_lets_it_go_on(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_tokens=100)
        await desk.greet()
        await spend(desk)
        await desk.say("and this")
        assert await sent(desk) == []
        await budget(desk, day_tokens=200)
        assert await sent(desk) == []
        await budget(desk, day_tokens=10_000)
        assert await sent(desk) == ["and this"]
        assert (await agent(desk)).pause is None
        await budget(desk)
        assert (await agent(desk)).limits == AgentLimits()


async def test_a_new_day_lets_it_go_on_after_a_restart_too(tmp_path: Path) -> None:
    yesterday = str(date.fromisoformat(usage.today()) - timedelta(days=1))
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_tokens=100)
        await desk.greet()
        await spend(desk)
        await desk.say("and this")
        assert await sent(desk) == []
        await desk.service.begin_day()
        assert await sent(desk) == []
        await desk.database.write(
            lambda c: c.execute("UPDATE usage_days SET day = ?", (yesterday,))
        )
        await desk.service.begin_day()
        assert await sent(desk) == ["and this"]
        assert (await agent(desk)).pause is None
        assert await desk.database.read(lambda c: usage.over_before(c, usage.today())) == []


async def test_an_agent_that_has_not_paused_has_nothing_to_decide(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_tokens=100)
        with pytest.raises(Refused, match="has not paused"):
            await desk.service.decide_budget(desk.user_id, "ana", desk.agent_id, CONTINUE)
        with pytest.raises(Refused):
            await desk.service.decide_budget(desk.user_id, "ana", AgentId("agent_no"), CONTINUE)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 10**7))
def test_a_budget_is_passed_where_as_much_is_used_as_was_allowed(
    given_in: int, given_out: int, before: int, allowed: int
) -> None:
    day = DayRow(AgentId("agent_1"), "2026-11-27", 1, given_in, given_out, from_tokens=before)
    said = passed(AgentLimits(day_tokens=allowed), day)
    assert (said is not None) is (given_in + given_out >= allowed + before)
    assert passed(AgentLimits(), day) is None


async def test_a_chain_counts_what_its_runs_use_and_pauses_at_its_budget(tmp_path: Path) -> None:
    async with open_desk(tmp_path, limits=Limits(tokens=1_000)) as desk:
        await desk.greet()
        first = await desk.say()
        await desk.receive_all()
        await turn(desk, first, Usage(input_tokens=300))
        allowance = Limits(tokens=1_000).allowance

        def begin(c: Any) -> chains.ChainRow:
            return chains.begin(c, desk.user_id, first.id, allowance)

        # What the first message's run has used counts, though its chain had no row then.
        assert (await desk.database.write(begin)).used.input_tokens == 300
        assert (await desk.database.write(begin)).used.input_tokens == 300

        def spend_and_ask(c: Any, tokens: int) -> int | None:
            usage.add_to_chain(c, first.id, Usage(output_tokens=tokens, cost_usd=0.1))
            return chains.take_turn(c, first.id)

        assert await desk.database.write(lambda c: spend_and_ask(c, 699)) == 1
        assert await desk.database.write(lambda c: spend_and_ask(c, 1)) is None

        def go_on(c: Any) -> chains.ChainRow:
            chains.pause(c, first.id)
            row = chains.load(c, desk.user_id, first.id)
            assert row
            return chains.answer(c, row, "continue", "ana", allowance)

        row = await desk.database.write(go_on)
        assert (row.state, row.allowed_tokens) == (ChainState.ACTIVE, 2_000)
        assert await desk.database.write(lambda c: chains.take_turn(c, first.id)) == 2
        shown = await desk.database.read(lambda c: chains.resource(c, row))
        assert shown.usage == Usage(input_tokens=300, output_tokens=700, cost_usd=0.2)
        assert (shown.tokens_allowed, shown.cost_usd_allowed) == (2_000, None)


async def test_days_are_listed_by_page_the_newest_first(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        days = [("agent_a", "2026-11-25"), ("agent_a", "2026-11-26"), ("agent_b", "2026-11-26")]
        for agent_id, day in days:
            await desk.database.write(
                lambda c, agent_id=agent_id, day=day: usage.add(
                    c, desk.user_id, AgentId(agent_id), day, USED
                )
            )

        async def listed(
            agent_id: str | None = None, after: tuple[str, str] | None = None, limit: int = 9
        ) -> list[tuple[str, str]]:
            wanted = AgentId(agent_id) if agent_id else None
            found = await desk.database.read(
                lambda c: usage.page(
                    c, desk.user_id, "2026-11-01", "2026-11-30", wanted, limit=limit, after=after
                )
            )
            return [(row.agent_id, row.day) for row in found]

        assert await listed() == list(reversed(days))
        assert await listed(after=("2026-11-26", "agent_b")) == [days[1], days[0]]
        assert await listed(limit=1) == [days[2]]
        assert await listed("agent_b") == [days[2]]


async def test_the_short_way_to_a_machine_that_is_here_leads_past_no_budget(
    tmp_path: Path,
) -> None:
    async with open_desk(tmp_path) as desk:
        await budget(desk, day_tokens=100)
        session = Session(desk.machine.host_id, "in_1")
        desk.hub.attach(session)
        await desk.greet()
        session.ready, session.behind = True, False
        message = await desk.say()
        assert await desk.state(message) == "leased"
        await desk.receive_all()
        await turn(desk, message)
        late = await desk.say("and this")
        assert (await trace(desk, late)).reason == "budget"
