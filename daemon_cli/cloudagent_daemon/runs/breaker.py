"""Which agents crash again and again, and how long each is left alone then; a rule without I/O.

Every message that is given to an agent which cannot work is lost to it, and costs the machine. So after
`CRASHES` crashes within `WINDOW_S` and nothing good between them, an agent's messages wait. After the
pause one of them is tried; if that crashes too, the next pause is longer. What ends well, or a person
who wants it tried, ends all that. Nothing of it is kept on the disk: a daemon that starts tries anew.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cloudagent_protocol.events import Finished, Outcome, Reason
from cloudagent_protocol.ids import AgentId

#: So many crashes, of which the first is not older than the window, pause an agent.
CRASHES: Final = 3
WINDOW_S: Final = 600.0
#: How long, as multiples of the first pause; it stays at the last. An agent that was quiet for longer
#: than that begins with the first.
GROWTH: Final = (1, 5, 15, 60)

#: The agent's program is at fault, or what it is started with; no model, no network, no person.
_CRASHES: Final = frozenset(
    {
        Reason.CRASHED,
        Reason.HUNG,
        Reason.OUT_OF_MEMORY,
        Reason.SPAWN_FAILED,
        Reason.TOOLS_UNAVAILABLE,
    }
)
_WELL: Final = frozenset({Outcome.REPLIED, Outcome.SILENT, Outcome.AUTO_PUBLISHED})


@dataclass(frozen=True)
class Pause:
    """An agent that is left alone."""

    agent_id: AgentId
    #: For a person: how often it crashed, and the last time how.
    detail: str
    #: On the clock that the breaker was given, and as a person reads it.
    until: float
    until_at: datetime


@dataclass
class _Record:
    #: When its last runs crashed, the oldest first.
    crashes: list[float] = field(default_factory=list[float])
    #: Pauses so far.
    pauses: int = 0
    pause: Pause | None = None


class Breaker:
    """The agents of one daemon.

    Args:
        clock: seconds that only grow.
        pause_s: the first pause in seconds; with 0 nobody is paused.
    """

    def __init__(self, clock: Callable[[], float], pause_s: float) -> None:
        self._clock = clock
        self._pauses_s = [factor * pause_s for factor in GROWTH]
        self._records: dict[AgentId, _Record] = {}

    def ended(self, agent_id: AgentId, finished: Finished) -> None:
        """A run of the agent has ended so."""
        if finished.outcome in _WELL:
            self._records.pop(agent_id, None)
        elif finished.reason in _CRASHES and self._pauses_s[0] > 0:
            self._crashed(agent_id, finished.detail)

    def lift(self, agent_ids: Iterable[AgentId] | None = None) -> None:
        """A person wants these tried at once, or all of them."""
        for agent_id in list(self._records) if agent_ids is None else agent_ids:
            self._records.pop(agent_id, None)

    def withholds(self, agent_id: AgentId, *, at_work: bool) -> bool:
        """Whether nothing of the agent may start now; after a pause it may have one run at a time."""
        record = self._records.get(agent_id)
        if record is None or record.pause is None:
            return False
        return at_work or self._clock() < record.pause.until

    def paused(self) -> list[Pause]:
        """Who is left alone at the moment."""
        now = self._clock()
        pauses = (record.pause for record in self._records.values())
        return [pause for pause in pauses if pause and now < pause.until]

    def next_in(self) -> float | None:
        """Seconds until the next pause is over; null if there is none."""
        ends = [pause.until for pause in self.paused()]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def _crashed(self, agent_id: AgentId, how: str) -> None:
        now = self._clock()
        record = self._records.setdefault(agent_id, _Record())
        if record.pause and now < record.pause.until:
            return  # it had begun before the pause, and tells nothing new
        if record.pause and now - record.pause.until > self._pauses_s[-1]:
            record.pauses, record.pause = 0, None
        record.crashes = [at for at in record.crashes if now - at <= WINDOW_S] + [now]
        if record.pause is None and len(record.crashes) < CRASHES:
            return
        pause_s = self._pauses_s[min(record.pauses, len(self._pauses_s) - 1)]
        record.pauses += 1
        detail = _detail(len(record.crashes), pause_s, how)
        until_at = datetime.now(UTC) + timedelta(seconds=pause_s)
        record.pause = Pause(agent_id, detail, now + pause_s, until_at)


def _detail(crashes: int, pause_s: float, how: str) -> str:
    times = f"{crashes} times in a row" if crashes > 1 else "again"
    last = how if len(how) <= 300 else f"{how[:299]}…"
    return (
        f"It crashed {times} and is left alone for {_words(pause_s)}, or until one of its messages is "
        f"retried. The last time: {last}"
    )


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:g} s"
