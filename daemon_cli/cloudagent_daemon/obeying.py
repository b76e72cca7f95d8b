"""What people ask of this daemon at the page, and what they look at there."""

import logging

import anyio

from cloudagent_daemon.config import Settings
from cloudagent_daemon.ending import FLUSH_S, Ending, why_no_restart
from cloudagent_daemon.installation import Installation
from cloudagent_daemon.link.client import LinkClient
from cloudagent_daemon.programs import Programs
from cloudagent_daemon.runs.ahead import Ahead
from cloudagent_daemon.runs.queue import RunQueue
from cloudagent_protocol.frames import Command, CommandOp, CommandResult
from cloudagent_protocol.version import DISTRIBUTION

logger = logging.getLogger(__name__)


class Obeying:
    """Does it; each command is answered."""

    def __init__(
        self,
        settings: Settings,
        client: LinkClient,
        queue: RunQueue,
        programs: Programs,
        installation: Installation,
    ) -> None:
        self._settings = settings
        self._client = client
        self._queue = queue
        self._programs = programs
        self._installation = installation

    async def run(self, ending: Ending) -> None:
        """One command after the other, until cancelled."""
        while True:
            command = await self._client.commands.take()
            said = {"action": "command", "op": command.op[:50], "actor": command.actor[:100]}
            logger.info("%s asks for %s", said["actor"], said["op"], extra=said)
            match command.op:
                case CommandOp.RESCAN:
                    await self._rescan(command)
                case CommandOp.RESTART:
                    await self._restart(command, ending)
                case _:
                    error = f"this daemon ({DISTRIBUTION}) knows no {said['op']!r}"
                    await self._client.reply(CommandResult(id=command.id, error=error))

    async def expect(self, ahead: Ahead) -> None:
        """Where a person looks, the agent's process may be started before there is a message."""
        while True:
            expected = await self._client.commands.expected()
            if self._queue.would_begin(expected.agent, expected.conversation_id):
                await ahead.start(expected)

    async def _rescan(self, command: Command) -> None:
        if self._settings.service:
            # What was installed since may be on another PATH.
            await self._programs.ask_login_shell()
        await self._programs.look()
        self._queue.lift()  # a person has had a look: who was left alone is tried at once
        await self._queue.keep_limits()
        await self._programs.tell()
        with anyio.move_on_after(FLUSH_S):
            await self._client.flush()  # so that who asked sees it
        await self._client.reply(CommandResult(id=command.id))
        self._programs.want_models()

    async def _restart(self, command: Command, ending: Ending) -> None:
        unusable = self._installation.detail if self._installation.holds else ""
        why_not = why_no_restart(ending, one_shot=self._settings.one_shot, unusable=unusable)
        await self._client.reply(CommandResult(id=command.id, error=why_not))
        if why_not is None:
            ending.restart(f"{command.actor} asked for it", self._settings.limits.stop_timeout_s)
