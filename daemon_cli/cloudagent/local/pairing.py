"""How this computer becomes a host machine of its own server, without a key being copied by hand."""

import json
import platform
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from cloudagent import calls, config
from cloudagent.async_client import AsyncCloudAgent
from cloudagent.async_transport import AsyncTransport
from cloudagent.errors import AuthenticationError, ConfigurationError, NotFoundError, OccupiedError
from cloudagent.local.home import Home, State
from cloudagent.local.processes import run_once, script
from cloudagent.local.report import Report
from cloudagent_protocol.resources import HostMachine, HostMachineCreate
from cloudagent_protocol.version import DISTRIBUTION

_MANAGED_BY: Final = "cloudagent up"
#: Profiles of the daemon that `up` may take, in this order.
_PROFILES: Final = ("default", "local")


@dataclass(frozen=True)
class Grant:
    """What `cloudagent-backend grant` gives to whoever may open its database."""

    access_token: str = field(repr=False)
    #: Opens the page once, without a password.
    link_key: str = field(repr=False)


@dataclass(frozen=True)
class Paired:
    host: HostMachine
    profile: str
    #: The server that the default profile belongs to, if that is another one.
    default_server: str | None


async def grant(home: Home, email: str) -> Grant:
    argv = [script("cloudagent-backend"), "grant", "--database-url", home.database_url]
    answer = json.loads(await run_once([*argv, "--email", email, "--json"]))
    return Grant(answer["access_token"], answer["link_key"])


async def pair(client: AsyncCloudAgent, home: Home, state: State) -> Paired:
    """Log the daemon in, on the first profile that is free or ours already.

    Raises:
        OccupiedError: every profile that we may take belongs to another server.
    """
    default_server: str | None = None
    for profile in _PROFILES:
        login = _read(home.daemon_config(profile))
        host = await _known_host(client, login.get("host_id") or "")
        # At an address that is ours, a host that we do not know has been removed.
        ours = login.get("server_url") in {client.settings.url, state.url}
        if login and host is None and not ours:
            default_server = default_server or login.get("server_url") or "another server"
            continue
        host = await _log_in(client, profile, login, host, state)
        return Paired(host, profile, default_server)
    raise OccupiedError(
        "no profile of the daemon is free",
        why=f"{' and '.join(_PROFILES)} belong to other servers, such as {default_server}",
        next_step=f"rm {home.daemon_config('local')}",
    )


async def _log_in(
    client: AsyncCloudAgent,
    profile: str,
    login: dict[str, Any],
    host: HostMachine | None,
    state: State,
) -> HostMachine:
    """Make sure that a profile has a key that works with this server."""
    url, key = client.settings.url, str(login.get("machine_key"))
    if host is None or not await _key_works(client, key):
        host, key = await _new_key(client, host or await _known_host(client, state.host_id))
    elif login.get("server_url") == url:
        return host
    # Over a pipe: the key is never in an argv, nor in a file on the way.
    argv = [script("cloudagent-daemon"), "login", "--profile", profile, "--server", url]
    await run_once([*argv, "--api-key-file", "-"], stdin=f"{key}\n".encode())
    return host


async def _new_key(client: AsyncCloudAgent, host: HostMachine | None) -> tuple[HostMachine, str]:
    """A key for a host that is known, or for a new one."""
    if host is None:
        made = await client.hosts.create(_this_computer())
    else:
        made = await client.hosts.rotate_key(host.id)
    return made, made.raw_key


async def _key_works(client: AsyncCloudAgent, key: str) -> bool:
    async with AsyncTransport(replace(client.settings, token=key)) as machine:
        try:
            await machine.run(calls.get_own_host())
        except AuthenticationError:
            return False
    return True


def _this_computer() -> HostMachineCreate:
    hostname = socket.gethostname()
    return HostMachineCreate(
        name=hostname.split(".")[0][:100] or "this computer",
        hostname=hostname[:255],
        os=platform.system().lower(),
        daemon_version=DISTRIBUTION,
    )


async def _known_host(client: AsyncCloudAgent, host_id: str) -> HostMachine | None:
    try:
        return await client.hosts.get(host_id) if host_id else None
    except NotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    """What a profile's config holds; empty if there is none.

    Raises:
        ConfigurationError: it cannot be read; overwriting it might lose somebody's key.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read", why=str(error), next_step="cloudagent-daemon status"
        ) from error
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}


def save_login(url: str, granted: Grant, report: Report) -> None:
    """Let `cloudagent send` and scripts find this server, unless they are used with another."""
    try:
        saved = config.load_client_file()
    except ConfigurationError:
        saved = {}
    if saved and saved.get("managed_by") != _MANAGED_BY:
        report.note(
            "client",
            f"{config.client_file()} belongs to {saved.get('url')} and stays so",
            f"for this server set CLOUDAGENT_URL={url} and a token of its own",
        )
        return
    login = {"url": url, "token": granted.access_token, "managed_by": _MANAGED_BY}
    config.write_private(config.client_file(), login)
