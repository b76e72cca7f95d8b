"""`start --service`: what a service manager starts. It has nobody to ask, and must not give up.

systemd heeds exit code 78 and stays down until a person has been there. launchd starts everything
anew, whatever its exit code: there the daemon itself waits until the settings can be used.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloudagent_daemon import lock
from cloudagent_daemon.cli.options import CONFIGURATION, CommandError, Here, complain
from cloudagent_daemon.config import ConfigError, Settings
from cloudagent_daemon.service import envfile
from cloudagent_daemon.service.notify import Notifier

#: Between two looks whether a person has done something; nothing tells us.
LOOK_S: Final = 2.0

Load = Callable[[Here], Settings]
Serve = Callable[[Settings, Path | None, lock.Held | None], int]


def run(arguments: argparse.Namespace, load: Load, serve: Serve) -> int:
    """Serves the profile for as long as the manager wants.

    Args:
        arguments: of the command line.
        load: the profile's settings; raises ConfigError.
        serve: one life of the daemon, with settings, logs and the lock.
    """
    here = Here(arguments)
    notify = Notifier(here.environ)
    if not notify.listens:
        here.environ |= envfile.read(here.paths.environment_file)
    while True:
        try:
            with lock.hold(here.paths.lock, here.paths.pid) as held:
                settings = replace(load(here), service=True)
                return serve(settings, here.paths.logs_dir, held)
        except lock.AlreadyRunningError:
            _wait_for_the_other(here, notify)
        except (CommandError, ConfigError) as error:
            if isinstance(error, CommandError) and error.code != CONFIGURATION:
                raise
            complain(error.what, error.why, error.next_step)
            if notify.listens:
                return CONFIGURATION
            _wait_for_a_person(here)


def _wait_for_the_other(here: Here, notify: Notifier) -> None:
    """Somebody runs this profile in a terminal; the service takes over when that ends."""
    notify.ready()
    while pid := lock.holder(here.paths.lock, here.paths.pid):
        notify.alive(f"waiting: pid {pid} runs profile {here.profile}")
        time.sleep(LOOK_S)


def _wait_for_a_person(here: Here) -> None:
    """Until the configuration is another, or is touched."""
    before = _written_at(here.paths.config)
    print(f"waiting until {here.paths.config} has changed", file=sys.stderr, flush=True)
    while _written_at(here.paths.config) == before:
        time.sleep(LOOK_S)


def _written_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
