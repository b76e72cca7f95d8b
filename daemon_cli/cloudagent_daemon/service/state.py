"""The service of a profile as a whole, for those who only look: `status`, `doctor`, `stop`."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloudagent_daemon.service import linger, program, render
from cloudagent_daemon.service.base import ForeignFileError, Kind, Manager, read


@dataclass(frozen=True)
class ServiceState:
    """An installed service."""

    manager: Kind
    name: str
    file: Path
    #: running, starting, stopping, restarting, failed or stopped.
    activity: str
    pid: int | None
    restarts: int | None
    enabled: bool
    #: Whether it lives on after logout; None where that is not known.
    lingers: bool | None
    #: What it starts, and whether that is the command that is asking.
    program: str | None
    same_program: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": str(self.file)}


def manager_of(profile: str, environ: Mapping[str, str]) -> Manager | None:
    """This system's manager of services, or None where we know none."""
    if sys.platform == "darwin":
        from cloudagent_daemon.service.launchd import Launchd

        return Launchd(profile, environ)
    if sys.platform == "linux":
        from cloudagent_daemon.service.systemd import Systemd

        return Systemd(profile, environ)
    return None


def service_state(profile: str, environ: Mapping[str, str]) -> ServiceState | None:
    """The profile's service, or None where none of ours is installed. Costs no process then."""
    manager = manager_of(profile, environ)
    try:
        text = read(manager.file) if manager else None
    except ForeignFileError:
        return None
    if manager is None or text is None:
        return None
    state = manager.state()
    started = render.program_of(text)
    return ServiceState(
        manager=manager.kind,
        name=manager.name,
        file=manager.file,
        activity=state.activity,
        pid=state.pid,
        restarts=state.restarts,
        enabled=state.enabled,
        lingers=linger.lingers() if manager.kind == "systemd" else None,
        program=started,
        same_program=started == _this_program(),
        detail=state.detail,
    )


def manager_problem(profile: str, environ: Mapping[str, str]) -> str:
    """Why the profile's service cannot run here and now, whatever the daemon does.

    Empty if it could, or if none of ours is installed.
    """
    manager = manager_of(profile, environ)
    try:
        installed = manager is not None and read(manager.file) is not None
    except ForeignFileError:
        return ""
    return (manager.problem() or "") if manager and installed else ""


def _this_program() -> str | None:
    try:
        return str(program.current())
    except program.ProgramError:
        return None
