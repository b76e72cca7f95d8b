"""What a person asks of a machine's daemon itself: nothing is stored, it is answered now or not at all."""

import secrets
from typing import Final

import anyio

from cloudagent_backend.delivery.errors import Refused
from cloudagent_backend.delivery.hub import Hub
from cloudagent_backend.store.hosts import HostRow
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.frames import Capability, Command, CommandOp

#: How long the daemon may take: it starts each agent program and asks it who it is.
ANSWER_S: Final = 25.0
#: Commands of one machine that may wait for their result.
MAX_ASKED: Final = 4
_ID_BITS: Final = 53


async def ask(
    hub: Hub, host: HostRow, op: CommandOp, actor: str, *, answer_s: float = ANSWER_S
) -> None:
    """Returns when the daemon has done it, or says that it begins.

    Raises:
        Refused: the machine is not here, its daemon does not know this, will not, or says nothing.
    """
    session = hub.session(host.id)
    if session is None:
        raise Refused(
            ErrorCode.CONFLICT,
            f"{host.name} is offline, so its daemon cannot be asked.",
            next="Start it on that machine: cloudagent-daemon start",
        )
    if Capability.COMMANDS not in session.capabilities:
        raise Refused(
            ErrorCode.CONFLICT,
            f"The daemon on {host.name} ({host.daemon_version}) is too old to be asked for a {op}.",
            next="Upgrade it on that machine: uv tool upgrade cloudagent-daemon",
        )
    if len(session.asked) >= MAX_ASKED:
        raise Refused(
            ErrorCode.RATE_LIMITED,
            f"{host.name} has not answered what was asked of it before.",
            next="Wait for that.",
        )
    command = Command(id=secrets.randbits(_ID_BITS), op=op, actor=actor)
    asked = hub.ask(session, command)
    try:
        with anyio.move_on_after(answer_s):
            await asked.over.wait()
    finally:
        del session.asked[command.id]
    if asked.result is None:
        raise Refused(
            ErrorCode.UNAVAILABLE,
            f"{host.name} did not answer; whether it did the {op} is not known.",
            next="Look whether it is connected, and try again.",
        )
    if asked.result.error is not None:
        raise Refused(ErrorCode.CONFLICT, f"No {op} of {host.name}: {asked.result.error}.")
