"""A home of a test's own, and the daemon's commands in it, as a person starts them.

They are forks of a process that has imported them (e2e/forks.py): a start costs a fifth. What only a
new interpreter shows, its words in the list of processes for one, asks for `anew=True`.
"""

import codecs
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

from e2e.forks import Forked, forked, forked_run
from fakes.backend import KEY, ScriptedBackend

PROGRAM = str(Path(sys.executable).parent / "cloudagent-daemon")
_END_S: Final = 30.0


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".cloudagent" / "daemon"
        self.env = {
            "HOME": str(folder),
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "default",
        }

    async def command(self, *words: str, stdin: str = "", **env: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        argv = [PROGRAM, *words]
        done = await run_sync(
            lambda: forked_run(
                argv, {**self.env, **env}, Path.cwd(), stdin=stdin, timeout_s=_END_S
            ),
            abandon_on_cancel=True,
        )
        return done.returncode, done.stdout, done.stderr

    async def status(self, *words: str) -> dict[str, Any]:
        _, out, _ = await self.command("status", "--json", *words)
        return json.loads(out)

    async def log_in(self, backend: ScriptedBackend, *words: str) -> None:
        code, _, error = await self.command(
            "login", "--server", backend.url, "--api-key-file", "-", *words, stdin=KEY
        )
        assert code == 0, error

    @asynccontextmanager
    async def started(
        self, *words: str, anew: bool = False, **env: str
    ) -> AsyncGenerator["Running"]:
        async with self.running("start", *words, anew=anew, **env) as running:
            yield running

    @asynccontextmanager
    async def running(
        self, *words: str, anew: bool = False, **env: str
    ) -> AsyncGenerator["Running"]:
        start = started_anew if anew else forked
        process = start([PROGRAM, *words], {**self.env, **env}, self.folder)
        running = Running(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.read)
            try:
                yield running
            finally:
                with anyio.CancelScope(shield=True):
                    process.kill()
                    await running.ended()
                    tasks.cancel_scope.cancel()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def started_anew(argv: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """`forked`, by an interpreter of its own."""
    return subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


class Running:
    def __init__(self, process: Forked | subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        self._news = anyio.Event()

    async def read(self) -> None:
        assert self.process.stdout
        stream = self.process.stdout.fileno()
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            await anyio.wait_readable(stream)
            if not (data := os.read(stream, 65_536)):
                return
            self.output += decoder.decode(data)
            self._news.set()
            self._news = anyio.Event()

    async def until(self, text: str) -> None:
        with anyio.fail_after(20):
            while text not in self.output:
                await self._news.wait()

    async def ended(self) -> int:
        return await run_sync(self.process.wait, _END_S, abandon_on_cancel=True)
