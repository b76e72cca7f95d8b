"""The daemon's settings, and the only reader of its environment: defaults < file < env < flags."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from urllib.parse import urlsplit

KEY_VARIABLE: Final = "CLOUDAGENT_API_KEY"
PROFILE_VARIABLE: Final = "CLOUDAGENT_DAEMON_PROFILE"
HOME_VARIABLE: Final = "CLOUDAGENT_HOME"
CRASH_VARIABLE: Final = "CLOUDAGENT_CRASH_AT"

#: Of config.json; a daemon refuses what a newer one has written.
SCHEMA: Final = 1

MaskSetting: TypeAlias = Literal["auto", "require", "off"]


class ConfigError(Exception):
    """A setting cannot be used: what, why with the value seen, and the command that helps.

    `usage` tells a slip on the command line from a file that needs a person.
    """

    def __init__(
        self,
        what: str,
        why: str,
        next_step: str,
        *,
        usage: bool = False,
        replaceable: bool = False,
    ) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.next_step, self.usage = what, why, next_step, usage
        #: Whether a login may write the file anew.
        self.replaceable = replaceable


class NotLoggedInError(ConfigError):
    """The profile has no machine key yet."""


@dataclass(frozen=True)
class Limits:
    """What the owner of the machine may change; `CLOUDAGENT_MAX_RUNS` and so on override the file."""

    #: Runs at once on this machine.
    max_runs: int = 5
    #: How long running work may go on after the first SIGTERM.
    stop_timeout_s: float = 60.0
    #: What an agent gets until SIGKILL when that time, or its run, is over: SIGTERM at once, or
    #: after an interrupt that it does not heed.
    term_timeout_s: float = 9.0
    #: Silence of a coding agent (output, stderr and journal) after which its run is ended.
    hang_timeout_s: float = 1800.0
    #: How long a run waits for a person's decision before its process is ended; the decision resumes it.
    approval_park_s: float = 600.0
    #: How long a request of an agent may be decided at all; then it counts as refused.
    approval_expire_s: float = 604_800.0
    #: Whether the daemon's own files are hidden from agents: where the machine can (`auto`), not at
    #: all (`off`: agents may then use sudo), or nothing runs where it cannot (`require`).
    mask: MaskSetting = "auto"
    #: Nothing is started below these (guards.py). Of the disk both must be free; 0 asks for nothing.
    min_memory_mb: int = 512
    min_disk_mb: int = 500
    min_disk_percent: float = 2.0
    #: What the processes of one run may take together, by size and as a share of the machine's memory;
    #: the smaller counts, and 0 asks for nothing (footprint.py).
    run_memory_mb: int = 0
    run_memory_percent: float = 75.0
    #: How long a coding agent's process stays after its turn, for the next message of its
    #: conversation, and how many may wait so at once (runs/warm.py). 0: one process per message.
    warm_s: float = 600.0
    max_warm: int = 3
    #: How long one stays that was started because a person looks at its conversation (runs/ahead.py).
    #: 0: none is started before there is a message.
    expect_s: float = 120.0
    #: How long an agent is left alone after its third crash in a row (runs/breaker.py); later pauses
    #: are longer. 0: never.
    crash_pause_s: float = 60.0


#: The smallest values that make sense, where that is not 0.
_LEAST: Final = {"max_runs": 1, "hang_timeout_s": 0.001}


@dataclass(frozen=True)
class Settings:
    """All that one life of the daemon is told; made in profile.py, handed to whoever needs it."""

    profile: str
    server_url: str
    machine_key: str = field(repr=False)
    host_id: str | None
    #: `~/.cloudagent`, or None in one-shot mode, when nothing may be written there.
    home: Path | None
    #: Holds the spool, the logs and the lock; None in one-shot mode: the spool is in memory.
    state_dir: Path | None
    #: 0700; for the bridge's socket and for files that live as long as a run. In one-shot mode a
    #: temporary directory.
    runtime_dir: Path
    #: One workspace per agent.
    agents_dir: Path
    #: The daemon's environment without our keys, plus the profile's name.
    environment: Mapping[str, str] = field(repr=False)
    limits: Limits = Limits()
    #: Where a login may put another key meanwhile; None in one-shot mode.
    config_file: Path | None = None
    #: TLS certificates are not checked.
    insecure: bool = False
    #: A further root certificate, PEM.
    ca_file: Path | None = None
    #: `[user@]host[:port]`, from where the server is reached (ssh.py); None: from here.
    ssh_tunnel: str | None = None
    #: Started by a service manager, and so with an environment that is not a terminal's.
    service: bool = False
    #: Where to exit hard, for tests of recovery (crash.py).
    crash_at: str | None = None
    debug: bool = False

    @property
    def one_shot(self) -> bool:
        return self.state_dir is None


@dataclass(frozen=True)
class Stored:
    """What config.json holds."""

    server_url: str
    machine_key: str = field(repr=False)
    host_id: str
    limits: Limits = Limits()
    ca_file: str | None = None
    ssh_tunnel: str | None = None


def environment() -> dict[str, str]:
    """A snapshot of the process's environment."""
    return dict(os.environ)


def wants_colour(environ: Mapping[str, str]) -> bool:
    """Whether colour and movement are welcome on a terminal (no-color.org)."""
    return not environ.get("NO_COLOR") and environ.get("TERM") not in ("dumb", "", None)


def home_dir(environ: Mapping[str, str]) -> Path:
    """`~/.cloudagent`, or where `CLOUDAGENT_HOME` says."""
    return Path(environ.get(HOME_VARIABLE) or "~/.cloudagent").expanduser()


def child_environment(environ: Mapping[str, str], profile: str) -> dict[str, str]:
    """`environ` without our key, with the profile that commands inside an agent's shell shall use."""
    rest = {name: value for name, value in environ.items() if name != KEY_VARIABLE}
    return rest | {PROFILE_VARIABLE: profile}


def read_limits(environ: Mapping[str, str], base: Limits) -> Limits:
    """`base`, overridden by `CLOUDAGENT_MAX_RUNS`, `CLOUDAGENT_STOP_TIMEOUT_S` and so on.

    Raises:
        ConfigError: a value cannot be used.
    """
    found: dict[str, Any] = {
        name: value
        for name in asdict(base)
        if (value := environ.get(f"CLOUDAGENT_{name.upper()}")) is not None
    }
    return _limits(asdict(base) | found, "the environment")


def check_server_url(url: str) -> str:
    """`url` without a slash at its end; https is assumed where no scheme is named.

    Raises:
        ConfigError: it is no http or https URL of a server.
    """
    text = url.strip()
    text = (text if "://" in text else f"https://{text}").rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    else:
        usable = usable and not (parts.username or parts.query or parts.fragment)
    if not usable:
        raise ConfigError(
            "The server's address cannot be used",
            f"got {url!r}, expected something like https://agents.example.com",
            "cloudagent-daemon login --server https://agents.example.com",
            usage=True,
        )
    return text


def read_file(path: Path) -> Stored | None:
    """The content of a config.json, or None where there is none.

    Raises:
        ConfigError: others may read it, or it cannot be understood.
    """
    try:
        info, text = _read_own(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        linked = error.errno == errno.ELOOP
        why = "it is a symbolic link; it has to be a file of its own" if linked else str(error)
        raise _unusable(path, why) from error
    except UnicodeDecodeError as error:
        raise _unusable(path, str(error)) from error
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigError(
            f"The machine key in {path} may be known to others",
            f"mode {stat.S_IMODE(info.st_mode):04o}, owner {info.st_uid}; expected 0600, your own",
            f"chmod 600 {path}, and rotate the key if others use this machine",
        )
    try:
        return _parse(json.loads(text))
    except _NewerError as error:
        raise ConfigError(
            f"{path} belongs to a newer version",
            str(error),
            "uv tool upgrade cloudagent-daemon   (the file was left as it is)",
        ) from error
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error


def _read_own(path: Path) -> tuple[os.stat_result, str]:
    """The file's text, and whose it is: of the very file that was read, and no other's by a link."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, encoding="utf-8") as file:
        return os.fstat(file.fileno()), file.read()


def check_writable(path: Path) -> None:
    """Looks whether a config.json can be kept there, before a key is made that would be lost.

    Raises:
        ConfigError: it cannot.
    """
    draft = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        _write_private(draft, "x" * 4_096)
    except OSError as error:
        raise ConfigError(
            "The machine key could not be kept",
            f"{path}: {error.strerror or error}",
            f"make {path.parent} writable, or set ${HOME_VARIABLE} to another folder",
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    """A new file that is 0600 from its first byte on, and on the disk when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, stored: Stored) -> None:
    """Replaces a config.json in one step; the file is 0600 from its first byte on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    body = {
        "schema": SCHEMA,
        "server_url": stored.server_url,
        "machine_key": stored.machine_key,
        "host_id": stored.host_id,
        **asdict(stored.limits),
        "ca_file": stored.ca_file,
        "ssh_tunnel": stored.ssh_tunnel,
    }
    draft = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        _write_private(draft, json.dumps(body, indent=2) + "\n")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class _NewerError(Exception):
    """A newer daemon has written the file."""


def _parse(raw: Any) -> Stored:
    if not isinstance(raw, dict):
        raise TypeError("expected an object")
    body = cast("dict[str, Any]", raw)
    schema: Any = body.get("schema", SCHEMA)  # files from before it was written have none
    if isinstance(schema, int) and schema > SCHEMA:
        raise _NewerError(f"its schema is {schema}; this daemon knows {SCHEMA}")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}")
    for name in ("ca_file", "ssh_tunnel"):
        if not isinstance(body.get(name), str | None):
            raise TypeError(f"{name} is no text")
    defaults = asdict(Limits())
    return Stored(
        server_url=check_server_url(str(body["server_url"])),
        machine_key=str(body["machine_key"]),
        host_id=str(body["host_id"]),
        limits=_limits({name: body.get(name, value) for name, value in defaults.items()}, "it"),
        ca_file=body.get("ca_file"),
        ssh_tunnel=body.get("ssh_tunnel"),
    )


def _limits(values: Mapping[str, Any], where: str) -> Limits:
    try:
        defaults: dict[str, int | float | str] = asdict(Limits())
        made: dict[str, Any] = {
            name: type(default)(values[name]) for name, default in defaults.items()
        }
        limits = Limits(**made)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"A limit in {where} is no number", str(error), "cloudagent-daemon status"
        ) from error
    if limits.mask not in get_args(MaskSetting):
        raise ConfigError(
            f"`mask` in {where} cannot be used",
            f"got {limits.mask!r}; it is one of {', '.join(get_args(MaskSetting))}",
            "cloudagent-daemon status",
        )
    # `not >=` rather than `<`: a NaN is in no range.
    numbers = {name: value for name, value in made.items() if not isinstance(value, str)}
    low = [name for name, value in numbers.items() if not value >= _LEAST.get(name, 0)]
    if low or max(limits.min_disk_percent, limits.run_memory_percent) > 100:
        raise ConfigError(
            f"A limit in {where} is out of range", str(limits), "cloudagent-daemon status"
        )
    return limits


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be used",
        why,
        "cloudagent-daemon login --server URL (writes it anew)",
        replaceable=True,
    )
