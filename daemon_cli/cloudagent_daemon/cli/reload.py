"""After a login: the daemon that runs already takes the new key over, and says how that went."""

import time
from typing import Any, Final

from cloudagent_daemon import control, lock
from cloudagent_daemon.cli.options import Here
from cloudagent_daemon.control import NoAnswerError

#: How long it may take to connect with the new key before this is no longer waited for.
_CONNECT_S: Final = 10.0
_POLL_S: Final = 0.1


def tell_daemon(here: Here) -> str:
    """A line about the profile's running daemon; empty if there is none."""
    pid = lock.holder(here.paths.lock, here.paths.pid)
    if pid is None:
        return ""
    who = f"The daemon that runs (pid {pid})" if pid else "The daemon that is starting"
    restart = f"  Next: {here.command('stop')}, then {here.command('start')}"
    try:
        answer = control.ask(here.paths.state_dir, "reload")
        if note := answer.get("note"):
            return f"! {who} goes on as it was: {note}\n\n{restart}"
        report = _connected(here)
    except NoAnswerError as error:
        return f"! {who} could not be told: {error}\n\n{restart}"
    if report["state"] == "connected":
        return f"✓ {who} is connected with it; nothing was restarted"
    detail = report.get("detail") or "no reason given"
    return f"! {who} has it, and is not connected yet: {detail}\n\n  Next: {here.command('status')}"


def _connected(here: Here) -> dict[str, Any]:
    """How the daemon stands, once it is connected or that takes too long.

    Raises:
        NoAnswerError: see `control.ask`.
    """
    deadline = time.monotonic() + _CONNECT_S
    while True:
        report = control.ask(here.paths.state_dir, "report")
        if report["state"] == "connected" or time.monotonic() > deadline:
            return report
        time.sleep(_POLL_S)
