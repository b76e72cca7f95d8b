"""`mcp-bridge`, hidden: what a person can start by hand to try what an agent's MCP server does."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from cloudagent_daemon.cli.options import PROGRAM, USAGE, complain

NAME: Final = "mcp-bridge"


def run(words: Sequence[str]) -> NoReturn:
    """Becomes the shim; coding agents are given its path and skip this start."""
    if len(words) != 2:
        complain(
            "mcp-bridge takes a socket and a token file",
            f"got {len(words)} words",
            f"{PROGRAM} {NAME} SOCKET TOKEN_FILE",
        )
        raise SystemExit(USAGE)
    shim = Path(__file__).parent.parent / "bridge" / "shim.py"
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(shim), *words])  # noqa: S606 - ourselves, no shell
