"""Where a profile keeps its files (interface.md §3); the default profile's paths never change."""

from pathlib import Path
from typing import Final

DEFAULT: Final = "default"


class Paths:
    """The files of one profile under one home."""

    def __init__(self, home: Path, profile: str) -> None:
        named = profile != DEFAULT
        self.home = home
        self.state_dir = home / "daemon" / "profiles" / profile if named else home / "daemon"
        self.agents_dir = home / (f"agents-{profile}" if named else "agents")
        self.config = self.state_dir / "config.json"
        #: The lock is the truth about a running daemon, the pid file is for people.
        self.lock = self.state_dir / "daemon.lock"
        self.pid = self.state_dir / "daemon.pid"
        #: What the running daemon says of itself (status.py).
        self.status = self.state_dir / "status.json"
        self.logs_dir = self.state_dir / "logs"
        #: What a person adds to the service's environment; may hold keys.
        self.environment_file = self.state_dir / "service.env"


def profiles_dir(home: Path) -> Path:
    """Holds one directory for each named profile."""
    return home / "daemon" / "profiles"


def spool_file(state_dir: Path) -> Path:
    return state_dir / "state.db"


def old_state_file(state_dir: Path) -> Path:
    """What daemons before 0.3 kept; read once."""
    return state_dir / "state.json"
