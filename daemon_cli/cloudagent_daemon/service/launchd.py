"""macOS: an agent of launchd in the session of the person who is logged in. Standard library only.

What launchctl answers was taken from reports of its users; the sequence below outlives its two
habits, that `bootout` returns before the service is gone and that `bootstrap` then fails with
`5: Input/output error`.
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloudagent_daemon.service import render
from cloudagent_daemon.service.base import Activity, Kind, Said, ServiceError, State, run
from cloudagent_daemon.service.render import STOP_S, Service

#: Codes of launchctl, which are those of errno(2) and some of its own.
_NO_SUCH_PROCESS: Final = 3
_INPUT_OUTPUT: Final = 5
_FILE_EXISTS: Final = 17
_IN_PROGRESS: Final = (36, 37)
_NO_SUCH_SERVICE: Final = 113
_ATTEMPTS: Final = 6
_POLL_S: Final = 0.1
#: Beyond the drain: what launchd itself needs.
_MARGIN_S: Final = 30.0


class Launchd:
    """One profile's agent.

    Args:
        pause_s: before the second attempt to bootstrap; each further one waits twice as long.
    """

    kind: Kind = "launchd"

    def __init__(self, profile: str, environ: Mapping[str, str], *, pause_s: float = 0.5) -> None:
        self.name = render.label(profile)
        self._environ = environ
        self._pause_s = pause_s
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{self.name}"
        agents = Path(environ.get("HOME", "~")).expanduser() / "Library" / "LaunchAgents"
        self.file = agents / f"{self.name}.plist"
        self.watch_command = f"launchctl print {self._target}"

    def problem(self) -> str | None:
        said = self._launchctl("print", self._domain)
        if said.code == 0:
            return None
        return f"nobody is logged in at this computer's screen ({said.why})"

    def render(self, service: Service) -> str:
        return render.plist(service).decode()

    def state(self) -> State:
        said = self._launchctl("print", self._target)
        if said.code != 0:
            return State("stopped", enabled=self.file.exists())
        shown = _fields(said.out)
        runs, pid = shown.get("runs", ""), shown.get("pid", "")
        ended = shown.get("last exit code", "")
        return State(
            _activity(shown.get("state", ""), ended),
            pid=int(pid) if pid.isdigit() else None,
            restarts=max(0, int(runs) - 1) if runs.isdigit() else None,
            enabled=self.file.exists(),
            detail=f"last exit code {ended}" if ended and not pid else "",
        )

    def load(self) -> None:
        # Somebody may have disabled it by hand; then bootstrap would fail without saying so.
        self._must("enable", self._target)

    def start(self) -> None:
        self._boot_out()
        attempt, pause_s = 1, self._pause_s
        while (said := self._launchctl("bootstrap", self._domain, str(self.file))).code != 0:
            code = _code(said)
            if code not in (_INPUT_OUTPUT, _FILE_EXISTS, *_IN_PROGRESS) or attempt == _ATTEMPTS:
                raise ServiceError(f"launchctl bootstrap, attempt {attempt}: {said.why}")
            if code != _INPUT_OUTPUT:
                self._boot_out()  # an older one came between
            time.sleep(pause_s)
            attempt, pause_s = attempt + 1, pause_s * 2
        # RunAtLoad has started it, unless launchd still holds an earlier crash against it.
        self._launchctl("kickstart", self._target)

    def stop(self) -> None:
        said = self._launchctl("bootout", self._target)
        if _code(said) not in (0, _NO_SUCH_PROCESS, _NO_SUCH_SERVICE, *_IN_PROGRESS):
            raise ServiceError(f"launchctl bootout: {said.why}")

    def unload(self) -> None:
        if self.problem() is None:
            self._boot_out()

    def forget(self) -> None:
        """Nothing: launchd forgets at bootout."""

    def last_words(self, lines: int) -> list[str]:
        return []  # they are in files beside the daemon's own

    def _boot_out(self) -> None:
        """`bootout` returns at once, and the service drains; what follows must wait for its end."""
        self.stop()
        deadline = time.monotonic() + STOP_S + _MARGIN_S
        while self._launchctl("print", self._target).code == 0:
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} is still there after {STOP_S + _MARGIN_S:.0f} s")
            time.sleep(_POLL_S)

    def _launchctl(self, *words: str) -> Said:
        return run(["launchctl", *words], self._environ)

    def _must(self, *words: str) -> None:
        said = self._launchctl(*words)
        if said.code != 0:
            raise ServiceError(f"launchctl {words[0]}: {said.why}")


def _fields(printed: str) -> dict[str, str]:
    """The outermost `name = value` lines of `launchctl print`; those of parts are indented more."""
    return dict(re.findall(r"^\t([a-z ]+) = (.*)$", printed, re.MULTILINE))


def _activity(state: str, ended: str) -> Activity:
    if state == "running":
        return "running"
    # Between two attempts it is `spawn scheduled` or `waiting`, and `not running` for some moments.
    return "restarting" if ended.isdigit() and ended != "0" else "starting"


def _code(said: Said) -> int:
    """The number in `Bootstrap failed: 5: Input/output error`, else the exit code."""
    found = re.search(r"failed: (\d+):", said.error)
    return int(found[1]) if found else said.code
