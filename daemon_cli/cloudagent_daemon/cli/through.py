"""One command's work through an SSH tunnel, where there is one."""

import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from cloudagent_daemon import ssh
from cloudagent_daemon.cli.options import UNREACHABLE, CommandError
from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.link.transport import UnreachableError
from cloudagent_daemon.link.way import TUNNEL
from cloudagent_daemon.tunnel import open_tunnel

T = TypeVar("T")


async def through(
    tunnel: str | None,
    server_url: str,
    environ: Mapping[str, str],
    work: Callable[[Path | None], Awaitable[T]],
) -> T:
    """What `work` returns, given the tunnel's near end; None where there is no tunnel.

    Raises:
        CommandError: the tunnel does not open; or what `work` raises.
        ConfigError: what `work` raises.
    """
    if tunnel is None:
        return await work(None)
    target = ssh.parse(tunnel)
    # What a daemon would log is told here as the command's own error, once.
    logging.getLogger("cloudagent_daemon").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="cloudagent-") as folder:
        near_end = Path(folder) / TUNNEL
        # Kept and raised outside: the tunnel's task group would wrap it in a group of its own.
        failure: Exception
        async with open_tunnel(target, server_url, near_end, environ) as opened:
            try:
                await opened.ready()
                return await work(near_end)
            except (CommandError, ConfigError) as error:
                failure = error
            except UnreachableError as error:
                why = f"{error}"
                failure = CommandError(
                    f"{server_url} cannot be reached through {target.shown}",
                    why,
                    f"{ssh.by_hand(target)}   (until it works without a question)",
                    UNREACHABLE,
                )
    raise failure
