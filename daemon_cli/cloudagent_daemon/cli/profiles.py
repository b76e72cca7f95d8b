"""`list-profiles`: the connections of this computer."""

import argparse
import json
from typing import Any

from cloudagent_daemon import profile
from cloudagent_daemon.cli.agent import agent_folders
from cloudagent_daemon.cli.options import Commands, Here, safe
from cloudagent_daemon.cli.status import look


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("list-profiles", parents=[options])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    names = profile.known(here.environ)
    found = [_entry(argparse.Namespace(profile=name)) for name in names]
    if arguments.json:
        print(json.dumps({"schema": "cloudagent.profiles/1", "profiles": found}))
    elif found:
        print(safe("\n".join(line for entry in found for line in _lines(entry))))
    else:
        print(f"no profiles\n  next  {here.command('login --server URL')}")
    return 0


def _entry(arguments: argparse.Namespace) -> dict[str, Any]:
    from cloudagent_daemon.service.state import service_state

    here = Here(arguments)
    report = look(here)
    shown = ("profile", "server_url", "host_id", "state", "pid")
    agents = len(agent_folders(here))
    service = service_state(here.profile, here.environ)
    kept = {"service": f"{service.manager} {service.activity}" if service else None}
    return {key: report[key] for key in shown} | {"agents": agents} | kept


def _lines(entry: dict[str, Any]) -> list[str]:
    running = entry["state"] != "stopped"
    state = f"running pid={entry['pid']} ({entry['state']})" if running else "not running"
    return [
        f"{'●' if running else '○'} {entry['profile']}",
        f"    server:  {entry['server_url']}",
        f"    host_id: {entry['host_id']}",
        f"    status:  {state}",
        f"    agents:  {entry['agents']}",
        f"    service: {entry['service'] or 'none'}",
    ]
