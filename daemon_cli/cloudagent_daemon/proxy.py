"""Which proxy leads to a server, by the environment: a rule without network.

The variables that curl and most programs know: `https_proxy`, `http_proxy`, `all_proxy`, `no_proxy`,
in lower or upper case. One reader for all of our connections, so that none takes another way.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.trust import Reach, reach

_PORTS: Final = {"http": 80, "https": 443}


def proxy_for(server_url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy's URL, or None for the direct way. This machine itself is never behind a proxy.

    Raises:
        ConfigError: the variable that counts names something that is no HTTP proxy.
    """
    parts = urlsplit(server_url)
    host = parts.hostname or ""
    if reach(host) is Reach.LOOPBACK:
        return None
    port = parts.port or _PORTS[parts.scheme]
    if _spared(host, port, _value(environ, "no_proxy")[1]):
        return None
    for variable in (f"{parts.scheme}_proxy", "all_proxy"):
        name, value = _value(environ, variable)
        if value:
            return _checked(name, value)
    return None


def without_secret(proxy: str) -> str:
    """The proxy's URL, for people: without the user and password in it."""
    parts = urlsplit(proxy)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _value(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The lower-case variable wins, also when it is there and empty."""
    for spelling in (name, name.upper()):
        if spelling in environ:
            return spelling, environ[spelling].strip()
    return name, ""


def _checked(name: str, value: str) -> str:
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        scheme, usable = parts.scheme, bool(parts.hostname) and parts.port != 0
    except ValueError:
        scheme, usable = "", False
    else:
        usable = usable and (not parts.username or parts.password is not None)
    if not usable or scheme not in _PORTS:
        seen = f"${name} names a {scheme} proxy" if usable else f"${name} is no proxy's address"
        raise ConfigError(
            "The proxy cannot be used",
            f"{seen}; it has to look like http://[USER:PASSWORD@]HOST:PORT",
            f"correct {name}, or name this server in no_proxy",
        )
    return url


def _spared(host: str, port: int, no_proxy: str) -> bool:
    """Whether `no_proxy` names the server: by name, suffix, address, network, `*`, with a port or not."""
    return any(_names(entry.strip().lower(), host.lower(), port) for entry in no_proxy.split(","))


def _names(entry: str, host: str, port: int) -> bool:
    if entry in {"", "*"}:
        return entry == "*"
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return _is_in(host, network)
    name, colon, its_port = entry.rpartition(":")
    if colon and its_port.isdecimal():
        if int(its_port) != port:
            return False
        entry = name.strip("[]")
    suffix = entry.removeprefix("*").removeprefix(".")
    return host == suffix or host.endswith(f".{suffix}")


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
