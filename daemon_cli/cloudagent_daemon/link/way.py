"""The way to a server, the same for every connection: how it is checked, and what lies in between."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloudagent_daemon import sockets
from cloudagent_daemon.config import ConfigError, Settings
from cloudagent_daemon.proxy import proxy_for

#: Where a daemon's SSH tunnel begins.
TUNNEL: Final = "tunnel.sock"


@dataclass(frozen=True)
class Way:
    server_url: str
    #: How to check the server's certificate; None for plain http.
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    #: How to check an https proxy's.
    proxy_tls: ssl.SSLContext | None = field(default=None, repr=False)
    #: May hold a password.
    proxy: str | None = field(default=None, repr=False)
    #: The near end of a tunnel that leads to the server; then there is no proxy.
    socket: Path | None = None


def way_to(
    server_url: str,
    environ: Mapping[str, str],
    *,
    ca_file: Path | None = None,
    insecure: bool = False,
    socket: Path | None = None,
) -> Way:
    """How to reach the server from here.

    Raises:
        ConfigError: a certificate file or a proxy cannot be used.
    """
    proxy = None if socket else proxy_for(server_url, environ)
    return Way(
        server_url,
        tls=_context(ca_file, insecure=insecure) if server_url.startswith("https:") else None,
        proxy_tls=_context(ca_file) if proxy and proxy.startswith("https:") else None,
        proxy=proxy,
        socket=socket,
    )


def way_of(settings: Settings) -> Way:
    """The way of a daemon with these settings; through its own SSH tunnel, if it has one.

    Raises:
        ConfigError: see `way_to`.
    """
    return way_to(
        settings.server_url,
        settings.environment,
        ca_file=settings.ca_file,
        insecure=settings.insecure,
        socket=_near_end(settings),
    )


def _near_end(settings: Settings) -> Path | None:
    if settings.ssh_tunnel is None:
        return None
    return sockets.find(TUNNEL, settings.state_dir or settings.runtime_dir)


def _context(ca_file: Path | None, *, insecure: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python 3.13 began to refuse certificates for defects of form, which many a company's own authority
    # has and which browsers and curl take; it is not to depend on the Python that uvx finds whether a
    # machine gets through. Chain, name and dates are checked as ever.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                "The certificate authority's file cannot be used",
                f"{ca_file}: {getattr(error, 'reason', None) or error}",
                "give --ca-file a file with certificates in PEM form",
            ) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
