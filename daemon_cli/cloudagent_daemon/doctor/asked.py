"""What only others can tell: the running daemon, the backend, the coding agents themselves."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon.doctor.findings import Command, Finding

#: A clock that is further off breaks certificates, and the order of what is shown.
_MAX_SKEW_S: Final = 30.0
#: Coding agents wait about this long for their tools.
_SLOW_TOOLS_MS: Final = 2_000.0
#: What each driver's program is called in a shell.
_PROGRAMS: Final = {
    "claude_code": "claude",
    "codex": "codex",
    "gemini": "gemini",
    "opencode": "opencode",
    "qwen": "qwen",
}
_PROBE: Final = ("probe", "   (what fails on the way)")
#: A daemon without a connection, by its state: in words, and which of our commands helps.
_UNCONNECTED: Final = {
    "connecting": ("not connected, and trying", _PROBE),
    "unauthorized": ("key rejected", ("login", "")),
}
#: For demonstrations; always there.
_SCRIPTED: Final = "scripted"


def _connection(name: str, state: Any, detail: str, fix: str = "") -> Finding:
    return Finding("Connection", name, state, detail, fix)


def clock(date: str) -> Finding:
    """How this machine's clock stands to the backend's, by the Date of its answer."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return _connection("clock", "skip", "the backend tells no time")
    skew_s = (datetime.now(UTC) - theirs).total_seconds()
    if abs(skew_s) > _MAX_SKEW_S:
        ahead = "ahead of" if skew_s > 0 else "behind"
        detail = f"this machine's clock is {abs(skew_s):.0f} s {ahead} the backend's"
        return _connection("clock", "warn", detail, "sudo timedatectl set-ntp true")
    return _connection("clock", "ok", "as the backend's, within seconds")


def service(
    report: Mapping[str, Any] | None, command: Command, no_manager: str = ""
) -> list[Finding]:
    """Whether the daemon runs, and who started it.

    Args:
        report: what the daemon says of itself, with its `service`; None if none runs.
        command: gives one of our commands as a person types it.
        no_manager: why the service that is installed cannot run now; empty if it can.
    """
    in_vain: list[Finding] = []
    if no_manager:
        detail = f"the service is installed, but cannot run now: {no_manager}"
        by_hand = command("start --background") + "   (until it can)"
        in_vain = [Finding("Service", "session", "warn" if report else "fail", detail, by_hand)]
    if report is None:
        return [Finding("Service", "daemon", "fail", "not running", command("start")), *in_vain]
    found = [Finding("Service", "daemon", "ok", f"running, pid {report.get('pid')}"), *in_vain]
    kept: Mapping[str, Any] | None = report.get("service")
    if not kept:
        detail = "none: it ends with its terminal, or at logout, and is not started at login"
        return [*found, Finding("Service", "unit", "skip", detail)]
    found.append(Finding("Service", "unit", "ok", f"{kept.get('manager')} {kept.get('name')}"))
    if kept.get("same_program") is False:
        detail = f"starts {kept.get('program')}, not the command that you typed"
        fix = command("install-service")
        found.append(Finding("Service", "program", "warn", detail, fix))
    if kept.get("lingers") is False:
        fix = "loginctl enable-linger"
        found.append(Finding("Service", "linger", "warn", "it stops when you log out", fix))
    return found


def link(
    report: Mapping[str, Any], check: Mapping[str, Any] | None, command: Command
) -> Iterator[Finding]:
    """How the daemon's own connection stands."""
    state = str(report.get("state"))
    if state != "connected":
        what, (words, remark) = _UNCONNECTED.get(state, (state, _PROBE))
        detail = f"{what}: {report.get('detail') or 'no reason yet'}"
        yield _connection("link", "fail", detail, command(words) + remark)
    elif check is not None:
        trip: Mapping[str, Any] = check.get("backend") or {}
        if trip.get("problem"):
            yield _connection("link", "fail", str(trip["problem"]))
        else:
            yield _connection(
                "link", "ok", f"connected; a report is kept after {trip.get('ms')} ms"
            )


def runtimes(
    seen: Sequence[Mapping[str, Any]],
    path: str,
    tools: Mapping[str, Any] | None,
    *,
    in_daemon: bool,
    demo: bool,
    command: Command,
) -> Iterator[Finding]:
    """Each coding agent: found, its version, logged in; and the same program as in this shell?

    Args:
        seen: as the daemon sees them (`Runtime`), or this process if none runs.
        path: PATH of this shell.
        in_daemon: whether it was the daemon that looked.
        tools: how the start of an agent's tools went.
        demo: whether an agent uses the scripted one, so that no other is needed.
        command: gives one of our commands as a person types it.
    """
    restart = command("stop") + ", then " + command("start")
    others = [one for one in seen if one["name"] != _SCRIPTED]
    if all(one.get("problem") for one in others):
        fix = "install one: npm install -g @anthropic-ai/claude-code"
        if demo:
            yield Finding("Runtimes", "agents", "warn", "only the scripted demo can be used", fix)
        else:
            yield Finding("Runtimes", "agents", "fail", "no coding agent can be used", fix)
    usable = any(not one.get("problem") for one in others)
    for one in others:
        finding = _runtime(one, path, in_daemon=in_daemon, restart=restart)
        # Of all that could be installed only what is there is of interest, once there is something.
        if finding.state != "skip" or one.get("path") or not usable:
            yield finding
    if tools is not None:
        yield _tools(tools, command)


def _runtime(one: Mapping[str, Any], path: str, *, in_daemon: bool, restart: str) -> Finding:
    name, problem, where = str(one["name"]), one.get("problem"), str(one.get("path") or "")
    program = _PROGRAMS.get(name, "")
    here = shutil.which(program, path=path) if program else None
    if problem and here and in_daemon:
        detail = f"found by this shell ({here}), but not by the daemon: {problem}"
        return Finding("Runtimes", name, "fail", detail, restart)
    if problem:
        return Finding("Runtimes", name, "skip", str(problem))
    told = f"{one.get('version') or 'version unknown'}  ({where})"
    if one.get("warning"):
        return Finding("Runtimes", name, "warn", f"{told}. {one['warning']}")
    if one.get("logged_in") is False:
        return Finding(
            "Runtimes",
            name,
            "warn",
            f"{told}, not logged in",
            f"{program or name}   (and log in there)",
        )
    if in_daemon and here and where and Path(here).resolve() != Path(where).resolve():
        detail = f"{told}; this shell has another: {here}"
        return Finding("Runtimes", name, "warn", detail, restart)
    return Finding("Runtimes", name, "ok", told)


def _tools(tools: Mapping[str, Any], command: Command) -> Finding:
    if tools.get("problem"):
        fix = command("logs --level warning")
        return Finding("Runtimes", "tools", "fail", f"do not start: {tools['problem']}", fix)
    taken = float(tools.get("ms") or 0)
    if taken > _SLOW_TOOLS_MS:
        detail = f"take {taken:.0f} ms to start; coding agents wait about two seconds"
        return Finding("Runtimes", "tools", "warn", detail, "is the machine overloaded?")
    return Finding("Runtimes", "tools", "ok", f"start in {taken:.0f} ms")
