"""What `status` says of a report, in lines for a person: pure, and the standard library only."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

#: A text of somebody else is shown up to here; the whole is in --json.
_LONGEST: Final = 160
_NAME: Final = 24
_MARK: Final = {
    "connected": "●",
    "draining": "◑",
    "connecting": "◐",
    "unauthorized": "✗",
    "stopped": "○",
}


def lines(
    report: Mapping[str, Any],
    command: Callable[[str], str],
    *,
    now: float,
    log: Path,
    user_home: str = "",
    width: int = 0,
) -> list[str]:
    """All of `status`.

    Args:
        report: see interface.md §6; `profile` is in it.
        command: makes a command line of words, for this profile.
        now: Unix seconds.
        log: where the log lies.
        user_home: shown as `~`.
        width: columns of the terminal; 0 for no limit.
    """
    body = [*_facts(report), *_agents(report, now, user_home, width), *_warm(report, now, width)]
    notes = _notes(report, command)
    gap = [""] if notes and len(body) > 1 else []
    return [headline(report, now), *_next(report, command, log), *body, *gap, *notes]


def headline(report: Mapping[str, Any], now: float) -> str:
    """The first line: whether it runs, and is connected."""
    state = _state(report)
    server = clip(str(report["server_url"]))
    lasting = f" for {duration(now - _unix(report['since']))}" if report["since"] else ""
    said = str(report.get("detail") or "").removeprefix(f"{report['server_url']} ")
    detail = f": {clip(said)}" if said else ""
    start = f"{_MARK[state]} {clip(str(report['profile']), _NAME):9} "
    match state:
        case "connected":
            trip = report.get("round_trip_ms")
            took = f" · {_milliseconds(trip)}" if trip is not None else ""
            return f"{start}connected to {server} {lasting}{took}"
        case "draining":
            working = sum(1 for agent in report["agents"] if agent["status"] == "working")
            what = f"{working} at work, then it ends" if working else "it ends"
            return f"{start}draining: {what}; takes nothing new"
        case "unauthorized":
            since = time.strftime("%H:%M", time.localtime(_unix(report["since"])))
            return f"{start}key rejected by {server} since {since}{detail}"
        case "connecting":
            return f"{start}{_attempts(report, server, lasting, now)}{detail}"
        case _:
            return f"{start}not running"


def _state(report: Mapping[str, Any]) -> str:
    if report.get("draining"):
        return "draining"
    state = str(report["state"])
    return state if state in _MARK else "connecting"


def exit_state(report: Mapping[str, Any]) -> str:
    """The state that decides the exit code."""
    return _state(report)


def _attempts(report: Mapping[str, Any], server: str, lasting: str, now: float) -> str:
    if not report.get("attempt"):
        return f"connecting to {server}"
    next_at = report.get("next_attempt_at")
    wait = f", next in {max(0.0, _unix(next_at) - now):.0f} s" if next_at else ""
    return f"reconnecting to {server}{lasting} (attempt {report['attempt']}{wait})"


def _facts(report: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    if report["host_id"]:
        name = f"{clip(str(report['hostname']), _NAME)}  " if report.get("hostname") else ""
        found.append(f"  host      {name}{clip(str(report['host_id']))}")
    if report["pid"]:
        found.append(f"  service   {_service(report)}")
    elif service := report.get("service"):
        detail = f": {clip(str(service['detail']))}" if service.get("detail") else ""
        found.append(
            f"  service   {service['manager']} {service['name']} {service['activity']}{detail}"
        )
    if tunnel := report.get("tunnel"):
        found.append(f"  tunnel    {_tunnel(tunnel)}")
    if report["runtimes"]:
        shown = " · ".join(_runtime(one) for one in _usable(report))
        found.append(f"  runtimes  {shown or 'none that can be used'}")
    return found


def _tunnel(tunnel: Mapping[str, Any]) -> str:
    again = f", started anew {tunnel['restarts']} times" if tunnel["restarts"] else ""
    detail = f": {clip(str(tunnel['detail']))}" if tunnel["detail"] else ""
    return f"ssh {clip(str(tunnel['target']))} {tunnel['state']}{again}{detail}"


def _service(report: Mapping[str, Any]) -> str:
    service = report.get("service")
    if not service:
        return f"none, pid {report['pid']}"
    restarts = service.get("restarts")
    counted = f", restarts {restarts}" if restarts is not None else ""
    return f"{service['manager']} {service['name']}, pid {report['pid']}{counted}"


def uses_demo(report: Mapping[str, Any]) -> bool:
    """Whether an agent is played by the scripted driver."""
    return any(agent.get("driver") == "scripted" for agent in report.get("agents") or ())


def _usable(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What agents can use. The scripted driver is always there: it counts where an agent has it."""
    demo = uses_demo(report)
    return [
        one
        for one in report["runtimes"]
        if not one.get("problem") and (demo or one["name"] != "scripted")
    ]


def _runtime(runtime: Mapping[str, Any]) -> str:
    version = f" {clip(str(runtime['version']), _NAME)}" if runtime.get("version") else ""
    login = " (not logged in)" if runtime.get("logged_in") is False else ""
    return f"{clip(str(runtime['name']), _NAME)}{version}{login}"


def _agents(report: Mapping[str, Any], now: float, user_home: str, width: int) -> list[str]:
    agents = report["agents"]
    if not agents:
        return ["  agents    none"] if report["state"] == "connected" else []
    order = {"runtime_missing": -1, "crashed": -1, "working": 0, "waiting": 1, "idle": 3}
    ranked = sorted(agents, key=lambda agent: order.get(agent["status"], 2))
    names = min(_NAME, max(len(flat(str(agent["name"]))) for agent in agents))
    doing = {id(agent): _doing(agent, now) for agent in agents}
    widest = min(48, max(len(text) for text in doing.values()))
    rows = ["  agents    " + f"{len(agents)} registered"]
    for agent in ranked:
        name = clip(str(agent["name"]), names)
        status = str(agent["status"]).removeprefix("runtime_")
        row = f"    {status:9} {name:{names}}  {doing[id(agent)]:{widest}}"
        rows.append(_with_folder(row, _folder(agent, user_home), width))
    return rows


def _warm(report: Mapping[str, Any], now: float, width: int) -> list[str]:
    """Processes that wait for their conversation's next message."""
    warm: list[Mapping[str, Any]] = report.get("warm") or []
    if not warm:
        return []
    names = min(_NAME, max(len(flat(_who(one))) for one in warm))
    noun = "process waits" if len(warm) == 1 else "processes wait"
    rows = [f"  warm      {len(warm)} {noun} for a message"]
    for one in warm:
        program = clip(Path(str(one["program"])).name, _NAME)
        waited = duration(now - _unix(one["since"]))
        ahead = ", ahead of it" if one.get("ahead") else ""
        since = f"for {waited}{ahead}"
        left = f"ends in {duration(_unix(one['until']) - now)}"
        parts = (program, _megabytes(one.get("memory_bytes")), since, left)
        row = f"    {clip(_who(one), names):{names}}  {', '.join(filter(None, parts))}"
        rows.append(_with_folder(row, flat(str(one["conversation_id"])), width))
    return rows


def _who(one: Mapping[str, Any]) -> str:
    return str(one.get("agent") or one["agent_id"])


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1_000_000:.0f} MB"


def _doing(agent: Mapping[str, Any], now: float) -> str:
    queued = f"{agent['queued']} queued" if agent.get("queued") else ""
    match agent["status"]:
        case "working" if agent.get("since"):
            what = f"turn {duration(now - _unix(agent['since']))}"
        case "crashed" if hold := agent.get("hold"):
            what = _pause(hold, now)
        case "waiting" if (hold := agent.get("hold")) and hold.get("until"):
            what = f"rate limit, resumes {_moment(hold['until'], now)}"
        case "waiting" if agent.get("waiting_for"):
            what = clip(str(agent["waiting_for"]), 48)
        case _ if agent.get("last_turn_at"):
            what = f"last turn {_ago(now - _unix(agent['last_turn_at']))} ago"
        case _:
            what = ""
    return ", ".join(filter(None, (what, queued)))


def _moment(time_text: str, now: float) -> str:
    """The time of day here, with the date if it is on another day."""
    at, today = datetime.fromisoformat(time_text).astimezone(), datetime.fromtimestamp(now, UTC)
    today = today.astimezone()
    return f"{at:%H:%M}" if at.date() == today.date() else f"{at:%Y-%m-%d %H:%M}"


def _pause(hold: Mapping[str, Any], now: float) -> str:
    left = duration(_unix(hold["until"]) - now) if hold.get("until") else ""
    return f"paused, tried again in {left}" if left else "paused"


def _folder(agent: Mapping[str, Any], user_home: str) -> str:
    folder = flat(str(agent.get("cwd") or ""))
    if user_home and (folder + "/").startswith(user_home + "/"):
        folder = "~" + folder[len(user_home) :]
    return folder if len(folder) <= _LONGEST else "…" + folder[1 - _LONGEST :]


def _with_folder(row: str, folder: str, width: int) -> str:
    if width and folder and len(row.rstrip()) + 2 + len(folder) > width:
        room = width - len(row.rstrip()) - 3
        folder = f"…{folder[-room:]}" if room >= 12 else ""
        row = row.rstrip()
    return clip(f"{row}  {folder}".rstrip(), width or 4 * _LONGEST)


def _notes(report: Mapping[str, Any], command: Callable[[str], str]) -> list[str]:
    said = [
        f"1 approval is waiting: {report['server_url']}/a/{_part(agent['name'])}"
        for agent in report["agents"]
        if agent["status"] == "waiting" and _for_approval(agent)
    ]
    held = sum(agent.get("queued") or 0 for agent in report["agents"])
    for guard in report.get("guards") or ():
        if guard.get("state") != "ok":
            waits = f"; {held} messages wait" if held else ""
            said.append(f"nothing is started: {clip(str(guard.get('detail')))}{waits}")
    said += [
        f"{clip(str(agent['name']), _NAME)}: {clip(str(agent['hold'].get('detail')), 2 * _LONGEST)}"
        for agent in report["agents"]
        if agent.get("hold")
    ]
    said += [
        f"{clip(str(one['name']), _NAME)}: {clip(str(one['warning']), 4 * _LONGEST)}"
        for one in report["runtimes"]
        if one.get("warning")
    ]
    if report["pid"] and report["runtimes"] and not _usable(report):
        said.append(f"no coding agent was found; {command('doctor')} says why")
    own: Mapping[str, Any] = report.get("own_files") or {}
    if own.get("state") == "open":
        said.append(f"agents could read this machine's key: {clip(str(own.get('detail')))}")
    said += [clip(str(note)) for note in (*report.get("weaknesses", ()), *report.get("notes", ()))]
    return [f"! {note}" for note in said]


def _for_approval(agent: Mapping[str, Any]) -> bool:
    return str(agent.get("waiting_for") or "").startswith("approval")


def _next(report: Mapping[str, Any], command: Callable[[str], str], log: Path) -> list[str]:
    match _state(report):
        case "stopped" if report["server_url"] is None:
            return [f"  next      {command('login --server URL')}"]
        case "stopped":
            return [f"  next      {command('start')}  (log: {log})"]
        case "unauthorized":
            return [f"  next      {command('login --server ' + clip(str(report['server_url'])))}"]
        case "connecting" if report.get("attempt"):
            return [f"  next      {command('doctor')}  (what fails on the way)"]
        case _:
            return []


# --- words ------------------------------------------------------------------------------------


def flat(text: str) -> str:
    """One line, and nothing in it that could steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def clip(text: str, most: int = _LONGEST) -> str:
    """One line of at most so many characters."""
    short = flat(text[: most + 1])
    return short if len(short) <= most else short[: most - 1] + "…"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `3 h 12 min`, `2 d 4 h`."""
    whole = max(0, int(seconds))
    for size, unit, rest_size, rest in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // rest_size} {rest}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _ago(seconds: float) -> str:
    """`8 s`, `3 min`, `2 h`, `4 d`: how long ago, roughly."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 1 else "1 ms"


def _part(name: str) -> str:
    from urllib.parse import quote

    return quote(clip(name), safe="")


def _unix(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()
