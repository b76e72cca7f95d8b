"""An account that has used up what it may gets no turn until its limit is over, whatever the clocks do."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudagent_daemon.runs import limits_file
from cloudagent_daemon.runs.limits import Limit, Limits, account_of
from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec

START = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ENVIRONMENT = {"HOME": "/home/ana", "PATH": "/bin", "CODEX_HOME": "/home/ana/.codex"}


def agent(number: int = 1, driver: str = "claude_code", **more: object) -> AgentSpec:
    spec = {"id": AgentId(f"agent_{number}"), "name": f"a{number}", "driver": driver, **more}
    return AgentSpec.model_validate(spec)


def refused(until: datetime | None, reason: Reason = Reason.RATE_LIMIT) -> Finished:
    return Finished(at=START, outcome=Outcome.FAILED, reason=reason, resets_at=until)


class World:
    """Limits under two clocks, which pass alike unless they are told not to."""

    def __init__(self, kept: Sequence[Limit] = (), wall: datetime = START) -> None:
        self.wall, self.clock = wall, 100.0
        self.limits = Limits(ENVIRONMENT, lambda: self.wall, lambda: self.clock, kept)

    def pass_by(self, time: timedelta) -> None:
        self.wall += time
        self.clock += time.total_seconds()

    def withheld(self, *agents: AgentSpec) -> list[bool]:
        for one in agents:
            self.limits.know(one)
        return [self.limits.withholds(one.id) for one in agents]


def test_all_agents_of_the_account_wait_until_its_limit_is_over_and_no_others() -> None:
    world = World()
    same, other = agent(2), agent(3, "codex")
    elsewhere = agent(4, env={"CLAUDE_CONFIG_DIR": "/home/ana/work"})
    keyed = agent(5, env={"ANTHROPIC_API_KEY": "sk-1"})
    assert world.limits.ended(agent(1), refused(START + 2 * HOUR))
    assert world.withheld(agent(1), same, other, elsewhere, keyed) == [True, True] + [False] * 3
    assert set(world.limits.limited()) == {"agent_1", "agent_2"}
    assert "14:00 UTC" in world.limits.limited()[AgentId("agent_1")].detail
    world.pass_by(2 * HOUR - timedelta(seconds=1))
    assert world.withheld(agent(1)) == [True]
    assert world.limits.next_in() == 1.0
    world.pass_by(timedelta(seconds=1))
    assert world.withheld(agent(1), same) == [False, False]
    assert world.limits.next_in() is None
    assert world.limits.limited() == {}


@pytest.mark.parametrize(
    "finished",
    [
        refused(None),
        refused(START),
        refused(START + timedelta(days=9)),
        refused(START + HOUR, Reason.BILLING),
        Finished(at=START, outcome=Outcome.REPLIED),
    ],
)
def test_what_tells_no_time_that_can_be_waited_for_limits_nothing(finished: Finished) -> None:
    world = World()
    assert not world.limits.ended(agent(), finished)
    assert world.withheld(agent()) == [False]


def test_a_wall_clock_that_is_set_back_makes_nobody_wait_for_longer() -> None:
    world = World()
    world.limits.ended(agent(), refused(START + HOUR))
    world.wall -= timedelta(days=300)
    assert world.withheld(agent()) == [True]
    world.pass_by(HOUR)
    assert world.withheld(agent()) == [False]


def test_a_machine_that_slept_goes_on_when_it_wakes() -> None:
    world = World()
    world.limits.ended(agent(), refused(START + HOUR))
    next_in = world.limits.next_in()
    assert next_in is not None
    assert next_in <= 30  # asleep, only the wall's clock goes on: it is looked at often
    world.wall += HOUR
    assert world.withheld(agent()) == [False]


def test_a_person_who_wants_it_tried_lifts_it() -> None:
    world = World()
    world.limits.ended(agent(), refused(START + HOUR))
    world.limits.lift()
    assert world.withheld(agent()) == [False]


def test_a_later_end_replaces_an_earlier_one() -> None:
    world = World()
    world.limits.ended(agent(), refused(START + HOUR))
    world.limits.ended(agent(2), refused(START + 3 * HOUR))
    world.pass_by(2 * HOUR)
    assert world.withheld(agent()) == [True]


def test_a_restart_knows_what_was_limited(tmp_path: Path) -> None:
    world = World()
    world.limits.ended(agent(), refused(START + HOUR))
    limits_file.save(tmp_path, world.limits.all())
    assert (tmp_path / "limits.json").stat().st_mode & 0o777 == 0o600
    again = World(limits_file.load(tmp_path), START + HOUR / 2)
    assert again.withheld(agent()) == [True]
    late = World(limits_file.load(tmp_path), START + HOUR)
    assert late.withheld(agent()) == [False]
    # A clock that was wrong by a year when it was written keeps nobody waiting.
    assert World(limits_file.load(tmp_path), START - timedelta(days=365)).withheld(agent()) == [
        False
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"limits": [{}]}', '{"limits": [{"account": 1, "until": "2026-01-01"}]}'],
)
def test_a_file_that_cannot_be_used_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.json").write_text(text)
    assert limits_file.load(tmp_path) == []


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    limits_file.save(tmp_path / "missing", [])
    limits_file.save(None, [])
    assert limits_file.load(None) == []


@given(st.dictionaries(st.text(), st.text()))
def test_an_account_s_name_tells_no_secret(env: dict[str, str]) -> None:
    name = account_of(agent(env={**env, "ANTHROPIC_API_KEY": "sk-secret"}), ENVIRONMENT)
    assert len(name) == 32
    assert "secret" not in name


def test_programs_by_a_command_of_their_own_are_told_apart() -> None:
    goose, other = (agent(1, "acp", command=[name, "acp"]) for name in ("goose", "other"))
    assert account_of(goose, {}) != account_of(other, {})
    assert account_of(agent(1, command=["claude"]), {}) == account_of(agent(1), {})
