"""`stop`: ends the daemon of a profile, and waits for it."""

import argparse
import os
import signal
import sys
import time
from typing import Final

from cloudagent_daemon import config, lock
from cloudagent_daemon.cli.options import NOT_RUNNING, CommandError, Commands, Here

#: Beyond the runs' own time: their stop, the last reports, the end of the process.
_MARGIN_S: Final = 30.0
_POLL_S: Final = 0.05
_NOTICE_S: Final = 1.0


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("stop", parents=[options], help="end the daemon")
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
    os.kill(pid, signal.SIGTERM)
    if arguments.force:
        os.kill(pid, signal.SIGTERM)
        patience_s = _MARGIN_S
    if _gone(here, pid, _NOTICE_S) or _wait(here, pid, patience_s, force=arguments.force):
        print(f"stopped {here.profile} (pid {pid})")
        return 0
    raise CommandError(
        f"The daemon of profile {here.profile} did not end",
        f"pid {pid} still holds {here.paths.lock} after {patience_s:.0f} s",
        f"kill -9 {pid}" if arguments.force else here.command("stop --force"),
    )


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
