"""`stop`: ends the daemon of a profile, and waits for it."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from cloudagent_daemon import config, lock
from cloudagent_daemon.cli.options import NOT_RUNNING, CommandError, Commands, Here
from cloudagent_daemon.service.base import Manager, ServiceError
from cloudagent_daemon.service.state import manager_of, service_state

#: Beyond the runs' own time: their stop, the last reports, the end of the process.
_MARGIN_S: Final = 30.0
_POLL_S: Final = 0.05
_NOTICE_S: Final = 1.0


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("stop", parents=[options])
    parser.add_argument("--force", action="store_true", help="do not let running work finish")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    pid = lock.holder(here.paths.lock, here.paths.pid)
    if not pid:
        raise CommandError(
            f"Profile {here.profile} has no running daemon",
            f"nobody holds {here.paths.lock}",
            here.command("start"),
            NOT_RUNNING,
        )
    stored = config.read_file(here.paths.config)
    patience_s = (stored.limits if stored else config.Limits()).stop_timeout_s + _MARGIN_S
    service = _service(here, pid)
    if service:
        _or_say_why(service.stop, here)  # systemd would start anew what only got a signal
    else:
        os.kill(pid, signal.SIGTERM)
    if arguments.force:
        os.kill(pid, signal.SIGTERM)
        patience_s = _MARGIN_S
    if _gone(here, pid, _NOTICE_S) or _wait(here, pid, patience_s, force=arguments.force):
        again = "; the service starts again at the next login" if service else ""
        print(f"stopped {here.profile} (pid {pid}){again}")
        return 0
    raise CommandError(
        f"The daemon of profile {here.profile} did not end",
        f"pid {pid} still holds {here.paths.lock} after {patience_s:.0f} s",
        f"kill -9 {pid}" if arguments.force else here.command("stop --force"),
    )


def _service(here: Here, pid: int) -> Manager | None:
    """The manager, if the daemon is its service."""
    state = service_state(here.profile, here.environ)
    return manager_of(here.profile, here.environ) if state and state.pid == pid else None


def _or_say_why(do: Callable[[], None], here: Here) -> None:
    try:
        do()
    except ServiceError as error:
        what = f"The service of profile {here.profile} could not be stopped"
        raise CommandError(what, str(error), here.command("status")) from error


def _wait(here: Here, pid: int, patience_s: float, *, force: bool) -> bool:
    if not force:
        print("waiting for running work to finish (Ctrl-C leaves it to that)", file=sys.stderr)
    return _gone(here, pid, patience_s)


def _gone(here: Here, pid: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while lock.holder(here.paths.lock, here.paths.pid) in (pid, 0):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
