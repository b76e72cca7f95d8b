"""Asks a program for its version."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from cloudagent_daemon.process import CHUNK_BYTES

PROBE_S: Final = 10.0


async def probe(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str | None]:
    """What a short command prints, and why it cannot be used (None if it can)."""
    names = ("HOME", "PATH", "LANG", "TMPDIR", "USER")
    env = {name: environment[name] for name in names if name in environment}
    try:
        with anyio.fail_after(PROBE_S):
            done = await anyio.run_process(
                list(argv), stdin=subprocess.DEVNULL, check=False, env=env, start_new_session=True
            )
    except TimeoutError:
        return "", f"{argv[0]} did not answer within {PROBE_S:g} s"
    except OSError as error:
        return "", f"{argv[0]} cannot be started: {error.strerror}"
    output = done.stdout[:CHUNK_BYTES].decode("utf-8", "replace").strip()
    if done.returncode != 0:
        return output, f"{' '.join(argv)} exited with {done.returncode}"
    return output, None
