"""The PATH of the person's login shell: what a service manager does not know.

The shell is asked as a terminal would start it, for nvm, mise, brew and the like live in the files
that only such a shell reads. Those files may print, wait or fail; the answer stands between marks.
"""

import os
import pwd
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import anyio

from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import Child, SpawnError, spawn

LIMIT_S: Final = 5.0
#: What is always on it, at its end.
STANDARD: Final = ("/usr/local/bin", "/usr/bin", "/bin")
_MARK: Final = b"__CLOUDAGENT_PATH__"
# By sh, because the shells differ in how they spell `$PATH`; NUL, because no file can print one by
# showing the command itself.
_COMMAND: Final = (
    '/bin/sh -c \'printf "\\000__CLOUDAGENT_PATH__%s__CLOUDAGENT_PATH__\\000" "$PATH"\''
)
_KEPT: Final = ("HOME", "USER", "LOGNAME", "LANG", "LC_*", "TMPDIR", "XDG_RUNTIME_DIR")
_MAX_BYTES: Final = 1_048_576
_MAX_PATH_CHARS: Final = 65_536


@dataclass(frozen=True)
class LoginPath:
    """What the shell told; `problem` says why it told nothing."""

    shell: str
    entries: tuple[str, ...] = ()
    problem: str = ""


def shell_of(environ: Mapping[str, str]) -> str:
    """The login shell of the user that runs this, as the system has it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    except KeyError:
        return environ.get("SHELL", "/bin/sh")


async def ask(
    shell: str,
    environ: Mapping[str, str],
    *,
    mask: Mask = NO_MASK,
    limit_s: float = LIMIT_S,
) -> LoginPath:
    """The shell's PATH, within `limit_s`; whatever its files start is ended with it.

    Agents can write those files, so the daemon puts the agents' `mask` on the shell too.
    """
    output = bytearray()
    try:
        with anyio.fail_after(limit_s):
            # Interactive, as in a terminal; files that then start something else (`exec tmux`)
            # leave the second way.
            for flags in ("-lic", "-lc"):
                output.clear()
                await _run([shell, flags, _COMMAND], environ, mask, output)
                if (found := parse(bytes(output))) is not None:
                    return LoginPath(shell, found)
    except TimeoutError:
        return LoginPath(shell, problem=f"{shell} took more than {limit_s:g} s to start")
    except SpawnError as error:
        return LoginPath(shell, problem=str(error))
    return LoginPath(shell, problem=f"{shell} did not tell its PATH")


def parse(output: bytes) -> tuple[str, ...] | None:
    """The usable entries of the last PATH that stands between marks; None if there is none."""
    _, begin, rest = output.rpartition(b"\0" + _MARK)
    text, end, _ = rest.partition(_MARK + b"\0")
    return usable(os.fsdecode(text).split(os.pathsep)) if begin and end else None


def usable(entries: Iterable[str]) -> tuple[str, ...]:
    """Absolute ones, each once, and none that cannot be written down."""
    kept: dict[str, None] = {}
    size = 0
    for entry in entries:
        if entry.startswith("/") and entry.isprintable() and entry not in kept:
            size += len(entry) + 1
            if size > _MAX_PATH_CHARS:
                break
            kept[entry] = None
    return tuple(kept)


def joined(*paths: Iterable[str]) -> str:
    """One PATH out of several, the first first, with the standard folders at its end."""
    every = [entry for path in paths for entry in path]
    return os.pathsep.join(usable([*every, *STANDARD]))


async def _run(argv: list[str], environ: Mapping[str, str], mask: Mask, output: bytearray) -> None:
    env = _environment(environ, argv[0])
    launch_id = uuid.uuid4().hex
    async with spawn(argv, env=env, cwd=Path("/"), launch_id=launch_id, mask=mask) as child:
        async with anyio.create_task_group() as pumps:
            pumps.start_soon(child.feed, b"")
            pumps.start_soon(_drop, child)
            # Not until its end: what the files leave in the background holds the pipe open.
            while parse(bytes(output)) is None and (data := await child.read_stdout()):
                output += data
                if len(output) > _MAX_BYTES:
                    break
            pumps.cancel_scope.cancel()
        await child.end(at_once=True)


async def _drop(child: Child) -> None:
    while await child.read_stderr():
        pass


def _environment(environ: Mapping[str, str], shell: str) -> dict[str, str]:
    """What a terminal would begin with; not ours, which may have been changed by hand."""
    kept = {
        name: value
        for name, value in environ.items()
        if any(fnmatchcase(name, pattern) for pattern in _KEPT)
    }
    return {**kept, "PATH": os.pathsep.join(STANDARD), "SHELL": shell, "TERM": "dumb"}
