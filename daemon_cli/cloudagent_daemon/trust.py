"""Which servers a machine key may be sent to, and how: a rule without network (security.md AUTH-11).

The key travels only over TLS with a certificate that was checked, or to this machine itself.
Anything less is asked for at each start and is never kept: `--insecure` in a private network, and
`--i-understand` beside it where the internet lies between.
"""

import ipaddress
from enum import IntEnum
from typing import Final
from urllib.parse import urlsplit

from cloudagent_daemon.config import ConfigError

#: Names that public DNS does not have: RFC 6762, RFC 8375, RFC 6761, and ICANN's `.internal`.
_PRIVATE_NAMES: Final = (".local", ".home.arpa", ".internal", ".lan", ".test")
#: Carriers and overlay networks (RFC 6598); `ipaddress` does not count it as private.
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")


class Reach(IntEnum):
    """Who could listen on the way."""

    LOOPBACK = 0
    PRIVATE = 1
    PUBLIC = 2


def reach(host: str) -> Reach:
    """How far away a name or an address is, as far as it tells by itself."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return Reach.LOOPBACK
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        single = "." not in name
        return Reach.PRIVATE if single or name.endswith(_PRIVATE_NAMES) else Reach.PUBLIC
    if address.is_loopback:
        return Reach.LOOPBACK
    shared = address.version == 4 and address in _SHARED
    return Reach.PRIVATE if address.is_private or address.is_link_local or shared else Reach.PUBLIC


def weaknesses(server_url: str, *, insecure: bool) -> list[str]:
    """What a connection does not protect from, for a warning and for `status`."""
    parts = urlsplit(server_url)
    if parts.scheme == "https":
        return ["the server's certificate is not checked (--insecure)"] if insecure else []
    if reach(parts.hostname or "") is Reach.LOOPBACK:
        return []
    return [f"the way to {server_url} is not encrypted: others can read the machine key on it"]


def check(
    server_url: str, *, insecure: bool, understood: bool, again: str, usage: bool = True
) -> list[str]:
    """The warnings that go with this connection.

    Args:
        server_url: as `config.check_server_url` gives it.
        insecure: whether --insecure was given.
        understood: whether --i-understand was given.
        again: the command line to repeat with another option.
        usage: whether it is the command line that is wrong, or the configuration.

    Raises:
        ConfigError: the key must not be sent there like this.
    """
    weak = weaknesses(server_url, insecure=insecure)
    host = urlsplit(server_url).hostname or ""
    far = reach(host)
    if not weak or far is Reach.LOOPBACK or (insecure and (understood or far < Reach.PUBLIC)):
        return weak
    encrypted = server_url.startswith("https:")
    better = "--ca-file PEM" if encrypted else "https://, or --ssh-tunnel USER@HOST"
    wanted = "--insecure" if far is Reach.PRIVATE else "--insecure --i-understand"
    why = f"{host} is {_PLACE[far]}, and {weak[0]}"
    raise ConfigError(
        "The machine key is not sent over such a connection",
        why,
        f"use {better}; or, at your own risk, {again} {wanted}",
        usage=usage,
    )


_PLACE: Final = {
    Reach.PRIVATE: "another machine",
    Reach.PUBLIC: "reached over the internet",
}
