"""Where codex is: npm's `codex` is a node script, behind which lies the program itself.

A signal to the script does not reach the program, which then holds its session's lock
(seen with 0.169.0): hence the program is started directly.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloudagent_daemon.drivers.probe import find_program

PROGRAM: Final = "codex"
PACKAGE: Final = "@openai/codex"
_MACHINES: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def find_codex(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """What `codex` is, and the program to start: the same, if it is no script of npm's. Blocks."""
    found = find_program(PROGRAM, environment)
    return (found, native(found)) if found else None


def native(path: str) -> str:
    """The program behind npm's script; `path` itself where there is none."""
    script = Path(path).resolve()
    if script.suffix != ".js":
        return path
    package = script.parent.parent
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    name = f"codex-{sys.platform}-{machine}"
    for folder in (package / "node_modules" / "@openai" / name, package.parent / name):
        for program in sorted(folder.glob("vendor/*/bin/codex")):
            if os.access(program, os.X_OK):
                return str(program)
    return path
