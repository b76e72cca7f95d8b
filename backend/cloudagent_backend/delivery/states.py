"""The rules of a delivery's life, as data and pure functions: nothing here touches a store.

    queued -> leased -> received -> running <-> waiting -> done | failed | cancelled | dead

`store/deliveries.py` changes a state only from one of `sources(target)`, in one statement, so that
two writers can never both win.
"""

from collections.abc import Iterable
from typing import Final

from cloudagent_protocol.events import AnyReason, Outcome, Reason
from cloudagent_protocol.ids import AgentId
from cloudagent_protocol.resources import AgentStatus, DeliveryState, Hold, RungName

_S = DeliveryState

#: Where a delivery may go from each state. The ways back to `queued` are those of a new epoch: the
#: machine does not know the delivery (any more). `queued` -> `received` is the opposite case: a
#: machine reports on a delivery that was put back, so it has it after all.
MOVES: Final[dict[DeliveryState, frozenset[DeliveryState]]] = {
    _S.QUEUED: frozenset({_S.LEASED, _S.RECEIVED, _S.CANCELLED, _S.DEAD}),
    _S.LEASED: frozenset({_S.RECEIVED, _S.QUEUED, _S.DEAD}),
    # A run that could not start ends without ever having run; a queued one can be interrupted.
    _S.RECEIVED: frozenset({_S.RUNNING, _S.QUEUED, _S.DONE, _S.FAILED, _S.CANCELLED, _S.DEAD}),
    # `running` -> `running`: a later attempt of a run that was cut off.
    _S.RUNNING: frozenset(
        {_S.RUNNING, _S.WAITING, _S.QUEUED, _S.DONE, _S.FAILED, _S.CANCELLED, _S.DEAD}
    ),
    _S.WAITING: frozenset({_S.RUNNING, _S.QUEUED, _S.DONE, _S.FAILED, _S.CANCELLED, _S.DEAD}),
    _S.DONE: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.DEAD: frozenset(),
}

_SOURCES: Final = {
    target: frozenset(state for state, targets in MOVES.items() if target in targets)
    for target in DeliveryState
}
ENDS: Final = frozenset(state for state, targets in MOVES.items() if not targets)
#: Ends after which a person may have the same done over again.
RETRIABLE: Final = frozenset({_S.FAILED, _S.CANCELLED, _S.DEAD})
#: On its way to, or on, the machine: these fill the host's window.
IN_FLIGHT: Final = frozenset({_S.LEASED, _S.RECEIVED, _S.RUNNING, _S.WAITING})

_END_OF: Final[dict[Outcome, DeliveryState]] = {
    Outcome.REPLIED: _S.DONE,
    Outcome.SILENT: _S.DONE,
    Outcome.AUTO_PUBLISHED: _S.DONE,
    Outcome.FAILED: _S.FAILED,
    Outcome.CANCELLED: _S.CANCELLED,
    Outcome.DEAD: _S.DEAD,
}

#: Failures after which a person should look at the agent itself, not only at the message.
_CRASHES: Final = frozenset(
    {
        Reason.CRASHED,
        Reason.HUNG,
        Reason.NO_RESULT,
        Reason.OUT_OF_MEMORY,
        Reason.SPAWN_FAILED,
        Reason.TOOLS_UNAVAILABLE,
    }
)


def sources(target: DeliveryState) -> frozenset[DeliveryState]:
    """The states from which a delivery may go to `target`."""
    return _SOURCES[target]


def end_of(outcome: Outcome) -> DeliveryState:
    """The state of a delivery whose run ended so."""
    return _END_OF[outcome]


def last_rung(outcome: Outcome) -> RungName:
    """The rung that a run's end puts on the ladder."""
    return RungName(outcome.value)


def hold_of(holds: Iterable[Hold], agent_id: AgentId) -> Hold | None:
    """Why a machine that says this begins nothing of the agent; null if it may."""
    return next((hold for hold in holds if hold.agent_id in (None, agent_id)), None)


def status_after(outcome: Outcome, reason: AnyReason | None) -> AgentStatus:
    """What an agent shows when its only live run has ended so."""
    if outcome is Outcome.FAILED and reason is Reason.RUNTIME_MISSING:
        return AgentStatus.RUNTIME_MISSING
    if outcome is Outcome.DEAD or (outcome is Outcome.FAILED and reason in _CRASHES):
        return AgentStatus.CRASHED
    return AgentStatus.IDLE
