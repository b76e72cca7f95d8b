"""Asks a program for its version, or for whatever else it tells in a moment."""

import os
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from cloudagent_daemon.drivers.lines import LineSplitter, parse_object
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import CHUNK_BYTES, Child, SpawnError, spawn

Answer = TypeVar("Answer")

PROBE_S: Final = 10.0
#: Where installers put programs, for daemons that a service manager starts with a bare PATH.
_FOLDERS: Final = (
    "~/.local/bin", "~/.npm-global/bin", "~/.bun/bin", "/usr/local/bin", "/opt/homebrew/bin"
)  # fmt: skip
_VERSION: Final = re.compile(r"\d+\.\d+[0-9A-Za-z.+-]*")
_USUAL: Final = ("HOME", "PATH", "LANG", "TMPDIR", "USER", "LOGNAME", "XDG_*")


def find_program(name: str, environment: Mapping[str, str], *more: str) -> str | None:
    """The absolute path of a program, on PATH, in the folders `more` or where installers put it."""
    home = environment.get("HOME", "~")
    folders = [folder.replace("~", home, 1) for folder in (*more, *_FOLDERS)]
    found = shutil.which(name, path=":".join([environment.get("PATH", ""), *folders]))
    return str(Path(found).absolute()) if found else None


async def version_of(
    path: str,
    package: str,
    environment: Mapping[str, str],
    *,
    inherits: Sequence[str] = (),
    mask: Mask = NO_MASK,
) -> tuple[str | None, str | None]:
    """A program's version, and why it cannot be used (None if it can, as far as is seen).

    Read where npm put it, if it is npm's `package`: to be asked costs some of them seconds of CPU.
    """
    if version := await anyio.to_thread.run_sync(_packaged, path, package):
        return version, None
    output, problem = await probe([path, "--version"], environment, inherits=inherits, mask=mask)
    numbers = _VERSION.search(output)
    return numbers[0][:100] if numbers else None, problem


def _packaged(path: str, package: str) -> str | None:
    for folder in list(Path(path).resolve().parents)[:4]:
        try:
            said = parse_object((folder / "package.json").read_bytes()) or {}
        except OSError:
            continue
        if said.get("name") == package and isinstance(said.get("version"), str):
            return str(said["version"])[:100]
    return None


async def probe(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    inherits: Sequence[str] = (),
    timeout_s: float = PROBE_S,
    mask: Mask = NO_MASK,
) -> tuple[str, str | None]:
    """What a short command prints, and why it cannot be used (None if it can).

    It is held to the time whatever it does, of its output only the beginning is kept, and nothing
    that it starts is left alive. `inherits` are names that it gets besides the usual ones.
    """
    try:
        with anyio.fail_after(timeout_s):
            async with _started(argv, environment, inherits, mask) as child:
                code, printed = await _finished(child)
    except TimeoutError:
        return "", f"{argv[0]} did not answer within {timeout_s:g} s"
    except SpawnError as error:
        return "", f"{argv[0]} cannot be started: {error}"
    output = printed.decode("utf-8", "replace").strip()
    if code != 0:
        return output, f"{' '.join(argv)} exited with {code}"
    return output, None


async def ask(
    argv: Sequence[str],
    environment: Mapping[str, str],
    words: bytes,
    understand: Callable[[dict[str, Any]], Answer | None],
    *,
    inherits: Sequence[str] = (),
    timeout_s: float = PROBE_S,
    mask: Mask = NO_MASK,
) -> Answer | None:
    """What a program that talks in lines of JSON answers to `words`; None if it says nothing of use in time.

    Held to the time and ended as by `probe`. `understand` gets each object that it prints, until it
    makes something of one.
    """
    answer: Answer | None = None
    with anyio.move_on_after(timeout_s), suppress(SpawnError):
        async with _started(argv, environment, inherits, mask) as child:
            async with anyio.create_task_group() as pumps:
                pumps.start_soon(child.write, words)
                pumps.start_soon(_keep, child.read_stderr, bytearray())
                answer = await _understood(child, understand)
                pumps.cancel_scope.cancel()
            await child.end(at_once=True)
    return answer


async def _understood(
    child: Child, understand: Callable[[dict[str, Any]], Answer | None]
) -> Answer | None:
    lines = LineSplitter()
    while data := await child.read_stdout():
        for line in lines.feed(data):
            if (said := parse_object(line)) and (answer := understand(said)) is not None:
                return answer
    return None


def _started(
    argv: Sequence[str], environment: Mapping[str, str], inherits: Sequence[str], mask: Mask
) -> AbstractAsyncContextManager[Child]:
    patterns = (*_USUAL, *inherits)
    env = {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    env["PATH"] = own_folder_first(argv[0], environment.get("PATH", os.defpath))
    return spawn(argv, env=env, cwd=Path("/"), launch_id=uuid.uuid4().hex, mask=mask)


def own_folder_first(program: str, path: str) -> str:
    """`path` for a child that is `program`, an absolute path: what lies beside it is found first.

    Many are scripts that begin with `#!/usr/bin/env node`, with their node in the same folder, and
    a service manager's PATH knows that folder no more than it knows the program.
    """
    folder = str(Path(program).parent)
    rest = [entry for entry in path.split(os.pathsep) if entry and entry != folder]
    return os.pathsep.join([folder, *rest]) if Path(program).is_absolute() else path


async def _finished(child: Child) -> tuple[int, bytes]:
    output = bytearray()
    async with anyio.create_task_group() as pumps:
        pumps.start_soon(child.feed, b"")
        pumps.start_soon(_keep, child.read_stdout, output)
        pumps.start_soon(_keep, child.read_stderr, bytearray())
        await child.wait()
        # What it left behind may hold the pipes open.
        await child.end(at_once=True)
    assert child.exit_code is not None, "it was waited for"
    return child.exit_code, bytes(output)


async def _keep(read: Callable[[], Awaitable[bytes]], kept: bytearray) -> None:
    while data := await read():
        kept += data[: CHUNK_BYTES - len(kept)]
