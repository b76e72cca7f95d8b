"""Which command a service shall start: one that is still there tomorrow."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NAME: Final = "cloudagent-daemon"
#: Parts of a path below which `uvx` and `pipx run` keep what they may throw away at any time.
_CACHES: Final = (("archive-v0",), (".cache", "pipx"), ("pipx", ".cache"))
_INSTALL_S: Final = 300.0


class ProgramError(Exception):
    """There is no command that could be started; `str()` says why."""


def current() -> Path:
    """The command that is running, as a path that can be started.

    Raises:
        ProgramError: this Python has no such command.
    """
    for candidate in (Path(sys.prefix) / "bin" / NAME, Path(sys.argv[0]).absolute()):
        if candidate.name == NAME and candidate.is_file():
            return candidate
    raise ProgramError(f"{sys.prefix} has no command {NAME}")


def may_vanish(prefix: Path) -> bool:
    """Whether a Python environment is in a cache, from which its files may go at any time."""
    parts = prefix.parts
    return any(
        parts[at : at + len(cache)] == cache for cache in _CACHES for at in range(len(parts))
    )


def install_command() -> list[str]:
    """What installs this version where it stays."""
    from cloudagent_protocol.version import DISTRIBUTION

    return ["uv", "tool", "install", f"cloudagent-daemon=={DISTRIBUTION}"]


def install(environ: Mapping[str, str]) -> Path:
    """Installs this version where it stays, with `uv tool install`; gives its command.

    Raises:
        ProgramError: that did not work.
    """
    import shutil
    import subprocess

    words = install_command()
    uv = shutil.which("uv", path=environ.get("PATH"))
    if uv is None:
        raise ProgramError("there is no uv on PATH")
    try:
        subprocess.run([uv, *words[1:]], check=True, timeout=_INSTALL_S)  # noqa: S603 - the person asked for it
        shown = subprocess.run(  # noqa: S603
            [uv, "tool", "dir"], check=True, timeout=_INSTALL_S, capture_output=True, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ProgramError(f"{' '.join(words)}: {error}") from error
    program = Path(shown.stdout.strip()) / NAME / "bin" / NAME
    if not program.is_file():
        raise ProgramError(f"{' '.join(words)} left no {program}")
    return program
