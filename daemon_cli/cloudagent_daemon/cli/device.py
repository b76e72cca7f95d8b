"""The part of `login` that a person sees while a machine waits to be let in (RFC 8628)."""

import shutil
import socket
import sys
import time
from typing import Any, Final

import anyio
import httpx2

from cloudagent_daemon import device_flow
from cloudagent_daemon.cli import qr
from cloudagent_daemon.cli.options import (
    FAILED,
    NOT_LOGGED_IN,
    UNREACHABLE,
    CommandError,
    safe,
)
from cloudagent_daemon.device_flow import Codes, DeviceFlow, Ended, Issued
from cloudagent_daemon.link.http import TIMEOUT_S, body_of, client, is_ours, why_no_answer
from cloudagent_daemon.link.way import Way
from cloudagent_daemon.trust import Reach, reach
from cloudagent_protocol.device import CLIENT, GRANT
from cloudagent_protocol.version import DISTRIBUTION

_TICK_S: Final = 1.0
_CLEAR: Final = "\r\x1b[K"


class Talk:
    """What is said on standard error while somebody waits.

    Args:
        fancy: whether the line that counts down may move, and a QR code be shown.
    """

    def __init__(self, *, fancy: bool) -> None:
        self._fancy = fancy
        self._open = False

    def codes(self, codes: Codes) -> None:
        life = _duration(codes.expires_in_s)
        self.line("")
        self.line(f"  Open   {codes.url}")
        self.line(f"  Code   {codes.user_code}   (expires in {life}; never share it)")
        self.line("")
        if self._fancy and reach(_host(codes.url)) is not Reach.LOOPBACK:
            self._picture(codes.url_with_code)
        if not self._fancy:
            self.line("Waiting for your approval in the browser; Ctrl-C ends it.")

    def waiting(self, left_s: float, trouble: str) -> None:
        """How long the code is still good; the line is written over."""
        if self._fancy:
            left = f"{int(left_s) // 60}:{int(left_s) % 60:02}"
            said = f"Waiting for your approval in the browser, {left} left; Ctrl-C ends it."
            width = shutil.get_terminal_size().columns
            text = safe(f"{said} ({trouble})" if trouble else said)
            print(f"{_CLEAR}{text[: width - 1]}", end="", file=sys.stderr, flush=True)
            self._open = True

    def trouble(self, why: str) -> None:
        if not self._fancy:
            self.line(f"No answer for now ({why}); still waiting.")

    def line(self, text: str) -> None:
        self.end()
        print(safe(text), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Ends the line that counts down."""
        if self._open:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._open = False

    def _picture(self, text: str) -> None:
        rows = qr.lines(text)
        if len(rows[0]) + 2 < shutil.get_terminal_size().columns:
            for row in rows:
                print(f"  {qr.coloured(row)}", file=sys.stderr)
            self.line("")


async def log_in(way: Way, older_key: str | None, talk: Talk, again: str) -> Issued:
    """A new key for this machine, once a person has approved it.

    Args:
        way: to the server.
        older_key: of this machine, which makes it the same host as before.
        talk: says what the person has to know.
        again: the command line to repeat.

    Raises:
        CommandError: nobody approved, or the server could not be asked.
    """
    async with client(way) as http:
        codes = await _ask_for_codes(http, way, older_key, again)
        talk.codes(codes)
        flow = DeviceFlow(codes, time.monotonic())
        try:
            end = await _wait(http, way, codes, flow, talk)
        finally:
            talk.end()
    if isinstance(end, Issued):
        return end
    raise _not_approved(end, way, codes, again)


async def _ask_for_codes(
    http: httpx2.AsyncClient, way: Way, older_key: str | None, again: str
) -> Codes:
    asked = {
        "client_id": CLIENT,
        "hostname": _plain(socket.gethostname()),
        "os": _plain(sys.platform),
        "daemon_version": DISTRIBUTION,
    }
    headers = {"Authorization": f"Bearer {older_key}"} if older_key else {}
    try:
        answer = await http.post("/v1/auth/device/code", json=asked, headers=headers)
    except (httpx2.HTTPError, OSError) as error:
        raise unreachable(way, error) from error
    if answer.status_code == 429:
        problem = body_of(answer)
        next_step = str(problem.get("next") or again)
        what = f"{way.server_url} lets no machine in at the moment"
        raise CommandError(what, str(problem.get("detail", "429")), next_step, FAILED)
    if answer.status_code in (404, 405) and is_ours(answer):
        raise CommandError(
            f"{way.server_url} cannot let a machine in by a code",
            "it is older than this daemon (it does not know /v1/auth/device/code)",
            f"{again} --api-key-file -   (with a key from the page, Host machines)",
            FAILED,
        )
    try:
        return device_flow.read_codes(body_of(answer) if answer.status_code == 200 else {})
    except device_flow.NoCodesError as error:
        raise no_backend(way, "/v1/auth/device/code", answer) from error


async def _wait(
    http: httpx2.AsyncClient, way: Way, codes: Codes, flow: DeviceFlow, talk: Talk
) -> Issued | Ended:
    trouble = ""
    while True:
        while (now := time.monotonic()) < min(flow.next_at, flow.expires_at):
            talk.waiting(flow.expires_at - now, trouble)
            await anyio.sleep(min(_TICK_S, min(flow.next_at, flow.expires_at) - now))
        if flow.expired(now):
            return Ended.EXPIRED
        try:
            answer = await _ask_for_key(http, codes)
        except (httpx2.HTTPError, OSError) as error:
            trouble = why_no_answer(error, way)
            flow.unanswered(time.monotonic())
            talk.trouble(trouble)
            continue
        trouble = f"the server answers {answer.status_code}" if answer.status_code > 400 else ""
        after = answer.headers.get("retry-after", "")
        retry_s = float(after) if after.isdecimal() else None
        end = flow.answered(answer.status_code, body_of(answer), time.monotonic(), retry_s)
        if end is not None:
            return end


async def _ask_for_key(http: httpx2.AsyncClient, codes: Codes) -> httpx2.Response:
    body = {"grant_type": GRANT, "client_id": CLIENT, "device_code": codes.device_code}
    return await http.post("/v1/auth/device/token", json=body, timeout=TIMEOUT_S)


def _not_approved(end: Ended, way: Way, codes: Codes, again: str) -> CommandError:
    match end:
        case Ended.DENIED:
            what, why = "The login was denied", f"somebody chose Deny for {codes.user_code}"
        case Ended.EXPIRED:
            what = "The login was not approved in time"
            why = f"the code {codes.user_code} was good for {_duration(codes.expires_in_s)}"
        case Ended.VOID:
            what = "The code is not good any more"
            why = f"{way.server_url} does not know {codes.user_code}, or it was used"
        case Ended.STRANGE:
            what = f"{way.server_url} does not answer as a cloudagent backend"
            why = "/v1/auth/device/token gave an answer that is not of RFC 8628"
            return CommandError(what, why, again, UNREACHABLE)
    return CommandError(what, why, again, NOT_LOGGED_IN)


def unreachable(way: Way, error: Exception) -> CommandError:
    why = why_no_answer(error, way)
    word = "trusted" if "certificate" in why else "reached"
    return CommandError(f"{way.server_url} cannot be {word}", why, _probe(way), UNREACHABLE)


def no_backend(way: Way, path: str, answer: httpx2.Response) -> CommandError:
    kind = answer.headers.get("content-type", "no type")
    why = f"{path} answers {answer.status_code} with {kind}"
    if location := answer.headers.get("location"):
        why = f"{path} sends us on to {location}"
    elif "html" in kind:
        why += ": a network's login page, a proxy, or a wrong address"
    return CommandError(f"{way.server_url} is no cloudagent backend", why, _probe(way), UNREACHABLE)


def _probe(way: Way) -> str:
    return f"cloudagent-daemon probe --server {way.server_url}   (shows which step fails)"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _plain(text: str) -> str:
    """What a backend takes for a hostname: printable ASCII."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:255]


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


def host_of(answer: httpx2.Response) -> dict[str, Any] | None:
    """The host machine that an answer shows, if it does."""
    body = body_of(answer) if answer.status_code == 200 else {}
    return body if {"id", "name"} <= body.keys() else None
