"""`status`: how the daemon of a profile stands. Quick: the standard library, and two small files."""

import argparse
import json
import time
from typing import Any, Final

from cloudagent_daemon import config, lock, status
from cloudagent_daemon.cli.options import (
    NOT_LOGGED_IN,
    NOT_RUNNING,
    UNREACHABLE,
    Commands,
    Here,
    safe,
)

_EXIT: Final = {
    "connected": 0,
    "stopped": NOT_RUNNING,
    "unauthorized": NOT_LOGGED_IN,
    "connecting": UNREACHABLE,
}


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("status", parents=[options], help="how the daemon stands")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    report = look(here)
    if arguments.json:
        print(json.dumps(report))
    else:
        print(safe("\n".join(_lines(here, report, time.time()))))
    return _EXIT[report["state"]]


def look(here: Here) -> dict[str, Any]:
    """What is known of the profile's daemon (interface.md §6), whether it runs or not."""
    pid = lock.holder(here.paths.lock, here.paths.pid)
    if pid is None:
        return _stopped(here)
    said = status.read(here.paths.status)
    starting = {**_stopped(here), "state": "connecting", "detail": "starting"}
    return {**starting, **said, "pid": pid or None}


def _stopped(here: Here) -> dict[str, Any]:
    stored = config.read_file(here.paths.config)
    return {
        "schema": status.SCHEMA,
        "profile": here.profile,
        "state": "stopped",
        "server_url": stored.server_url if stored else None,
        "host_id": stored.host_id if stored else None,
        "pid": None,
        "since": None,
        "last_seq": None,
        "runtimes": [],
        "agents": [],
        "service": None,
    }


def headline(here: Here, report: dict[str, Any], now: float) -> str:
    """The first line of `status`: whether it runs, and is connected."""
    return _lines(here, report, now)[0]


def _lines(here: Here, report: dict[str, Any], now: float) -> list[str]:
    name, server = f"{here.profile:9}", report["server_url"]
    lasting = duration(now - _unix(report["since"])) if report["since"] else ""
    detail = report.get("detail") or ""
    match report["state"]:
        case "connected":
            first = f"● {name} connected to {server}  for {lasting}"
        case "unauthorized":
            first = f"✗ {name} key rejected by {server} for {lasting}: {detail}"
        case "connecting":
            first = f"◐ {name} connecting to {server}{_attempt(report, lasting, now)}: {detail}"
        case _:
            first = f"○ {name} not running"
    return [first, *_facts(report), *_next(here, report)]


def _attempt(report: dict[str, Any], lasting: str, now: float) -> str:
    if not report.get("attempt"):
        return ""
    wait = max(0.0, _unix(report["next_attempt_at"]) - now)
    return f" for {lasting} (attempt {report['attempt']}, next in {wait:.0f} s)"


def _facts(report: dict[str, Any]) -> list[str]:
    lines = list[str]()
    if report["host_id"]:
        lines.append(f"  host      {report['host_id']}")
    if report["pid"]:
        lines.append(f"  process   pid {report['pid']}")
    if report["runtimes"]:
        lines.append(f"  runtimes  {' · '.join(_runtime(item) for item in report['runtimes'])}")
    if report["agents"]:
        lines.append(f"  agents    {len(report['agents'])} registered")
        lines += [f"    {_agent(agent)}" for agent in report["agents"]]
    said = (*report.get("weaknesses", ()), *report.get("notes", ()))
    return lines + [f"! {note}" for note in said]


def _runtime(runtime: dict[str, Any]) -> str:
    if runtime.get("problem"):
        return f"{runtime['name']} ({runtime['problem']})"
    return " ".join(filter(None, (runtime["name"], runtime.get("version"))))


def _agent(agent: dict[str, Any]) -> str:
    queued = f"  {agent['queued']} queued" if agent.get("queued") else ""
    return f"{agent['status']:9} {agent['name']}  ({agent['driver']}){queued}"


def _next(here: Here, report: dict[str, Any]) -> list[str]:
    match report["state"]:
        case "stopped" if report["server_url"] is None:
            return [f"  next  {here.command('login --server URL')}"]
        case "stopped":
            return [f"  next  {here.command('start')}  (log: {here.paths.logs_dir})"]
        case "unauthorized":
            return [f"  next  {here.command('login --server ' + report['server_url'])}"]
        case _:
            return []


def _unix(time_text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(time_text).timestamp()


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `3 h 12 min`, `2 d 4 h`."""
    whole = max(0, int(seconds))
    for size, unit, rest_size, rest in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // rest_size} {rest}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
