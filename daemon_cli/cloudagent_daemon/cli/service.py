"""`install-service`, `uninstall-service`: the daemon at every login, and proof that it works there."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon import config, control, lock
from cloudagent_daemon.cli import login
from cloudagent_daemon.cli.options import (
    CONFIGURATION,
    CONFLICT,
    FAILED,
    NOT_LOGGED_IN,
    UNREACHABLE,
    USAGE,
    CommandError,
    Commands,
    Here,
    safe,
)
from cloudagent_daemon.service import linger, program
from cloudagent_daemon.service.base import ForeignFileError, Manager, ServiceError, read, write
from cloudagent_daemon.service.render import STOP_S, Service, UnusableValueError
from cloudagent_daemon.service.state import manager_of

#: From the manager's start to the daemon's first answer, and to its first attempt to connect.
READY_S: Final = 60.0
CONNECT_S: Final = 15.0
#: Between two looks at a daemon that starts.
_POLL_S: Final = 0.05
_LAST_WORDS: Final = 15


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    install = commands.add_parser(
        "install-service",
        parents=[options],
        description="Installs the daemon as a service of yours (systemd or launchd), starts it, and "
        "has it check itself from inside. Can be repeated: it changes what has changed.",
    )
    install.add_argument("--server-url", metavar="URL", help="log in first, at this backend")
    login.add_key_options(install)
    login.add_tls_options(install)
    install.add_argument("--no-start", action="store_true", help="only from the next login on")
    install.add_argument(
        "--install-tool",
        action="store_true",
        help="if this runs from uvx's cache: `uv tool install` first",
    )
    install.set_defaults(run=run_install)
    uninstall = commands.add_parser("uninstall-service", parents=[options])
    uninstall.set_defaults(run=run_uninstall)


def run_install(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    manager = _usable_manager(here)
    before = _ours(manager, here)
    _log_in(arguments, here)
    text, shell = _rendered(arguments, here, manager)
    if not arguments.no_start:
        _refuse_another_daemon(here, manager)
    _do(lambda: _put_in_place(manager, text, before), "The service could not be installed", here)
    _row("✓", "unit", _short(manager.file, here))
    _row(*shell)
    if arguments.no_start:
        _row("✓", "enabled", "starts at your next login")
        _linger(here, manager)
        return 0
    began = time.monotonic()
    anew = _start(here, manager, changed=text != before)
    taken = f"ready in {time.monotonic() - began:.1f} s" if anew else "running already"
    code = _tell_start(_connected(here), taken)
    _tell_check(here)
    _linger(here, manager)
    print(f"  Logs: {here.command('logs -f')}      Remove: {here.command('uninstall-service')}")
    return code


def run_uninstall(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    manager = _some_manager(here)
    if _ours(manager, here) is None:
        print(f"no service of profile {here.profile} is installed ({_short(manager.file, here)})")
        return 0
    pid = manager.state().pid
    _tell_drain(_report(here))
    _do(manager.unload, "The service could not be stopped", here)
    manager.file.unlink(missing_ok=True)
    manager.forget()
    if pid:
        _row("✓", "stopped", f"pid {pid}")
    _row("✓", "removed", _short(manager.file, here))
    if not _others(manager) and linger.disable_ours(here.paths.home, here.environ):
        _row("✓", "linger", "off again; it was on for this service")
    kept = f"{_short(here.paths.state_dir, here)}, {_short(here.paths.agents_dir, here)}"
    print(f"  Kept: {kept}  (settings, state, workspaces)")
    return 0


# --- before anything is changed ---


def _some_manager(here: Here) -> Manager:
    manager = manager_of(here.profile, here.environ)
    if manager is None:
        raise CommandError(
            "There is no service manager that this command knows",
            f"the system is {sys.platform}; it knows systemd (Linux) and launchd (macOS)",
            here.command("start --background"),
        )
    return manager


def _usable_manager(here: Here) -> Manager:
    manager = _some_manager(here)
    if why := manager.problem():
        raise CommandError(
            f"There is no {manager.kind} here that could run a service of yours",
            why,
            here.command("start --background"),
        )
    return manager


def _ours(manager: Manager, here: Here) -> str | None:
    """The unit that we installed, or None where there is none."""
    try:
        return read(manager.file)
    except ForeignFileError as error:
        raise CommandError(
            f"{manager.name} is not ours to change",
            str(error),
            f"mv {manager.file} {manager.file}.mine   (if you do not need it)",
            CONFLICT,
        ) from error


def _log_in(arguments: argparse.Namespace, here: Here) -> None:
    """Keeps the key that was given; from there on the service finds it in config.json."""
    again = here.command("install-service --server-url URL --api-key-file FILE")
    given = bool(arguments.api_key or arguments.api_key_file)
    if bool(arguments.server_url) != given:
        missing = "a key (--api-key-file or --api-key)" if arguments.server_url else "--server-url"
        raise CommandError(
            "A new login needs the server and the key", f"{missing} is missing", again, USAGE
        )
    if given:
        server = {"url": None, "server": arguments.server_url, "json": False}
        login.log_in(argparse.Namespace(**vars(arguments), **server), here)
        return
    stored = config.read_file(here.paths.config)
    if stored is None:
        raise CommandError(
            f"Profile {here.profile} is not logged in",
            f"there is no {here.paths.config}",
            here.command("login --server URL"),
            NOT_LOGGED_IN,
        )
    login.check_trust(arguments, stored.server_url, here.command("install-service"))


def _refuse_another_daemon(here: Here, manager: Manager) -> None:
    pid = lock.holder(here.paths.lock, here.paths.pid)
    if pid and pid != manager.state().pid:
        raise CommandError(
            f"Profile {here.profile} has a running daemon that is not the service",
            f"pid {pid} holds {here.paths.lock}",
            f"{here.command('stop')}, then {here.command('install-service')}",
            CONFLICT,
        )


def _rendered(
    arguments: argparse.Namespace, here: Here, manager: Manager
) -> tuple[str, tuple[str, str, str]]:
    """The unit, and a row about the PATH in it."""
    from cloudagent_protocol.version import DISTRIBUTION

    command = _program(arguments, here)
    path, row = _path(here)
    ca_file = None if arguments.server_url else arguments.ca_file
    options = ["--insecure"] if arguments.insecure else []
    options += ["--i-understand"] if arguments.i_understand else []
    options += ["--ca-file", str(Path(ca_file).expanduser().absolute())] if ca_file else []
    moved = here.environ.get(config.HOME_VARIABLE)
    service = Service(
        profile=here.profile,
        version=DISTRIBUTION,
        program=str(command),
        options=tuple(options),
        path=path,
        environment_file=here.paths.environment_file,
        logs_dir=here.paths.logs_dir,
        environment={config.HOME_VARIABLE: str(here.paths.home.absolute())} if moved else {},
    )
    try:
        return manager.render(service), row
    except UnusableValueError as error:
        raise CommandError(
            "The service cannot be described to its manager",
            str(error),
            here.command("install-service") + "   (with other paths)",
            CONFIGURATION,
        ) from error


def _program(arguments: argparse.Namespace, here: Here) -> Path:
    try:
        if not program.may_vanish(Path(sys.prefix)):
            return program.current()
        if arguments.install_tool:
            return program.install(here.environ)
    except program.ProgramError as error:
        raise CommandError(
            "There is no command that a service could start",
            str(error),
            " ".join(program.install_command()),
        ) from error
    raise CommandError(
        "This runs from a cache, from which its files may go at any time",
        f"it is in {sys.prefix}",
        f"{' '.join(program.install_command())} && {here.command('install-service')}"
        "   (or --install-tool, which does that)",
    )


def _path(here: Here) -> tuple[str, tuple[str, str, str]]:
    import shutil

    import anyio

    from cloudagent_daemon.service import login_path

    found = anyio.run(login_path.ask, login_path.shell_of(here.environ), here.environ)
    if found.problem:
        path = login_path.joined(here.environ.get("PATH", "").split(":"))
        return path, ("!", "PATH", f"taken from here: {found.problem}")
    path = login_path.joined(found.entries)
    claude = shutil.which("claude", path=path)
    where = f"; claude → {_short(Path(claude), here)}" if claude else ""
    entries = f"{len(path.split(':'))} entries from your login shell ({found.shell})"
    return path, ("✓", "PATH", f"{entries}{where}")


# --- the change ---


def _put_in_place(manager: Manager, text: str, before: str | None) -> None:
    if text != before:
        write(manager.file, text)
    manager.load()


def _start(here: Here, manager: Manager, *, changed: bool) -> bool:
    """Until the daemon answers; anew only if something has changed, and then after a drain."""
    from cloudagent_protocol.version import DISTRIBUTION

    state = manager.state()
    report = _report(here)
    current = report is not None and report["daemon_version"] == DISTRIBUTION
    if current and state.activity == "running" and not changed:
        return False
    _tell_drain(report)
    try:
        here.paths.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        manager.start()
        _wait_until_it_answers(here, manager)
    except ServiceError as error:
        words = manager.last_words(_LAST_WORDS) or _log_tail(here.paths.logs_dir)
        for line in words[-_LAST_WORDS:]:
            print(safe(f"  │ {line}"), file=sys.stderr)
        raise CommandError(
            "The service does not start",
            f"{manager.state().detail or error}",
            manager.watch_command,
            FAILED,
        ) from error
    return True


def _wait_until_it_answers(here: Here, manager: Manager) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        state, report = manager.state(), _report(here)
        if report and report["pid"] == state.pid:
            return
        if state.activity in ("failed", "restarting"):
            raise ServiceError(f"it ended ({state.detail})")
        if time.monotonic() > deadline:
            raise ServiceError(f"it does not answer within {READY_S:.0f} s ({state.activity})")
        time.sleep(_POLL_S)


def _connected(here: Here) -> dict[str, Any]:
    """What the daemon says once its first attempt to connect is over."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        report = _report(here) or {"state": "stopped", "detail": "it ended", "attempt": 1}
        pending = report["state"] == "connecting" and not report["attempt"]
        if not pending or time.monotonic() > deadline:
            return report
        time.sleep(_POLL_S)


def _report(here: Here) -> dict[str, Any] | None:
    try:
        return control.ask(here.paths.state_dir, "report")
    except control.NoAnswerError:
        return None


def _log_tail(logs_dir: Path) -> list[str]:
    files = sorted(logs_dir.glob("*.log"), key=lambda file: file.stat().st_mtime)
    return files[-1].read_text("utf-8", errors="replace").splitlines() if files else []


# --- what a person reads ---


def _tell_drain(report: dict[str, Any] | None) -> None:
    working = [agent for agent in (report or {}).get("agents", ()) if agent["status"] == "working"]
    if working:
        print(f"waiting for {len(working)} running to finish (up to {STOP_S} s)", file=sys.stderr)


def _tell_start(report: dict[str, Any], taken: str) -> int:
    """A row, and the exit code."""
    ready = f"{taken} (pid {report.get('pid')})"
    match report["state"]:
        case "connected":
            _row(
                "✓",
                "started",
                f"{ready}, connected to {report['server_url']} as {report['host_id']}",
            )
            return 0
        case "unauthorized":
            _row("✗", "started", f"{ready}, but the key is rejected: {report['detail']}")
            return NOT_LOGGED_IN
        case _:
            _row("!", "started", f"{ready}, not connected yet: {report['detail']}")
            return UNREACHABLE


def _tell_check(here: Here) -> None:
    """What the daemon finds from inside of the service."""
    try:
        found = control.ask(here.paths.state_dir, "check")
    except control.NoAnswerError as error:
        _row("!", "check", str(error))
        return
    for runtime in _worth_telling(found["runtimes"]):
        _row(*_runtime_row(runtime, here))
    _row(*_trial_row("tools", "an agent's tools start in {} ms", found["tools"]))
    _row(*_trial_row("backend", "keeps a report in {} ms", found["backend"]))


def _worth_telling(runtimes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is for tests, and without what is not there or not set up while another is."""
    real = [runtime for runtime in runtimes if runtime["name"] != "scripted"]
    usable = any(not runtime["problem"] for runtime in real)
    return [
        runtime for runtime in real if not (usable and runtime["problem"] and _is_spare(runtime))
    ]


def _is_spare(runtime: dict[str, Any]) -> bool:
    return runtime["name"] == "builtin" or not runtime["path"]


def _runtime_row(runtime: dict[str, Any], here: Here) -> tuple[str, str, str]:
    name, version = runtime["name"], runtime["version"] or ""
    if runtime["problem"]:
        return "!", "runtime", f"{name}: {runtime['problem']}"
    where = f"  ({_short(Path(runtime['path']), here)})" if runtime["path"] else ""
    match runtime["logged_in"]:
        case True:
            return "✓", "runtime", f"{name} {version}, logged in{where}"
        case False:
            return "!", "runtime", f"{name} {version}, not logged in here{where}"
        case _:
            return "✓", "runtime", f"{name} {version}{where}".rstrip()


def _trial_row(name: str, text: str, tried: dict[str, Any]) -> tuple[str, str, str]:
    if tried["problem"]:
        return "!", name, tried["problem"]
    return "✓", name, text.format(f"{tried['ms']:.0f}")


def _linger(here: Here, manager: Manager) -> None:
    if manager.kind != "systemd":
        return
    if linger.enable(here.paths.home, here.environ):
        _row("✓", "linger", "on: the daemon stays when you log out, and starts with the computer")
    else:
        _row("!", "linger", "off: the daemon stops when you log out")
        print(f"            fix   {linger.enable_command()}")


def _row(mark: str, name: str, text: str) -> None:
    print(safe(f"{mark} {name:9} {text}"), flush=True)


def _short(path: Path, here: Here) -> str:
    home = Path(here.environ.get("HOME", "/nonexistent"))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _others(manager: Manager) -> list[Path]:
    """Units of ours of other profiles."""
    stem, suffix = ("cloudagent-daemon", ".service")
    if manager.kind == "launchd":
        stem, suffix = "chat.cloudagent.daemon", ".plist"
    return [file for file in manager.file.parent.glob(f"{stem}*{suffix}") if _is_ours(file)]


def _is_ours(file: Path) -> bool:
    try:
        return read(file) is not None
    except ForeignFileError:
        return False


def _do(step: Callable[[], object], what: str, here: Here) -> None:
    try:
        step()
    except ServiceError as error:
        raise CommandError(what, str(error), here.command("status")) from error
