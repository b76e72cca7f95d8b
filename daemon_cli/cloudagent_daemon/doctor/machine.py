"""What can be seen of this machine without a network or another process."""

import os
import sqlite3
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon import config, lock, logfiles
from cloudagent_daemon.doctor.findings import Command, Finding
from cloudagent_daemon.paths import Paths, spool_file

#: Parts of a path below which `uvx` and `pipx run` keep what may be thrown away at any time.
_CACHES: Final = ("archive-v0", ".cache/pipx", "pipx/.cache")
_MB: Final = 1_000_000
_LITTLE_DISK_MB: Final = 500
#: Of logs more than this is cleaned up; the newest files are kept.
_MANY_LOGS_MB: Final = 200
_KEPT_LOGS: Final = 5
#: Of a daemon that no longer runs.
_LEFT_BY_A_DEAD_ONE: Final = ("daemon.pid", "status.json", "bridge.sock", "control.sock")


def environment(
    paths: Paths, report: Mapping[str, Any] | None, command: Command
) -> Iterator[Finding]:
    """The install, our files, the disk, and what holds the daemon back.

    Args:
        paths: of the profile.
        report: what the running daemon says of itself; None if none runs.
        command: gives one of our commands as a person types it.
    """
    yield _install(Path(sys.prefix), report)
    yield _config(paths, command("login --server URL"))
    yield _state_dir(paths)
    if report is None:
        yield _leftovers(paths, command)
    yield _spool(paths, command)
    yield _logs(paths, command)
    if report is None:
        yield _disk(paths)
    else:
        yield from _guards(report)
        yield _own_files(report)


def agents(paths: Paths, names: Mapping[str, tuple[str, str | None]]) -> Iterator[Finding]:
    """Each agent's folders: `names` gives name and working folder by id."""
    for agent_id, (name, cwd) in names.items():
        folder = Path(cwd).expanduser() if cwd else paths.agents_dir / agent_id / "workspace"
        if not folder.is_dir():
            fix = f"mkdir -p {folder}" if cwd else ""
            yield _agent(name, "fail", f"{folder} is not there", fix)
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield _agent(name, "warn", f"{folder} cannot be written to", f"ls -ld {folder}")
        else:
            yield _agent(name, "ok", str(folder))


def _agent(name: str, state: Any, detail: str, fix: str = "") -> Finding:
    return Finding("Agents", name[:24], state, detail, fix)


def _env(name: str, state: Any, detail: str, fix: str = "", repair: Any = None) -> Finding:
    return Finding("Environment", name, state, detail, fix, repair)


def _install(prefix: Path, report: Mapping[str, Any] | None) -> Finding:
    found: Mapping[str, Any] = (report or {}).get("installation") or {}
    if detail := found.get("detail"):
        detail, _, fix = str(detail).partition("; reinstall it: ")
        said = f"of the running daemon: {detail}"
        changed = found.get("state") == "changed"
        return _env("install", "warn" if changed else "fail", said, fix.strip())
    if any(part in str(prefix) for part in _CACHES):
        return _env(
            "install",
            "warn",
            f"runs from a cache that may be emptied at any time ({prefix})",
            "uv tool install cloudagent-daemon",
        )
    return _env("install", "ok", str(prefix))


def _config(paths: Paths, login_command: str) -> Finding:
    try:
        info = paths.config.stat()
    except FileNotFoundError:
        return _env("config", "fail", "not logged in: there is no config.json", login_command)
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid():
        owned = f"{paths.config} belongs to user {info.st_uid}"
        return _env("config", "fail", owned, f"sudo chown {os.geteuid()} {paths.config}")
    if mode & 0o077:
        return _env(
            "config",
            "fail",
            f"others may read the machine's key: {paths.config} has mode {mode:04o}",
            f"chmod 600 {paths.config}   (and rotate the key if others use this machine)",
            lambda: _chmod(paths.config, 0o600),
        )
    try:
        config.read_file(paths.config)
    except config.ConfigError as error:
        return _env("config", "fail", f"{error.what}: {error.why}", error.next_step)
    return _env("config", "ok", f"{paths.config} (mode 0600, yours)")


def _state_dir(paths: Paths) -> Finding:
    if not paths.state_dir.exists():
        return _env("files", "skip", f"{paths.state_dir} is not there yet")
    mode = stat.S_IMODE(paths.state_dir.stat().st_mode)
    if mode & 0o077:
        return _env(
            "files",
            "fail",
            f"others may look into {paths.state_dir} (mode {mode:04o})",
            f"chmod 700 {paths.state_dir}",
            lambda: _chmod(paths.state_dir, 0o700),
        )
    return _env("files", "ok", f"{paths.state_dir} (mode 0700)")


def _chmod(path: Path, mode: int) -> str:
    path.chmod(mode)
    return f"set the mode of {path} to {mode:04o}"


def _leftovers(paths: Paths, command: Command) -> Finding:
    left = [paths.state_dir / name for name in _LEFT_BY_A_DEAD_ONE]
    left = [path for path in left if path.exists() or path.is_symlink()]
    if not left:
        return _env("leftovers", "ok", "nothing is left of a daemon that ended")
    names = ", ".join(path.name for path in left)
    fix = command("doctor --fix") + "   (the next start does it, too)"

    def remove() -> str:
        if lock.holder(paths.lock, paths.pid) is not None:
            raise OSError("a daemon has just been started")
        for path in left:
            path.unlink(missing_ok=True)
        return f"removed {names}"

    return _env("leftovers", "warn", f"a daemon was killed; {names} are left of it", fix, remove)


def _spool(paths: Paths, command: Command) -> Finding:
    file = spool_file(paths.state_dir)
    aside = sorted(path.name for path in paths.state_dir.glob("state.db.*-*"))
    if not file.exists():
        return _env("queue", "skip", "there is no state.db yet")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)) as spool:
            verdict = spool.execute("PRAGMA quick_check(1)").fetchone()[0]
            [waiting] = spool.execute(
                "SELECT count(*) FROM inbox WHERE finished_at IS NULL"
            ).fetchone()
            [unsent] = spool.execute("SELECT count(*) FROM outbox").fetchone()
    except sqlite3.Error as error:
        verdict, waiting, unsent = str(error), 0, 0
    if verdict != "ok":
        detail = f"{file} cannot be read: {verdict}"
        fix = command("start") + "   (sets it aside, loses nothing)"
        return _env("queue", "fail", detail, fix)
    told = f"state.db is sound; {waiting} messages unfinished, {unsent} reports unsent"
    if aside:
        return _env(
            "queue",
            "warn",
            f"{told}; set aside earlier: {', '.join(aside)}",
            "look at the log, then remove it",
        )
    return _env("queue", "ok", told)


def _disk(paths: Paths) -> Finding:
    folder = next(one for one in (paths.state_dir, *paths.state_dir.parents) if one.exists())
    space = os.statvfs(folder)
    free_mb = space.f_bavail * space.f_frsize // _MB
    if free_mb < _LITTLE_DISK_MB:
        detail = f"{free_mb:,} MB are free on the disk of {folder}"
        return _env("disk", "fail", detail, f"df -h {folder}")
    return _env("disk", "ok", f"{free_mb:,} MB free")


def _logs(paths: Paths, command: Command) -> Finding:
    files = logfiles.files(paths.logs_dir)
    size_mb = sum(path.stat().st_size for path in files) / _MB
    told = f"{len(files)} files, {size_mb:,.1f} MB in {paths.logs_dir}"
    if size_mb <= _MANY_LOGS_MB:
        return _env("logs", "ok", told)
    old = files[:-_KEPT_LOGS]

    def remove() -> str:
        for path in old:
            path.unlink(missing_ok=True)
        return f"removed the {len(old)} oldest log files"

    fix = command("doctor --fix") + "   (keeps the newest)"
    return _env("logs", "warn", told, fix, remove)


def _guards(report: Mapping[str, Any]) -> Iterator[Finding]:
    for guard in report.get("guards") or ():
        ok = guard.get("state") == "ok"
        detail = str(guard.get("detail") or "enough to start agents")
        yield _env(str(guard.get("name")), "ok" if ok else "fail", detail)


def _own_files(report: Mapping[str, Any]) -> Finding:
    own: Mapping[str, Any] = report.get("own_files") or {}
    match own.get("state"):
        case "hidden":
            return _env("key", "ok", "hidden from the agents")
        case "open" | "off":
            why = str(own.get("detail") or "by its settings")
            fix = "docs/security.md says what that means, and what allows it"
            return _env("key", "warn", f"agents could read this machine's key: {why}", fix)
        case _:
            return _env("key", "skip", "whether it is hidden from agents is not known yet")
