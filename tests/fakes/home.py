"""A home of a test's own, and the daemon's commands in it, as a person starts them."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

from fakes.backend import KEY, ScriptedBackend

PROGRAM = str(Path(sys.executable).parent / "cloudagent-daemon")


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
        with anyio.fail_after(30):
            done = await anyio.run_process(
                [PROGRAM, *words], input=stdin.encode(), env={**self.env, **env}, check=False
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    async def status(self, *words: str) -> dict[str, Any]:
        _, out, _ = await self.command("status", "--json", *words)
        return json.loads(out)

    async def log_in(self, backend: ScriptedBackend, *words: str) -> None:
        code, _, error = await self.command(
            "login", "--server", backend.url, "--api-key-file", "-", *words, stdin=KEY
        )
        assert code == 0, error

    @asynccontextmanager
    async def started(self, *words: str, **env: str) -> AsyncGenerator["Running"]:
        async with self.running("start", *words, **env) as running:
            yield running

    @asynccontextmanager
    async def running(self, *words: str, **env: str) -> AsyncGenerator["Running"]:
        process = await anyio.open_process(
            [PROGRAM, *words],
            env={**self.env, **env},
            cwd=self.folder,
            stderr=subprocess.STDOUT,
        )
        running = Running(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.read)
            try:
                yield running
            finally:
                with anyio.CancelScope(shield=True):
                    if process.returncode is None:
                        process.kill()
                    await process.wait()
                    tasks.cancel_scope.cancel()
                    await process.aclose()


class Running:
    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.output = ""
        self._news = anyio.Event()

    async def read(self) -> None:
        assert self.process.stdout
        async for text in TextReceiveStream(self.process.stdout):
            self.output += text
            self._news.set()
            self._news = anyio.Event()

    async def until(self, text: str) -> None:
        with anyio.fail_after(20):
            while text not in self.output:
                await self._news.wait()

    async def ended(self) -> int:
        with anyio.fail_after(30):
            return await self.process.wait()
