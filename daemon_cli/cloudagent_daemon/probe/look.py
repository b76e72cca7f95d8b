"""Looks at the way to a backend: each step with a deadline of its own, going on after a failure."""

import socket
import ssl
import time
from contextlib import closing
from dataclasses import replace
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import anyio
import httpx2
from anyio.to_thread import run_sync

from cloudagent_daemon.link import http
from cloudagent_daemon.link.failures import why_not
from cloudagent_daemon.link.transport import KeyRejectedError, LinkError
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from cloudagent_daemon.probe.seen import Answer, Name, Proxied, Seen, Tcp, Tls, Upgrade
from cloudagent_daemon.proxy import without_secret

#: How long a step may take.
STEP_S: Final = 10.0
TRIPS: Final = 5
_PORTS: Final = {"http": 80, "https": 443}
#: In the form of a key, but nobody's: whether a WebSocket comes through can be seen without one.
_NO_KEY: Final = "sk_machine_none"
#: X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which the ssl module has no name for.
_NO_CHECK_TIME: Final = 0x200000


async def look(way: Way, machine_key: str | None) -> Seen:
    """Everything that can be seen of the way.

    The key goes out only over the way as `way` has it, and only once a backend has answered there.
    """
    name, tcp, proxied, tls = await run_sync(_below_http, way, abandon_on_cancel=True)
    answer, trips = await _ask(way)
    trusted = machine_key if answer.is_ours else None
    key = await _ask_with_key(way, trusted) if trusted else None
    upgrade = await _upgrade(way, trusted or _NO_KEY) if not answer.error else None
    return Seen(
        server_url=way.server_url,
        name=name,
        tcp=tcp,
        proxied=proxied,
        tls=tls,
        http=answer,
        upgrade=upgrade,
        key=key,
        round_trips_ms=trips,
    )


# --- name, connection, proxy, TLS: blocking, in a thread -----------------------------------


def _below_http(way: Way) -> tuple[Name | None, Tcp | None, Proxied | None, Tls | None]:
    if way.socket:
        sock, tcp = _connect_unix(way)
        name = None
    else:
        host, port = _first_machine(way)
        name = _resolve(host, port)
        if name.error:
            return name, None, None, None
        sock, tcp = _connect(host, port)
    if sock is None:
        return name, tcp, None, None
    with closing(sock):
        proxied = _say_connect(sock, way) if way.proxy else None
        if way.tls is None or (proxied and proxied.status != 200):
            return name, tcp, proxied, None
        return name, tcp, proxied, _shake_hands(sock, way)


def _first_machine(way: Way) -> tuple[str, int]:
    parts = urlsplit(way.proxy or way.server_url)
    return parts.hostname or "", parts.port or _PORTS[parts.scheme]


def _resolve(host: str, port: int) -> Name:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Name(host, error=getattr(error, "strerror", None) or str(error))
    return Name(host, tuple(dict.fromkeys(str(one[4][0]) for one in found)))


def _connect(host: str, port: int) -> tuple[socket.socket | None, Tcp]:
    peer, began = f"{host}:{port}", time.monotonic()
    try:
        sock = socket.create_connection((host, port), timeout=STEP_S)
    except TimeoutError:
        return None, Tcp(peer, error="no answer", silent=True)
    except OSError as error:
        return None, Tcp(peer, error=error.strerror or str(error))
    return sock, Tcp(peer, (time.monotonic() - began) * 1_000)


def _connect_unix(way: Way) -> tuple[socket.socket | None, Tcp]:
    began, sock = time.monotonic(), socket.socket(socket.AF_UNIX)
    sock.settimeout(STEP_S)
    try:
        sock.connect(str(way.socket))
    except OSError as error:
        sock.close()
        return None, Tcp("the SSH tunnel's end", error=error.strerror or str(error))
    return sock, Tcp("the SSH tunnel's end", (time.monotonic() - began) * 1_000)


def _say_connect(sock: socket.socket, way: Way) -> Proxied:
    proxy = urlsplit(way.proxy or "")
    shown = without_secret(way.proxy or "")
    server = urlsplit(way.server_url)
    target = f"{server.hostname}:{server.port or _PORTS[server.scheme]}"
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.username is not None:
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        head += f"Proxy-Authorization: Basic {_base64(secret)}\r\n"
    try:
        if way.proxy_tls:
            return Proxied(shown, 200, "not looked into: an https proxy")
        sock.sendall(f"{head}\r\n".encode())
        line = _head(sock).split(b"\r\n", 1)[0].decode("latin-1")
    except OSError as error:
        return Proxied(shown, error=error.strerror or str(error))
    version, _, rest = line.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/") or not status.isdecimal():
        return Proxied(shown, error="it does not speak HTTP")
    return Proxied(shown, int(status), reason)


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


def _head(sock: socket.socket) -> bytes:
    """Up to the end of a head, byte by byte: what follows is not ours to read."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n") and len(head) < 16_384:
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    return bytes(head)


def _shake_hands(sock: socket.socket, way: Way) -> Tls | None:
    if way.tls is None or way.proxy_tls:
        return None  # TLS within TLS needs more than a plain socket; the request tells
    host = urlsplit(way.server_url).hostname
    unchecked = way.tls.verify_mode == ssl.CERT_NONE
    try:
        with way.tls.wrap_socket(sock, server_hostname=host) as secured:
            shown = secured.getpeercert() or {}
            if unchecked:
                shown = _presented(way)
            return replace(_tls(shown), version=secured.version() or "", unchecked=unchecked)
    except ssl.SSLCertVerificationError as error:
        code, why = error.verify_code, why_not(error, way)
        return replace(_tls(_presented(way)), verify_code=code, error=why)
    except OSError as error:
        return Tls(error=why_not(error, way))


def _presented(way: Way) -> dict[str, Any]:
    """The certificate that is presented, though it is no good: who signed it tells the most.

    The ssl module reads only what it trusts. So a first handshake takes the certificate as bytes, and a
    second one trusts exactly that one. Nothing is sent over either.
    """
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    # Trusts a certificate that is no authority's, whatever its dates are.
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    try:
        der, _ = _certificate(way, careless)
        if der is None:
            return {}
        trusting.load_verify_locations(cadata=der)
        return _certificate(way, trusting)[1]
    except (OSError, ValueError):
        return {}


def _certificate(way: Way, context: ssl.SSLContext) -> tuple[bytes | None, dict[str, Any]]:
    """What a handshake in this context has shown: the bytes, and what is read where it is trusted."""
    host = urlsplit(way.server_url).hostname
    with closing(_again(way)) as sock, context.wrap_socket(sock, server_hostname=host) as secured:
        return secured.getpeercert(binary_form=True), dict(secured.getpeercert() or {})


def _again(way: Way) -> socket.socket:
    if way.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(STEP_S)
        sock.connect(str(way.socket))
        return sock
    sock = socket.create_connection(_first_machine(way), timeout=STEP_S)
    if way.proxy and _say_connect(sock, way).status != 200:
        sock.close()
        raise OSError("the proxy has changed its mind")
    return sock


def _tls(shown: dict[str, Any]) -> Tls:
    """What a certificate says, as `SSLSocket.getpeercert` has it."""
    return Tls(
        subject=_names(shown) or _common_name(shown.get("subject", ())),
        issuer=_common_name(shown.get("issuer", ())),
        good_until=_day(str(shown.get("notAfter", ""))),
    )


def _names(shown: dict[str, Any]) -> str:
    names = [str(one[1]) for one in shown.get("subjectAltName", ())]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _common_name(name: Any) -> str:
    fields = {key: value for part in name for key, value in part}
    both = [fields.get("commonName"), fields.get("organizationName")]
    told = [str(one) for one in both if one]
    return f"{told[0]} ({told[1]})" if len(told) == 2 and told[0] != told[1] else "".join(told[:1])


def _day(not_after: str) -> str:
    if not not_after:
        return ""
    return time.strftime("%Y-%m-%d", time.gmtime(ssl.cert_time_to_seconds(not_after)))


# --- HTTP and the WebSocket ----------------------------------------------------------------


async def _ask(way: Way) -> tuple[Answer, tuple[float, ...]]:
    """The backend's version, and how long an answer takes on a connection that is open."""
    try:
        async with http.client(way) as client:
            answer = await client.get("/v1/version", timeout=STEP_S)
            shown = _shown(answer)
            trips: list[float] = []
            if shown.is_ours:
                for _ in range(TRIPS):
                    began = time.monotonic()
                    await client.get("/healthz", timeout=STEP_S)
                    trips.append((time.monotonic() - began) * 1_000)
            return shown, tuple(trips)
    except (httpx2.HTTPError, OSError) as error:
        return Answer(error=http.why_no_answer(error, way)), ()


async def _ask_with_key(way: Way, machine_key: str) -> Answer:
    headers = {"Authorization": f"Bearer {machine_key}"}
    try:
        async with http.client(way) as client:
            return _shown(await client.get("/v1/daemon/host", headers=headers, timeout=STEP_S))
    except (httpx2.HTTPError, OSError) as error:
        return Answer(error=http.why_no_answer(error, way))


async def _upgrade(way: Way, machine_key: str) -> Upgrade:
    """Opens and closes a WebSocket; without a hello no running daemon is superseded by it."""
    try:
        with anyio.fail_after(STEP_S):
            async with WebSocketTransport(way, always(machine_key)).connect():
                return Upgrade(opened=True)
    except KeyRejectedError:
        return Upgrade(key_refused=True)
    except LinkError as error:
        return Upgrade(error=str(error))
    except TimeoutError:
        return Upgrade(error=f"no answer within {STEP_S:.0f} s")


def _shown(answer: httpx2.Response) -> Answer:
    return Answer(
        status=answer.status_code,
        reason=answer.reason_phrase,
        kind=answer.headers.get("content-type", ""),
        date=answer.headers.get("date", ""),
        location=answer.headers.get("location", "") if answer.is_redirect else "",
        body=cast("dict[str, object]", http.body_of(answer)),
    )
