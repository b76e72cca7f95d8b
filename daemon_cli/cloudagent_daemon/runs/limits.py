"""Accounts that have used up what they may, and until when; a rule without I/O.

Agents of one driver that are logged in alike share an account, and its limit: once one of them has met
it, a turn of any of them would only be refused. So nothing of them starts until the limit is over, by
the time that the program told. Before that, a person who wants it tried lifts it.

Clocks are set, and machines sleep: the limit is over when the wall's clock has passed its end, or when
as much time has gone by on one that only grows. If one of them errs, a turn is tried too early and
refused again; none waits for longer than it should.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cloudagent_daemon.drivers.resets import plausible
from cloudagent_protocol.events import Finished, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentSpec

#: Variables that tell whose account a program uses, and where.
_TELLING: Final = re.compile(
    r"HOME|.+_(API_KEY|AUTH_TOKEN|OAUTH_TOKEN|ACCESS_TOKEN|BASE_URL|CONFIG_DIR|HOME|PROFILE)"
)
#: A sleeping machine's other clock stands still, so the wall's is looked at this often.
_LOOK_S: Final = 30.0
#: Agents that are remembered, and accounts; the ones that were met longest ago go.
_MOST: Final = 1_000


@dataclass(frozen=True)
class Limit:
    """An account that gets nothing until then."""

    account: str
    until: datetime
    driver: str

    @property
    def detail(self) -> str:
        """For a person, who may be in any time zone: `until` is told beside it."""
        return (
            f"The account that {self.driver} uses has reached its limit; "
            f"it resumes at {self.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
        )


def account_of(agent: AgentSpec, environment: Mapping[str, str]) -> str:
    """Whose allowance the agent's turns are counted against, as a name that tells no secret."""
    merged = {**environment, **agent.env}
    told = {name: value for name, value in merged.items() if _TELLING.fullmatch(name)}
    program = agent.command if agent.driver == "acp" else None
    whole = json.dumps([agent.driver, program, sorted(told.items())])
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:32]


class Limits:
    """The limits of one machine's accounts.

    Args:
        environment: of the daemon; its agents' own comes on top.
        wall: the time of day.
        clock: seconds that only grow.
        kept: what an earlier life knew.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        wall: Callable[[], datetime],
        clock: Callable[[], float],
        kept: Iterable[Limit] = (),
    ) -> None:
        self._environment = environment
        self._wall = wall
        self._clock = clock
        #: Agents that there is or was something to do for, the last one last.
        self._agents: dict[AgentId, AgentSpec] = {}
        #: By account, with when it is over on the clock that only grows.
        self._limits: dict[str, tuple[Limit, float]] = {}
        for limit in kept:
            self._note(limit)

    def know(self, agent: AgentSpec) -> None:
        """There is something to do for this agent, which is set up so."""
        self._agents.pop(agent.id, None)
        self._agents[agent.id] = agent
        if len(self._agents) > _MOST:
            del self._agents[next(iter(self._agents))]

    def ended(self, agent: AgentSpec, finished: Finished) -> bool:
        """A turn of the agent has ended so; returns whether its account is limited by that."""
        if finished.reason is not Reason.RATE_LIMIT or finished.resets_at is None:
            return False
        account = account_of(agent, self._environment)
        return self._note(Limit(account, finished.resets_at, agent.driver))

    def _note(self, limit: Limit) -> bool:
        now = self._wall()
        if plausible(limit.until, now) is None:
            return False
        self._limits[limit.account] = (limit, self._clock() + (limit.until - now).total_seconds())
        if len(self._limits) > _MOST:
            del self._limits[next(iter(self._limits))]
        return True

    def lift(self) -> None:
        """A person wants all of them tried."""
        self._limits.clear()

    def withholds(self, agent_id: AgentId) -> bool:
        """Whether nothing of the agent may start now."""
        return self._of(agent_id) is not None

    def limited(self) -> dict[AgentId, Limit]:
        """Agents of which nothing may start now, and why."""
        return {agent_id: limit for agent_id in self._agents if (limit := self._of(agent_id))}

    def all(self) -> list[Limit]:
        """What the next life should know."""
        return [limit for limit, over in self._limits.values() if self._left(limit, over) > 0]

    def next_in(self) -> float | None:
        """Seconds until one of them may be over; null if there is none."""
        left = [self._left(*self._limits[limit.account]) for limit in self.all()]
        return min(*left, _LOOK_S) if left else None

    def _of(self, agent_id: AgentId) -> Limit | None:
        agent = self._agents.get(agent_id)
        if agent is None or not self._limits:  # most of the time there is none
            return None
        found = self._limits.get(account_of(agent, self._environment))
        return found[0] if found and self._left(*found) > 0 else None

    def _left(self, limit: Limit, over: float) -> float:
        by_wall = (limit.until - self._wall()) / timedelta(seconds=1)
        return min(by_wall, over - self._clock())
