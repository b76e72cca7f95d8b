"""`start --background`: a daemon without a terminal, for those who have no service manager."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudagent_daemon import lock
from cloudagent_daemon.cli.options import FAILED, USAGE, CommandError, Here, safe
from cloudagent_daemon.cli.status import headline, look
from cloudagent_daemon.paths import DEFAULT
from cloudagent_daemon.service import program

#: How long it may take until the daemon has said how it stands, connected or not.
READY_S: Final = 20.0
_POLL_S: Final = 0.05
_LAST_LINES: Final = 10


def check(arguments: argparse.Namespace, here: Here) -> None:
    """Refuses what does not go together.

    Raises:
        CommandError: see there.
    """
    if arguments.once or arguments.server_url or arguments.api_key or arguments.api_key_file:
        raise CommandError(
            "Only a profile that is logged in runs in the background",
            "--background beside --once, --server-url or a key",
            here.command("login --server URL"),
            USAGE,
        )


def run(arguments: argparse.Namespace, here: Here) -> int:
    """Starts the daemon, and returns when it serves. The caller knows that none runs."""
    here.paths.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = here.paths.logs_dir / "background.log"
    process = _spawn(_argv(arguments, here), output, here)
    _wait(process, output, here)
    report = look(here)
    print(safe(headline(here, report, time.time())))
    print(f"  process   pid {process.pid}\n  log       {output}")
    print(
        f"  next      {here.command('logs -f')}   ({here.command('stop')} ends it)", file=sys.stderr
    )
    return 0


def _argv(arguments: argparse.Namespace, here: Here) -> list[str]:
    try:
        words = [str(program.current()), "start"]
    except program.ProgramError as error:
        again = here.command("start")
        raise CommandError("The daemon cannot be started anew", str(error), again) from error
    if here.profile != DEFAULT:
        words += ["--profile", here.profile]
    if arguments.insecure:
        words.append("--insecure")
    if arguments.i_understand:
        words.append("--i-understand")
    if arguments.ssh_tunnel is not None:
        words += ["--ssh-tunnel", arguments.ssh_tunnel]
    if arguments.ca_file:
        words += ["--ca-file", str(Path(arguments.ca_file).expanduser().absolute())]
    return [*words, "--debug"] if here.debug else words


def _spawn(argv: Sequence[str], output: Path, here: Here) -> "subprocess.Popen[bytes]":
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        # A session of its own: neither a closed terminal nor its Ctrl-C reaches it.
        return subprocess.Popen(  # noqa: S603 - ourselves
            argv,
            env=here.environ,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
            cwd=here.environ.get("HOME") or "/",
        )
    finally:
        os.close(handle)


def _wait(process: "subprocess.Popen[bytes]", output: Path, here: Here) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            raise CommandError(
                "The daemon ended at once",
                f"exit {code}; its last lines: {_last(output)}",
                here.command("start") + "   (in the foreground)",
                code if 0 < code < 256 else FAILED,
            )
        if lock.holder(here.paths.lock, here.paths.pid) == process.pid:
            report = look(here)
            if report["state"] == "connected" or report.get("attempt"):
                return  # it says itself how it stands
        time.sleep(_POLL_S)
    raise CommandError(
        f"The daemon is not ready after {READY_S:.0f} s",
        f"pid {process.pid} goes on; its last lines: {_last(output)}",
        here.command("logs -f"),
    )


def _last(output: Path) -> str:
    text = output.read_text("utf-8", errors="replace")
    return " | ".join(text.splitlines()[-_LAST_LINES:]) or "none"
