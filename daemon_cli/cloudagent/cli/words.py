"""Rungs and durations as a person would say them."""

from datetime import UTC, datetime
from typing import Final

from cloudagent_protocol.resources import DeliveryState, DeliveryTrace, Rung

_PHRASES: Final = {
    "stored": "stored by the server",
    "sent": "sent to the machine",
    "received": "on {actor}",
    "started": "agent started",
    "ready": "its tools are ready",
    "seen": "the model began to answer",
    "waiting": "waits",
    "answered": "answered by {actor}",
    "interrupted": "interrupted",
    "replied": "replied",
    "silent": "chose to stay silent",
    "auto_published": "ended without sending; its last text was published",
    "failed": "failed",
    "cancelled": "cancelled by {actor}",
    "dead": "given up",
}
_WAITS_FOR_YOU: Final = {"approval": "approval", "question": "question"}
_ENDED: Final = frozenset(
    {DeliveryState.DONE, DeliveryState.FAILED, DeliveryState.CANCELLED, DeliveryState.DEAD}
)


def phrase(rung: Rung) -> str:
    """What happened, in words; a rung of a newer server keeps its name."""
    if rung.rung == "waiting" and rung.reason in _WAITS_FOR_YOU:
        return f"waiting: {_WAITS_FOR_YOU[rung.reason]}: {rung.detail or rung.actor}"
    said = _PHRASES.get(str(rung.rung), str(rung.rung)).format(actor=rung.actor)
    return f"{said} ({rung.detail})" if rung.detail else said


def duration(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} days"


def ago(at: datetime, now: datetime | None = None) -> str:
    return f"{duration(((now or datetime.now(UTC)) - at).total_seconds())} ago"


def moment(at: datetime, now: datetime | None = None) -> str:
    """The time of day where the person is, with the date if it was another day: `09:12`."""
    local, today = at.astimezone(), (now or datetime.now(UTC)).astimezone()
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M}"


def ladder(delivery: DeliveryTrace, agent: str, now: datetime | None = None) -> list[str]:
    """A delivery, one line for each rung, with what it waits for if it is not over."""
    lines = [f"to {agent}: {_summary(delivery)}"]
    before: datetime | None = None
    for rung in delivery.rungs:
        when = f"{rung.at.astimezone():%H:%M:%S}"
        later = f"{duration((rung.at - before).total_seconds())} later" if before else ""
        lines.append(f"  {when}  {later:>16}  {phrase(rung)}")
        before = rung.at
    if before is not None and delivery.state not in _ENDED:
        since = duration(((now or datetime.now(UTC)) - before).total_seconds())
        lines.append(f"  now       {since + ' later':>16}  {_waits_for(delivery, now)}")
    return lines


def _summary(delivery: DeliveryTrace) -> str:
    ended = delivery.state in _ENDED
    words = (delivery.outcome or str(delivery.state)).replace("_", " ")
    reason = f", {delivery.reason}" if delivery.reason else ""
    attempts = f", attempt {delivery.attempt}" if delivery.attempt > 1 else ""
    took = ""
    if ended and len(delivery.rungs) > 1:
        took = duration((delivery.rungs[-1].at - delivery.rungs[0].at).total_seconds())
        took = f" after {took}"
    return words + took + reason + attempts


def _waits_for(delivery: DeliveryTrace, now: datetime | None) -> str:
    if delivery.reason == "budget" and delivery.waits_until:
        day = moment(delivery.waits_until, now)
        return f"its agent's budget of the day is used up: you decide (cloudagent budget), or {day}"
    if delivery.reason == "budget":
        return "paused: you decide whether its agents go on (cloudagent chains)"
    if delivery.reason == "rate_limit":
        return _limited(delivery, now)
    if delivery.reason in {"host_offline", "host_draining"}:
        return f"still here: {_away(delivery, now)}"
    match delivery.state:
        case DeliveryState.QUEUED:
            return "still here: waits for its turn"
        case DeliveryState.LEASED:
            return "on its way to the machine"
        case DeliveryState.RECEIVED:
            return "waits for its turn on the machine"
        case DeliveryState.WAITING:
            return f"waits for you: {delivery.reason or 'approval'} (cloudagent approvals)"
        case _:
            return "still at work"


def _limited(delivery: DeliveryTrace, now: datetime | None) -> str:
    """`rate limit, resumes 14:05`; what waits for a person's word says how to give it."""
    until = delivery.waits_until
    when = f", {'resumes' if delivery.state is DeliveryState.RECEIVED else 'over'}"
    words = "rate limit" + (f"{when} {moment(until, now)}" if until else "")
    if delivery.state is DeliveryState.QUEUED:
        return f"{words}; you decide whether it goes on (cloudagent continue {delivery.message_id})"
    return words


def _away(delivery: DeliveryTrace, now: datetime | None) -> str:
    """`mbp is offline since 09:12, will be delivered when it is back`."""
    host = delivery.waits_on or "its machine"
    if delivery.reason == "host_draining":
        return f"{host} is shutting down, will be delivered when it is back"
    if delivery.waits_on and delivery.waits_since is None:
        return f"{host} has not connected yet, will be delivered when it does (cloudagent hosts)"
    since = f" since {moment(delivery.waits_since, now)}" if delivery.waits_since else ""
    return f"{host} is offline{since}, will be delivered when it is back"
