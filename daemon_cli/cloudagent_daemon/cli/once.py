"""`start --once`: the daemon of a CI job. Its exit code is the verdict."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudagent_daemon import durations
from cloudagent_daemon.cli.options import USAGE, CommandError, Here, complain, safe
from cloudagent_daemon.config import Settings

if TYPE_CHECKING:
    from cloudagent_daemon.ci import Job


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for CI, with --server-url and a key")
    group.add_argument(
        "--once", action="store_true", help="take one message; the exit code is its verdict"
    )
    group.add_argument("--agent", metavar="ID", help="serve this agent only (its id or name)")
    group.add_argument(
        "--idle-exit", metavar="2m", help="exit with 7 if no message comes within this time"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object, the rest on stderr",
    )


def check(arguments: argparse.Namespace, here: Here) -> None:
    """Refuses options of a job where there is none.

    Raises:
        CommandError: see there.
    """
    given = [name for name in ("agent", "idle_exit", "json") if getattr(arguments, name)]
    if given and not arguments.once:
        option = f"--{given[0].replace('_', '-')}"
        raise CommandError(
            "Only a job takes this option",
            f"{option} without --once",
            here.command(f"start --server-url URL --api-key-file FILE --once {option} …"),
            USAGE,
        )


def run(arguments: argparse.Namespace, here: Here, settings: Settings) -> int:
    """Runs the job; prints its log, and its result as JSON if that is wanted."""
    import anyio

    from cloudagent_daemon import ci
    from cloudagent_daemon.log import logging_to
    from cloudagent_daemon.runs.once import OneMessage

    say = _to_stderr if arguments.json else _to_stdout
    for folder in (settings.runtime_dir, settings.agents_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    watched = OneMessage(say, cwd=Path.cwd(), idle_exit_s=idle_exit_s(arguments, here))
    with logging_to(None, debug=settings.debug, quiet=not settings.debug):
        job = anyio.run(ci.run, settings, arguments.agent, watched, say)
    if job.host is not None:
        say(ci.farewell(job))
    _complain(job, settings, here)
    if arguments.json:
        print(json.dumps(ci.result(job, watched, settings.server_url)), flush=True)
    return job.exit_code


def idle_exit_s(arguments: argparse.Namespace, here: Here) -> float | None:
    if arguments.idle_exit is None:
        return None
    try:
        return durations.parse(arguments.idle_exit)
    except ValueError as error:
        raise CommandError(
            "The waiting time cannot be used",
            f"--idle-exit: {error}",
            here.command("start … --once --idle-exit 2m"),
            USAGE,
        ) from error


def _complain(job: "Job", settings: Settings, here: Here) -> None:
    """Three lines, where it was no turn's end that decided."""
    server = settings.server_url
    again = here.command("start --server-url URL --api-key-file FILE --once")
    match job.verdict:
        case "unauthorized":
            complain(f"{server} does not accept this machine key", job.why, job.next_step or again)
        case "unreachable":
            complain(f"{server} could not be used", job.why, job.next_step or again)
        case "refused":
            complain(f"{server} makes no host for this job", job.why, job.next_step or again)
        case _:
            pass


def _to_stdout(line: str) -> None:
    print(safe(line), flush=True)


def _to_stderr(line: str) -> None:
    print(safe(line), file=sys.stderr, flush=True)
