"""Why a connection failed, in words: the first cause that tells something."""

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from cloudagent_daemon.link.way import Way
from cloudagent_daemon.proxy import without_secret

_YOURS: Final = "if that is your own doing, name its authority with --ca-file PEM"
#: What a failed check of a certificate means, by OpenSSL's number (x509_vfy.h).
_CERTIFICATE: Final = {
    9: "its certificate is not valid yet (or this machine's clock is wrong)",
    10: "its certificate has expired (or this machine's clock is wrong)",
    18: f"its certificate is self-signed; {_YOURS}",
    19: f"its certificate comes from an authority that this machine does not trust; {_YOURS}",
    20: f"its certificate comes from an authority that this machine does not trust; {_YOURS}",
}


def is_offline(error: BaseException) -> bool:
    """Whether nothing was sent at all: the name is not known here, or there is no network."""
    return any(
        isinstance(cause, socket.gaierror)
        or (isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.ENETDOWN))
        for cause in _causes(error)
    )


def why_not(error: BaseException, way: Way) -> str:
    """The innermost cause that a person can do something about."""
    server = urlsplit(way.server_url)
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                said = cause.verify_message.rstrip(".")
                return _CERTIFICATE.get(cause.verify_code, f"its certificate is not good: {said}")
            case ssl.SSLError():
                return f"it does not speak TLS as it should ({cause.reason or cause})"
            case socket.gaierror():
                name = urlsplit(way.proxy).hostname if way.proxy else server.hostname
                return f"the name {name} is not known ({cause.strerror})"
            case ConnectionRefusedError():
                return f"nothing listens at {peer(way)} (connection refused)"
            case ConnectionResetError() | BrokenPipeError():
                what = " (is it TLS that it speaks there?)" if server.scheme == "https" else ""
                return f"{peer(way)} cuts the connection{what}"
            case TimeoutError():
                return f"{peer(way)} does not answer in time"
            case OSError() if cause.strerror:
                return f"{peer(way)}: {cause.strerror}"
            case _:
                continue
    return f"{type(error).__name__}: {error}"


def proxy_refusal(way: Way, said: str) -> str:
    """What a proxy that does not let us through has said, beginning with its status."""
    hint = ": put user and password into the variable, as http://USER:PASSWORD@HOST:PORT"
    proxy = without_secret(way.proxy or "")
    return f"the proxy {proxy} answers {said}{hint if said.startswith('407') else ''}"


def peer(way: Way) -> str:
    """What a connection is made to first."""
    if way.socket:
        return "the SSH tunnel's end"
    if way.proxy:
        return f"the proxy {without_secret(way.proxy)}"
    parts = urlsplit(way.server_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the innermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        match error:
            case BaseExceptionGroup(exceptions=(BaseException() as first, *_)):
                error = first
            case _:
                error = error.__cause__ or error.__context__
    yield from reversed(chain)
