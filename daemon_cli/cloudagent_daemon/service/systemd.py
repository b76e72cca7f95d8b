"""The user manager of systemd: `systemctl --user`. Standard library only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloudagent_daemon.service import render
from cloudagent_daemon.service.base import Activity, Kind, ServiceError, State, run
from cloudagent_daemon.service.render import START_S, STOP_S, Service

#: Beyond the drain: what systemd itself needs.
_MARGIN_S: Final = 30.0
_SHOWN: Final = (
    "LoadState", "ActiveState", "SubState", "MainPID", "NRestarts", "UnitFileState", "Result",
    "ExecMainStatus", "StatusText", "FragmentPath",
)  # fmt: skip
_ACTIVITY: Final[dict[str, Activity]] = {
    "active": "running",
    "reloading": "running",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
}


class Systemd:
    """One profile's unit."""

    kind: Kind = "systemd"

    def __init__(self, profile: str, environ: Mapping[str, str]) -> None:
        self.name = render.unit_name(profile)
        self._environ = _with_runtime_dir(environ)
        config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '~')}/.config"
        self.file = Path(config).expanduser() / "systemd" / "user" / self.name
        self.watch_command = f"systemctl --user status {self.name}"

    def problem(self) -> str | None:
        said = run(self._systemctl("show", "--property=Version"), self._environ)
        return None if said.code == 0 else said.why

    def render(self, service: Service) -> str:
        return render.unit(service)

    def state(self) -> State:
        shown = self._show()
        activity = _ACTIVITY.get(shown.get("ActiveState", ""), "stopped")
        if shown.get("SubState") == "auto-restart":
            activity = "restarting"
        pid, restarts = shown.get("MainPID", ""), shown.get("NRestarts", "")
        ended = f"{shown.get('Result')}, exit code {shown.get('ExecMainStatus')}"
        down = activity in ("failed", "restarting")
        return State(
            activity,
            pid=int(pid) or None if pid.isdigit() else None,
            restarts=int(restarts) if restarts.isdigit() else None,
            enabled=shown.get("UnitFileState") == "enabled",
            detail=ended if down else shown.get("StatusText", ""),
        )

    def load(self) -> None:
        self._must("daemon-reload")
        found = self._show().get("FragmentPath", "")
        if found != str(self.file):
            raise ServiceError(f"systemd reads {found or 'no file'} for it, not {self.file}")
        self._must("enable", self.name)

    def start(self) -> None:
        # Waits until it is ready, or has failed to be; before that for the drain, if it runs.
        run(self._systemctl("reset-failed", self.name), self._environ)
        self._must("restart", self.name, timeout_s=STOP_S + START_S + _MARGIN_S)

    def stop(self) -> None:
        self._must("stop", "--no-block", self.name)

    def unload(self) -> None:
        if self.problem() is None:
            self._must("disable", self.name)
            self._must("stop", self.name, timeout_s=STOP_S + _MARGIN_S)
        else:
            # Nobody to ask, so nothing runs; what `enable` left is a link.
            wants = self.file.parent / "default.target.wants"
            (wants / self.name).unlink(missing_ok=True)

    def forget(self) -> None:
        run(self._systemctl("daemon-reload"), self._environ)
        run(self._systemctl("reset-failed", self.name), self._environ)

    def last_words(self, lines: int) -> list[str]:
        words = ("--user", "-u", self.name, "-n", str(lines), "--no-pager", "-o", "cat", "-q")
        said = run(["journalctl", *words], self._environ)
        return said.out.splitlines() if said.code == 0 else []

    def _show(self) -> dict[str, str]:
        said = run(self._systemctl("show", self.name, f"-p{','.join(_SHOWN)}"), self._environ)
        return dict(line.split("=", 1) for line in said.out.splitlines() if "=" in line)

    def _must(self, *words: str, timeout_s: float | None = None) -> None:
        argv = self._systemctl(*words)
        said = run(argv, self._environ, *([timeout_s] if timeout_s else []))
        if said.code != 0:
            raise ServiceError(f"{' '.join(argv)}: {said.why}")

    def _systemctl(self, *words: str) -> list[str]:
        return ["systemctl", "--user", "--no-ask-password", *words]


def _with_runtime_dir(environ: Mapping[str, str]) -> dict[str, str]:
    """`su` and `ssh` without PAM leave out where the user's manager listens."""
    made = f"/run/user/{os.getuid()}"
    absent = not environ.get("XDG_RUNTIME_DIR") and Path(made).is_dir()
    return {**environ, "XDG_RUNTIME_DIR": made} if absent else dict(environ)
