"""What every service manager can do for us, and what it tells of a service. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from cloudagent_daemon.service import render
from cloudagent_daemon.service.render import Service

Kind: TypeAlias = Literal["systemd", "launchd"]
#: `failed`: it has given up, `restarting`: it waits before another attempt.
Activity: TypeAlias = Literal["running", "starting", "stopping", "restarting", "failed", "stopped"]
TOOL_S: Final = 30.0


class ServiceError(Exception):
    """A service manager did not do what was asked; `str()` says what it said."""


class ForeignFileError(ServiceError):
    """There is a file of somebody else where ours would be."""


@dataclass(frozen=True)
class State:
    """What a manager says of a profile's service."""

    activity: Activity
    pid: int | None = None
    #: How often it was started anew since somebody asked for it; None where nobody counts.
    restarts: int | None = None
    #: Whether it starts at the next login.
    enabled: bool = False
    #: What the daemon last said of itself, or how it ended.
    detail: str = ""


class Manager(Protocol):
    """A service manager, seen from one profile."""

    @property
    def kind(self) -> Kind: ...

    @property
    def name(self) -> str:
        """What the manager calls the service."""
        ...

    @property
    def file(self) -> Path:
        """Where the manager looks for it."""
        ...

    @property
    def watch_command(self) -> str:
        """What a person types to see what the manager thinks."""
        ...

    def problem(self) -> str | None:
        """Why this manager cannot be used here and now; None if it can."""
        ...

    def render(self, service: Service) -> str:
        """The file's content.

        Raises:
            render.UnusableValueError: a value cannot be written.
        """
        ...

    def state(self) -> State:
        """How the service is; `stopped` if the manager does not know it or does not answer."""
        ...

    def load(self) -> None:
        """Has the manager read the file, and start the service at each login.

        Raises:
            ServiceError: it would not.
        """
        ...

    def start(self) -> None:
        """Starts it, or starts it anew after a drain. What the manager cannot wait for, it does not.

        Raises:
            ServiceError: it does not start, as far as the manager can tell.
        """
        ...

    def stop(self) -> None:
        """Begins to stop it, until the next login; does not wait for the drain.

        Raises:
            ServiceError: the manager would not.
        """
        ...

    def unload(self) -> None:
        """Stops it, waits for the drain, and has it not start again. Works without a manager, too.

        Raises:
            ServiceError: it did not stop.
        """
        ...

    def forget(self) -> None:
        """After the file has gone: nothing of it stays in the manager's memory."""
        ...

    def last_words(self, lines: int) -> list[str]:
        """The end of what it printed, where the manager keeps that."""
        ...


@dataclass(frozen=True)
class Said:
    """What a tool answered."""

    code: int
    out: str
    error: str

    @property
    def why(self) -> str:
        """The last thing it complained of."""
        lines = [line for line in (self.error or self.out).splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"it exited with {self.code} and said nothing"


def run(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float = TOOL_S) -> Said:
    """Runs a tool of the service manager; one that is missing or hangs is an answer too."""
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603 - argv is ours
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        return Said(127, "", f"{argv[0]} is not installed")
    except OSError as error:
        return Said(126, "", f"{argv[0]} cannot be started: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Said(124, "", f"{' '.join(argv)} did not answer within {timeout_s:g} s")
    out, error = (data.decode("utf-8", "replace") for data in (done.stdout, done.stderr))
    return Said(done.returncode, out, error)


def read(file: Path) -> str | None:
    """The file's content, or None where there is none.

    Raises:
        ForeignFileError: it is not ours, so that we must not touch it.
    """
    if file.is_symlink():
        raise ForeignFileError(f"{file} is a link to {file.readlink()}")
    try:
        text = file.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ForeignFileError(f"{file}: {error.strerror}") from error
    if not render.is_ours(text):
        raise ForeignFileError(f'{file} does not begin with "{render.MARK}"')
    return text


def write(file: Path, text: str) -> None:
    """Replaces the file in one step; 0600.

    Raises:
        ServiceError: that did not work.
    """
    draft = file.with_name(f".{file.name}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(text, "utf-8")
        draft.replace(file)
    except OSError as error:
        raise ServiceError(f"{file} cannot be written: {error.strerror}") from error
