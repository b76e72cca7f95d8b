"""Asks a program for its version, or for whatever else it tells in a moment."""

import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import anyio

from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_daemon.process import CHUNK_BYTES, Child, SpawnError, spawn

PROBE_S: Final = 10.0
_USUAL: Final = ("HOME", "PATH", "LANG", "TMPDIR", "USER", "LOGNAME", "XDG_*")


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
    patterns = (*_USUAL, *inherits)
    env = {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    env["PATH"] = own_folder_first(argv[0], environment.get("PATH", os.defpath))
    launch_id = uuid.uuid4().hex
    try:
        with anyio.fail_after(timeout_s):
            async with spawn(argv, env=env, cwd=Path("/"), launch_id=launch_id, mask=mask) as child:
                code, printed = await _finished(child)
    except TimeoutError:
        return "", f"{argv[0]} did not answer within {timeout_s:g} s"
    except SpawnError as error:
        return "", f"{argv[0]} cannot be started: {error}"
    output = printed.decode("utf-8", "replace").strip()
    if code != 0:
        return output, f"{' '.join(argv)} exited with {code}"
    return output, None


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
