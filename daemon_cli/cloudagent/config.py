"""Where the server is and who we are: arguments < environment < `client.json`.

The only reader of the environment in this package.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from cloudagent.errors import ConfigurationError, NotLoggedInError

#: What `cloudagent up` does not hand on to the processes it starts: it speaks for itself.
_OWN_VARIABLES: Final = frozenset(
    {
        "CLOUDAGENT_URL",
        "CLOUDAGENT_TOKEN",
        "CLOUDAGENT_API_KEY",
        "CLOUDAGENT_DAEMON_PROFILE",
        "COLUMNS",
        "LINES",
    }
)


@dataclass(frozen=True)
class Settings:
    """Everything that the client needs to speak to one server as one person."""

    url: str
    token: str = field(repr=False)
    #: For connecting and for each read of an answer, in seconds.
    timeout_s: float = 30.0
    #: Further tries after the first, for what may be tried again.
    max_retries: int = 4


def home() -> Path:
    """`~/.cloudagent`, or where CLOUDAGENT_HOME moves it."""
    return Path(os.environ.get("CLOUDAGENT_HOME") or "~/.cloudagent").expanduser().absolute()


def client_file() -> Path:
    return home() / "client.json"


def resolve(
    url: str | None = None,
    token: str | None = None,
    *,
    timeout_s: float = 30.0,
    max_retries: int = 4,
) -> Settings:
    """The settings of this caller.

    A token is taken from `client.json` only together with the server that it is for, so that
    another server never sees it.

    Raises:
        NotLoggedInError: no server or no token is known.
        ConfigurationError: what is known cannot be used.
    """
    url = url or os.environ.get("CLOUDAGENT_URL")
    token = token or os.environ.get("CLOUDAGENT_TOKEN")
    if not (url and token):
        saved = load_client_file()
        if url is None or url.rstrip("/") == saved.get("url", "").rstrip("/"):
            url, token = url or saved.get("url"), token or saved.get("token")
    if not url or not token:
        missing = "server" if not url else f"token for {url}"
        raise NotLoggedInError(
            f"no {missing} is known",
            why=f"neither CLOUDAGENT_URL and CLOUDAGENT_TOKEN nor {client_file()} tell it",
            next_step="cloudagent up",
        )
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            "the server's address is none",
            why=f"{url!r} does not start with http:// or https://",
            next_step="export CLOUDAGENT_URL=https://…",
        )
    return Settings(url.rstrip("/"), token, timeout_s=timeout_s, max_retries=max_retries)


def load_client_file() -> dict[str, str]:
    """What `client.json` holds; empty if there is none.

    Raises:
        ConfigurationError: it is there, but cannot be read as what it should be.
    """
    path = client_file()
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read", why=str(error), next_step="cloudagent up   (writes a new one)"
        ) from error
    if not isinstance(data, dict):
        raise ConfigurationError(
            f"{path} cannot be read", why="it holds no JSON object", next_step=f"rm {path}"
        )
    known = cast("dict[str, Any]", data)
    return {key: value for key, value in known.items() if isinstance(value, str)}


def write_private(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file that only its owner may read, in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(data, indent=2) + "\n")
    fresh.replace(path)


def child_environment() -> dict[str, str]:
    """The environment for the server and the daemon that `up` starts."""
    return {key: value for key, value in os.environ.items() if key not in _OWN_VARIABLES}


def plain_terminal() -> bool:
    """Whether colour and movement are unwanted (NO_COLOR, TERM=dumb)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def can_open_browser() -> bool:
    """Whether a browser started here would appear before the person who asked for it."""
    if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY") or os.environ.get("CI"):
        return False
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return os.uname().sysname == "Darwin" or bool(desktop) or bool(os.environ.get("BROWSER"))


def over_ssh() -> bool:
    return bool(os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"))
