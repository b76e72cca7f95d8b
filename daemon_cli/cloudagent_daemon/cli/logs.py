"""`logs`: what the daemon of a profile has written down, the same on every system."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cloudagent_daemon import config, durations, logfiles
from cloudagent_daemon.cli.agent import known_agents
from cloudagent_daemon.cli.options import FAILED, USAGE, CommandError, Commands, Here, safe
from cloudagent_daemon.cli.status import headline, look
from cloudagent_daemon.logfiles import Entry, Tail, Wanted


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("logs", parents=[options])
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    parser.add_argument("-n", "--lines", default="50", metavar="N", help="entries to begin with")
    parser.add_argument("--since", metavar="10m", help="only what is newer: 10m, 2h, or a time")
    parser.add_argument("--agent", metavar="ID", help="only what is about this agent (id or name)")
    parser.add_argument(
        "--level", default="debug", metavar="LEVEL", help="debug, info, warning or error, and up"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    count, wanted = _count(arguments, here), _wanted(arguments, here)
    if not arguments.json:
        _introduce(here)
    # First, so that what is written meanwhile is neither lost nor shown twice.
    tail = Tail(here.paths.logs_dir) if arguments.follow else None
    entries = logfiles.last(here.paths.logs_dir, count, wanted, tail)
    if not entries and tail is None and not logfiles.files(here.paths.logs_dir):
        raise _no_log(here)
    _show(entries, as_json=arguments.json)
    if tail is not None:
        _follow(tail, wanted, as_json=arguments.json)
    return 0


def _no_log(here: Here) -> CommandError:
    logged_in = config.read_file(here.paths.config) is not None
    return CommandError(
        f"Profile {here.profile} has no log yet",
        f"there is no file in {here.paths.logs_dir}"
        + ("" if logged_in else "; it is not logged in"),
        here.command("start" if logged_in else "login --server URL"),
        FAILED,
    )


def _follow(tail: Tail, wanted: Wanted, *, as_json: bool) -> None:
    """For ever; a traceback's lines are shown as they come, if its first one was."""
    shown = True
    for line in tail.lines():
        [entry] = logfiles.parse([line])
        if entry.at:
            shown = wanted(entry)
        if shown:
            _show([entry], as_json=as_json)


def _show(entries: Iterable[Entry], *, as_json: bool) -> None:
    for entry in entries:
        print(json.dumps(entry.json()) if as_json else safe("\n".join(entry.lines)), flush=True)


def _introduce(here: Here) -> None:
    print(safe(headline(here, look(here), time.time())), file=sys.stderr)
    print(f"  log       {here.paths.logs_dir}", file=sys.stderr)


def _count(arguments: argparse.Namespace, here: Here) -> int:
    if arguments.lines.isdecimal() and arguments.lines.isascii():
        return min(int(arguments.lines[:9]), 1_000_000)
    raise _slip(here, "-n", f"got {arguments.lines!r}; it is a number of lines", "logs -n 50")


def _wanted(arguments: argparse.Namespace, here: Here) -> Wanted:
    level = arguments.level.upper()
    level = {"WARN": "WARNING"}.get(level, level)
    if level not in logfiles.LEVELS:
        known = "debug, info, warning, error"
        raise _slip(
            here, "--level", f"got {arguments.level!r}; there are {known}", "logs --level warning"
        )
    return Wanted(_since(arguments, here), level, _agent(arguments, here))


def _since(arguments: argparse.Namespace, here: Here) -> str:
    """The moment in `--since`, as the log writes moments; empty for all."""
    if arguments.since is None:
        return ""
    try:
        moment = datetime.now(UTC) - timedelta(seconds=durations.parse(arguments.since))
    except ValueError as error:
        try:
            moment = datetime.fromisoformat(arguments.since).astimezone(UTC)
        except (ValueError, OverflowError):
            why = f"{error}, a time like 2026-11-20T09:00"
            raise _slip(here, "--since", why, "logs --since 10m") from error
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _agent(arguments: argparse.Namespace, here: Here) -> str | None:
    """The id of the agent that was named; an id that is not known here may still be in the log."""
    if arguments.agent is None:
        return None
    named = [one for one, name in known_agents(here).items() if name == arguments.agent]
    if len(named) > 1:
        why = f"several agents are called {arguments.agent!r}: {', '.join(named)}"
        raise _slip(here, "--agent", why, f"logs --agent {named[0]}")
    return named[0] if named else arguments.agent


def _slip(here: Here, option: str, why: str, example: str) -> CommandError:
    return CommandError(f"{option} cannot be used", why, here.command(example), USAGE)
