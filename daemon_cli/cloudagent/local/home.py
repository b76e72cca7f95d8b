"""What `up` keeps under `~/.cloudagent/server`: a lock, and what it knows of its server."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cloudagent import config


@dataclass
class State:
    """What one `up` leaves for the next; a lost file costs nothing but a new host machine."""

    url: str = ""
    port: int = 0
    host_id: str = ""
    #: The processes that an `up` has started, as (pid, create time); none when it has ended them.
    processes: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    #: Whether all of it runs, and can be used.
    ready: bool = False


class Home:
    def __init__(self, home: Path) -> None:
        self.path = home
        self.server_dir = home / "server"
        self.database = self.server_dir / "cloudagent.db"
        self.backend_log = self.server_dir / "backend.log"
        self.daemon_log = self.server_dir / "daemon.log"
        self._state = self.server_dir / "up.json"
        self._lock = self.server_dir / "up.lock"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.database}"

    def daemon_config(self, profile: str) -> Path:
        """Where a profile of the daemon keeps its server and key."""
        folder = self.path / "daemon"
        return (folder if profile == "default" else folder / "profiles" / profile) / "config.json"

    def load(self) -> State:
        try:
            saved: Any = json.loads(self._state.read_text(encoding="utf-8"))
            state = State(**saved)
            state.processes = [(int(pid), float(born)) for pid, born in state.processes]
        except (OSError, ValueError, TypeError):
            return State()
        return state

    def save(self, state: State) -> None:
        config.write_private(self._state, asdict(state))

    @contextmanager
    def locked(self) -> Generator[bool]:
        """Whether this process is the one `up` of this home."""
        self.server_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(self._lock)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
