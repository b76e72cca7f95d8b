"""The daemon's check of itself, as `doctor` asks for it: everything tried once, from where it lives."""

import os
import sys
from typing import Any

from cloudagent_daemon import selfcheck
from cloudagent_daemon.about import About
from cloudagent_daemon.bridge.server import Bridge
from cloudagent_daemon.config import Settings
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.mask import Masks
from cloudagent_daemon.programs import Programs
from cloudagent_protocol.version import DISTRIBUTION


class Checking:
    """Tries what `selfcheck` can try, with the parts of this daemon."""

    def __init__(
        self,
        settings: Settings,
        client: LinkClient,
        programs: Programs,
        bridge: Bridge,
        masks: Masks,
        about: About,
    ) -> None:
        self._settings = settings
        self._client = client
        self._programs = programs
        self._bridge = bridge
        self._masks = masks
        self._about = about

    async def check(self) -> dict[str, Any]:
        """The backend learns what was found."""
        environment = self._settings.environment
        await self._programs.look()
        return {
            "schema": "cloudagent.check/1",
            "profile": self._settings.profile,
            "daemon_version": DISTRIBUTION,
            "program": sys.argv[0],
            "python": sys.executable,
            "pid": os.getpid(),
            "path": environment.get("PATH", "").split(os.pathsep),
            "runtimes": [runtime.model_dump() for runtime in self._about.runtimes],
            "tools": await selfcheck.tools_start(
                self._bridge, self._masks, self._settings.runtime_dir, environment
            ),
            "backend": await self._round_trip(),
        }

    async def _round_trip(self) -> dict[str, Any]:
        async def say() -> None:
            await self._programs.tell()
            await self._client.flush()

        if self._client.connection is None:
            return selfcheck.failed(self._client.standing.detail or "not connected yet")
        return await selfcheck.round_trip(say)
