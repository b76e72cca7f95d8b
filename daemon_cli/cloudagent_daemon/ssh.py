"""What `--ssh-tunnel` names, and how ssh is called for it: a rule without processes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cloudagent_daemon.config import ConfigError

#: No dash in front: ssh would take it for an option.
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_PORTS: Final = {"http": 80, "https": 443}
#: Both ends notice within half a minute that the other is gone, as the link does.
_ALIVE_S: Final = 10
_CONNECT_S: Final = 10
_OPTIONS: Final = {
    # Nobody is there to be asked for a password, or whether a host key is right.
    "BatchMode": "yes",
    "ExitOnForwardFailure": "yes",
    "ServerAliveInterval": str(_ALIVE_S),
    "ServerAliveCountMax": "2",
    "ConnectTimeout": str(_CONNECT_S),
    # A connection of our own, which ends with us, whatever the person's configuration shares.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ControlPersist": "no",
    # The tunnel's near end is for this user only, and one of an earlier life is no hindrance.
    "StreamLocalBindMask": "0177",
    "StreamLocalBindUnlink": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RequestTTY": "no",
}


@dataclass(frozen=True)
class Target:
    """Where ssh goes; all but the host may be left to its own configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def shown(self) -> str:
        """As it was named."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port else "")


def parse(text: str) -> Target:
    """`[user@]host[:port]`; an IPv6 address stands in brackets.

    Raises:
        ConfigError: it is something else.
    """
    user, at, rest = text.rpartition("@")
    host, colon, port = rest.rpartition(":") if not rest.endswith("]") else (rest, "", "")
    if not colon:
        host, port = rest, ""
    fits = _HOST.fullmatch(host) and (not at or _USER.fullmatch(user))
    number = int(port) if port.isdecimal() and len(port) <= 5 else 0
    if not fits or (colon and not 0 < number < 65_536):
        raise ConfigError(
            "The SSH tunnel cannot be used",
            f"got {text!r}, expected [USER@]HOST[:PORT]",
            "cloudagent-daemon login --server URL --ssh-tunnel user@host",
            usage=True,
        )
    return Target(host, user or None, number or None)


def by_hand(target: Target) -> str:
    """What a person runs to see whether ssh gets there without asking."""
    port = f"-p {target.port} " if target.port else ""
    user = f"{target.user}@" if target.user else ""
    return f"ssh {port}{user}{target.host.strip('[]')} true"


def kept(text: str | None) -> str | None:
    """What a configuration keeps of an option; empty means no tunnel.

    Raises:
        ConfigError: see `parse`.
    """
    return parse(text).shown if text else None


def argv(target: Target, socket: Path, server_url: str) -> list[str]:
    """The command that opens a tunnel from `socket` to the server, as the far machine sees it."""
    server = urlsplit(server_url)
    host = server.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = server.port or _PORTS[server.scheme]
    options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
    where = ["-p", str(target.port)] if target.port else []
    user = ["-l", target.user] if target.user else []
    forward = f"{socket}:{host}:{port}"
    return [
        "ssh",
        "-N",
        "-T",
        *options,
        *where,
        *user,
        "-L",
        forward,
        "--",
        target.host.strip("[]"),
    ]
