"""What it means, what was seen of the way to a backend: each step, the value seen, the next command.

Every step is told even after a failure, as far as it could be looked at: a machine may be reached
while its certificate is bad, and a name may be unknown where a proxy knows it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal, TypeAlias, TypeVar, cast

from cloudagent_daemon.probe.seen import Answer, Name, Proxied, Seen, Tcp, Tls, Upgrade

T = TypeVar("T")
State: TypeAlias = Literal["ok", "warn", "fail", "skip"]

REACHED: Final = 0
UNHEALTHY: Final = 1
KEY_REJECTED: Final = 4
UNREACHABLE: Final = 5

#: What is wrong with a certificate, by OpenSSL's number (x509_vfy.h).
_SELF_SIGNED: Final = frozenset({18})
_UNKNOWN_ISSUER: Final = frozenset({19, 20, 21})
_TIME: Final = frozenset({9, 10})
_NAME: Final = frozenset({62, 64})
_WRONG: Final = {
    9: "its certificate is not good yet",
    10: "its certificate has expired",
    18: "its certificate is self-signed",
    **dict.fromkeys(_UNKNOWN_ISSUER, "its certificate is by an authority that is not trusted here"),
    **dict.fromkeys(_NAME, "its certificate is for another name"),
}


_BELOW: Final = frozenset({"name", "connection", "proxy", "tls"})
#: What has to be right before a step can tell anything.
_NEEDED: Final = {"http": _BELOW, "websocket": _BELOW | {"http"}, "key": _BELOW | {"http"}}


@dataclass(frozen=True)
class Step:
    name: str
    state: State
    #: The value that was seen, for a person.
    seen: str
    #: What to do about it: a command, as far as there is one.
    next: str = ""
    #: What the command's exit code says if this is the first step that failed.
    code: int = UNREACHABLE


def judge(seen: Seen, supported: Iterable[int], daemon_version: str) -> list[Step]:
    """The steps in the order of the way.

    Args:
        seen: what was looked at.
        supported: versions of the protocol that this daemon speaks.
        daemon_version: of this daemon.
    """
    if seen.no_way:
        return [Step("way", "fail", seen.no_way, seen.no_way_next)]
    steps = [
        *_maybe(seen.name, lambda one: _name(one, through=seen.proxied is not None)),
        *_maybe(seen.tcp, _tcp),
        *_maybe(seen.proxied, _proxied),
        *_tls(seen),
        *_maybe(seen.http, lambda one: _http(one, seen.server_url)),
        *_maybe(seen.upgrade, _upgrade),
        _key(seen.key, seen),
        *_protocol(seen.http, list(supported), daemon_version),
        *_round_trip(seen.round_trips_ms),
    ]
    return _without_echoes(steps)


def exit_code(steps: Sequence[Step]) -> int:
    return next((step.code for step in steps if step.state == "fail"), REACHED)


def _maybe(one: T | None, step: Callable[[T], Step]) -> Iterator[Step]:
    if one is not None:
        yield step(one)


def _name(name: Name, *, through: bool) -> Step:
    of = "the proxy " if through else ""
    if name.error:
        check = "check the address for a slip, and this machine's network and DNS"
        return Step("name", "fail", f"{of}{name.host} is not known: {name.error}", check)
    if name.addresses == (name.host,):
        return Step("name", "ok", f"{of}{name.host}: an address, nothing to look up")
    return Step("name", "ok", f"{of}{name.host} is {', '.join(name.addresses)}")


def _tcp(tcp: Tcp) -> Step:
    if tcp.silent:
        what = f"{tcp.peer} does not answer: something drops what is sent there"
        fix = "a firewall; try another network, a proxy (https_proxy), or --ssh-tunnel USER@HOST"
        return Step("connection", "fail", what, fix)
    if tcp.error:
        fix = "is the backend running there, and is it the right port?"
        return Step("connection", "fail", f"{tcp.peer}: {tcp.error}", fix)
    return Step("connection", "ok", f"{tcp.peer} in {_ms(tcp.ms)}")


def _proxied(proxied: Proxied) -> Step:
    if proxied.error:
        return Step("proxy", "fail", f"{proxied.proxy}: {proxied.error}", "is that a proxy?")
    told = f"{proxied.proxy} answers {proxied.status} {proxied.reason}".rstrip()
    if proxied.status == 407:
        fix = "https_proxy=http://USER:PASSWORD@HOST:PORT (percent-encode what is special)"
        return Step("proxy", "fail", told, fix)
    if proxied.status != 200:
        fix = "ask who runs the proxy to let this server through, or name it in no_proxy"
        return Step("proxy", "fail", told, fix)
    return Step("proxy", "ok", f"{proxied.proxy} lets us through")


def _tls(seen: Seen) -> Iterator[Step]:
    tls = seen.tls
    if tls is None:
        if seen.server_url.startswith("http://") and seen.tcp is not None and not seen.tcp.error:
            yield Step("tls", "skip", "http: not encrypted")
        return
    if not tls.error:
        unchecked = " (not checked: --insecure)" if tls.unchecked else ""
        told = f"{tls.version}, {_certificate(tls)}{unchecked}"
        yield Step("tls", "warn" if tls.unchecked else "ok", told)
        return
    yield Step("tls", "fail", _bad_tls(tls), _tls_fix(tls))


def _bad_tls(tls: Tls) -> str:
    what = _WRONG.get(tls.verify_code, tls.error)
    return f"{what}: {_certificate(tls)}" if tls.issuer else what


def _tls_fix(tls: Tls) -> str:
    if tls.verify_code in _SELF_SIGNED:
        return "if you made it: --ca-file PEM with that certificate"
    if tls.verify_code in _UNKNOWN_ISSUER:
        return (
            f"if “{tls.issuer}” is your own authority, or your company's: --ca-file PEM;"
            " if not, somebody is in between"
        )
    if tls.verify_code in _TIME:
        return "look at this machine's clock (date); if that is right, the certificate is to be renewed"
    if tls.verify_code in _NAME:
        return f"use the name that it is for: {tls.subject or 'look into the certificate'}"
    return "is that an https port? try the address in a browser"


def _certificate(tls: Tls) -> str:
    parts = [f"for {tls.subject}" if tls.subject else "", f"by {tls.issuer}" if tls.issuer else ""]
    parts.append(f"good until {tls.good_until}" if tls.good_until else "")
    return ", ".join(part for part in parts if part) or "no certificate seen"


def _http(answer: Answer, server_url: str) -> Step:
    if answer.error:
        return Step("http", "fail", answer.error, f"curl -v {server_url}/v1/version")
    status = f"{answer.status} {answer.reason}".rstrip()
    if answer.location:
        return Step(
            "http", "fail", f"{status}: sends us on to {answer.location}", "name that address"
        )
    if answer.status == 200 and answer.is_ours and "protocol" in answer.body:
        return Step("http", "ok", f"cloudagent {answer.body.get('version', '')}".rstrip())
    if answer.is_ours and "detail" in answer.body:
        fix = str(answer.body.get("next") or "check the address")
        return Step("http", "fail", f"{status}: {answer.body['detail']}", fix)
    if answer.status in (502, 503, 504):
        fix = "a proxy answers before the backend: is cloudagent-backend running behind it?"
        return Step("http", "fail", status, fix)
    if "html" in answer.kind:
        fix = "a network's login page, or a wrong address: open it in a browser"
        return Step("http", "fail", f"{status} with a web page, not a backend", fix)
    return Step(
        "http", "fail", f"{status} ({answer.kind or 'no type'}), not a backend", "check the address"
    )


def _upgrade(upgrade: Upgrade) -> Step:
    if upgrade.opened:
        return Step("websocket", "ok", "opens")
    if upgrade.key_refused:
        return Step("websocket", "ok", "comes through (without a key that is accepted)")
    fix = "a proxy on the way has to pass WebSockets on: HTTP/1.1, headers Upgrade and Connection"
    return Step("websocket", "fail", upgrade.error, fix)


def _key(key: Answer | None, seen: Seen) -> Step:
    login = f"cloudagent-daemon login --server {seen.server_url}"
    if key is None:
        return Step("key", "skip", "none for this server here", login)
    if key.status == 200 and key.is_ours:
        return Step("key", "ok", f"accepted for {key.body.get('name')} ({key.body.get('id')})")
    if key.status in (401, 403) and key.is_ours:
        detail = key.body.get("detail") or "no reason given"
        return Step("key", "fail", f"{key.status}: {detail}", login, code=KEY_REJECTED)
    told = key.error or f"{key.status} {key.reason}".rstrip()
    return Step("key", "fail", f"no verdict: {told}", "probe again in a moment")


def _protocol(answer: Answer | None, supported: list[int], version: str) -> Iterator[Step]:
    if answer is None or not answer.is_ours or "protocol" not in answer.body:
        return
    offered = answer.body["protocol"]
    numbers = cast("list[object]", offered) if isinstance(offered, list) else []
    theirs = [one for one in numbers if isinstance(one, int)]
    least = str(answer.body.get("minimum_daemon_version") or "")
    if not set(theirs) & set(supported):
        told = f"the backend speaks {theirs}, this daemon {supported}"
        yield Step("protocol", "fail", told, "uv tool upgrade cloudagent-daemon", code=UNHEALTHY)
    elif least and _older(version, least):
        told = f"the backend wants daemon {least} or newer, this is {version}"
        yield Step("protocol", "fail", told, "uv tool upgrade cloudagent-daemon", code=UNHEALTHY)
    else:
        yield Step("protocol", "ok", f"version {max(set(theirs) & set(supported))}")


def _round_trip(trips_ms: Sequence[float]) -> Iterator[Step]:
    if trips_ms:
        told = f"{_ms(median(trips_ms))} (median of {len(trips_ms)}, slowest {_ms(max(trips_ms))})"
        yield Step("round trip", "ok", told)


def _without_echoes(steps: list[Step]) -> list[Step]:
    """Steps that could only repeat why an earlier one failed are told as not tried."""
    told: list[Step] = []
    for step in steps:
        failed = {before.name for before in told if before.state == "fail"}
        if failed & _NEEDED.get(step.name, frozenset()) and step.state in ("fail", "skip"):
            told.append(Step(step.name, "skip", "not tried: see above"))
        else:
            told.append(step)
    return told


def _older(version: str, than: str) -> bool:
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _ms(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 10 else f"{ms:.0f} ms"
