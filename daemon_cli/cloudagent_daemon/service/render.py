"""What a service manager is told: a systemd user unit, a launchd agent. Pure.

service_templates/ shows the shape and gives the reasons; a test holds that what is rendered here
is what is shown there. No key is ever part of it: a unit and its environment can be read by others
(`systemctl show`), so the service finds its key in config.json.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloudagent_daemon.paths import DEFAULT

MARK: Final = "managed by cloudagent-daemon"
#: How long a start may take until the daemon serves.
START_S: Final = 60
#: How long a stop may take: the runs' own time, then the ladder (config.py, process.py).
STOP_S: Final = 90
#: A loop that serves nothing for so long is dead (security.md: quiet at 30 s, a restart at 70 s).
WATCHDOG_S: Final = 60
#: One string of an environment or an argument list has 128 KiB in Linux (execve(2)).
MAX_BYTES: Final = 100_000

#: What systemd takes in the name of a program in no way.
_UNUSABLE_PROGRAM: Final = re.compile(r"[\x00-\x1f\x7f\"'\\]")
#: A word that needs no quotes.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:=@+-]+")


class UnusableValueError(Exception):
    """A value cannot be told to a service manager; `str()` says which and why, for a person."""


@dataclass(frozen=True)
class Service:
    """All that a service manager is told of a profile's daemon."""

    profile: str
    version: str
    #: Absolute path of the daemon's command.
    program: str
    #: `--insecure`, `--ca-file` and the like, after `start --service`.
    options: tuple[str, ...]
    #: Where coding agents are found until the login shell has been asked anew.
    path: str
    #: A person's own additions, 0600, which may hold keys; need not exist.
    environment_file: Path
    logs_dir: Path
    #: Such as CLOUDAGENT_HOME; nothing secret.
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def arguments(self) -> list[str]:
        named = [] if self.profile == DEFAULT else ["--profile", self.profile]
        return ["start", "--service", *named, *self.options]

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": self.path, **self.environment}


def unit_name(profile: str) -> str:
    return f"cloudagent-daemon{_suffix('-', profile)}.service"


def label(profile: str) -> str:
    return f"chat.cloudagent.daemon{_suffix('.', profile)}"


def is_ours(text: str) -> bool:
    """Whether we wrote this unit or plist, and so may replace or remove it."""
    return any(line.startswith((f"# {MARK} ", f"<!-- {MARK} ")) for line in text.splitlines()[:3])


def unit(service: Service) -> str:
    """A systemd user unit (systemd.service(5), systemd.exec(5)), for version 243 and later.

    Raises:
        UnusableValueError: a value cannot be written.
    """
    words = " ".join([_program(service.program), *map(_argument, service.arguments)])
    variables = "".join(
        f"Environment={_quoted(f'{name}={value}')}\n" for name, value in service.variables.items()
    )
    return f"""\
# {_mark(service)}
[Unit]
Description=cloudagent host daemon ({service.profile})
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={words}
{variables}\
EnvironmentFile=-{_file(service.environment_file)}
Restart=always
RestartSec=5
RestartForceExitStatus=75
SuccessExitStatus=75
RestartPreventExitStatus=78
WatchdogSec={WATCHDOG_S}
TimeoutStartSec={START_S}
TimeoutStopSec={STOP_S}
KillMode=mixed
Delegate=yes
OOMPolicy=continue
UMask=0077

[Install]
WantedBy=default.target
"""


def plist(service: Service) -> bytes:
    """A launchd agent (launchd.plist(5)).

    Raises:
        UnusableValueError: a value cannot be written.
    """
    import plistlib

    body = {
        "Label": label(service.profile),
        "ProgramArguments": [service.program, *service.arguments],
        "EnvironmentVariables": service.variables,
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 10,
        "ExitTimeOut": STOP_S,
        "Umask": 0o077,
        "LimitLoadToSessionType": "Aqua",
        "StandardOutPath": str(service.logs_dir / "launchd.out.log"),
        "StandardErrorPath": str(service.logs_dir / "launchd.err.log"),
    }
    for value in (
        *service.variables.values(),
        service.program,
        *service.arguments,
        str(service.logs_dir),
    ):
        _checked(value)
    head, line, rest = plistlib.dumps(body, sort_keys=False).partition(b"\n")
    return head + line + f"<!-- {_mark(service)} -->\n".encode() + rest


def program_of(text: str) -> str | None:
    """The program that a unit or plist of ours starts."""
    if text.startswith("<?xml"):
        import plistlib

        try:
            return plistlib.loads(text.encode())["ProgramArguments"][0]
        except (ValueError, KeyError, IndexError, plistlib.InvalidFileException):
            return None
    found = re.search(r'^ExecStart="([^"]*)"', text, re.MULTILINE)
    return found[1].replace("%%", "%") if found else None


def _suffix(separator: str, profile: str) -> str:
    return "" if profile == DEFAULT else separator + profile


def _mark(service: Service) -> str:
    return (
        f"{MARK} {service.version} (profile {service.profile});"
        " rewritten by `cloudagent-daemon install-service`"
    )


# --- systemd.syntax(7) ---


def _program(path: str) -> str:
    """The first word of ExecStart=, in which `$` stands for itself."""
    if found := _UNUSABLE_PROGRAM.search(path):
        raise UnusableValueError(
            f"systemd starts no program with {found[0]!r} in its path: {path!r}"
        )
    return _quoted(path)


def _argument(word: str) -> str:
    return word if _PLAIN.fullmatch(word) else _quoted(word).replace("$", "$$")


def _quoted(text: str) -> str:
    escaped = _checked(text).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'


def _file(path: Path) -> str:
    """EnvironmentFile= knows no quotes, but the wildcards of glob(7)."""
    text = _checked(str(path))
    if "\n" in text or text != text.strip():
        raise UnusableValueError(f"systemd reads no file of this name: {text!r}")
    return re.sub(r"([*?\[\\])", r"\\\1", text).replace("%", "%%")


def _checked(text: str) -> str:
    if found := next(filter(_unusable, text), None):
        raise UnusableValueError(f"{found!r} cannot stand in a service's settings: {text[:100]!r}")
    size = len(text.encode())
    if size > MAX_BYTES:
        raise UnusableValueError(
            f"a value of {size} bytes is too long for a service: {text[:60]!r}…"
        )
    return text


def _unusable(character: str) -> bool:
    """What makes systemd leave out a line, with a warning that nobody sees.

    Control characters but tab and newline, and what is no character (Unicode, section 23.7).
    """
    code = ord(character)
    control = (code < 0x20 and character not in "\t\n") or code == 0x7F
    surrogate, process_internal = 0xD800 <= code <= 0xDFFF, 0xFDD0 <= code <= 0xFDEF
    return control or surrogate or process_internal or code & 0xFFFE == 0xFFFE
