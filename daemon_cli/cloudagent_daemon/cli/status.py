"""`status`: how the daemon of a profile stands. Quick: the standard library, and two small files."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

from cloudagent_daemon import config, lock, status
from cloudagent_daemon.cli import standing
from cloudagent_daemon.cli.options import (
    NOT_LOGGED_IN,
    NOT_RUNNING,
    UNREACHABLE,
    Commands,
    Here,
    safe,
)
from cloudagent_daemon.cli.resident import resident_bytes

_EXIT: Final = {
    "connected": 0,
    "draining": 0,
    "stopped": NOT_RUNNING,
    "unauthorized": NOT_LOGGED_IN,
    "connecting": UNREACHABLE,
}


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("status", parents=[options])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    report = _with_service(here, look(here))
    if arguments.json:
        print(json.dumps(report))
    else:
        print(safe("\n".join(_lines(here, report))))
    return _EXIT[standing.exit_state(report)]


def look(here: Here) -> dict[str, Any]:
    """What is known of the profile's daemon (interface.md §6), whether it runs or not."""
    pid = lock.holder(here.paths.lock, here.paths.pid)
    if pid is None:
        return _stopped(here)
    said = status.read(here.paths.status)
    starting = {**_stopped(here), "state": "connecting", "detail": "starting"}
    report: dict[str, Any] = {**starting, **said, "pid": pid or None}
    report["agents"] = _with_folders(here, report["agents"])
    report["warm"] = [
        {**one, "memory_bytes": resident_bytes(one.get("pid"))} for one in report["warm"]
    ]
    return report


def _with_service(here: Here, report: dict[str, Any]) -> dict[str, Any]:
    """The report, and what the service manager says; that costs a process where there is a unit."""
    from cloudagent_daemon.service.state import service_state

    service = service_state(here.profile, here.environ)
    return {**report, "service": service.as_json() if service else None}


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
        "warm": [],
        "service": None,
    }


def headline(here: Here, report: dict[str, Any], now: float) -> str:
    """The first line of `status`: whether it runs, and is connected."""
    return standing.headline(report, now)


def _lines(here: Here, report: dict[str, Any]) -> list[str]:
    return standing.lines(
        report,
        here.command,
        now=time.time(),
        log=here.paths.logs_dir,
        user_home=here.environ.get("HOME", ""),
        width=_columns(),
    )


def _columns() -> int:
    """Of the terminal; 0 where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def _with_folders(here: Here, agents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The agents, each with the folder that it works in, as its workspace tells."""
    return [{**agent, "cwd": _folder(here.paths.agents_dir, agent)} for agent in agents]


def identity_of(file: Path) -> dict[str, Any]:
    """What an identity.json says, as text; nothing if it is damaged: its folder names the agent."""
    try:
        said: Any = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    known = ("name", "driver", "cwd")
    return {
        name: value
        for name, value in cast("dict[str, Any]", said).items()
        if name in known and isinstance(value, str)
    }


def _folder(agents_dir: Path, agent: dict[str, Any]) -> str | None:
    if "/" in agent["id"]:
        return None
    home = agents_dir / agent["id"]
    file = home / ".meta" / "identity.json"
    return identity_of(file).get("cwd") or (str(home / "workspace") if file.exists() else None)
