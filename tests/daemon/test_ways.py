"""The way to the server: certificates, proxies, login pages. What is not trusted never hears the key.

Rows 32 and 33 of the fault matrix, for a single request as for the link.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import httpx2
import pytest

from cloudagent_daemon.link import http
from cloudagent_daemon.link.transport import KeyRejectedError, LinkError, UnreachableError
from cloudagent_daemon.link.way import Way, way_to
from cloudagent_daemon.link.websocket import WebSocketTransport, always
from fakes.backend import KEY, ScriptedBackend, scripted_backend
from fakes.certificates import authority, self_signed
from fakes.front import connect_proxy, page_front, tls_front

#: A name of RFC 6761 that resolves nowhere: only a proxy can lead there.
ELSEWHERE = "agents.test"


def port_of(backend: ScriptedBackend) -> int:
    return int(backend.url.rpartition(":")[2])


async def link(way: Way) -> str:
    """`ok`, or why there is no link."""
    try:
        async with WebSocketTransport(way, always(KEY)).connect():
            return "ok"
    except LinkError as error:
        return str(error)


async def request(way: Way) -> str:
    """`ok`, or why there is no answer."""
    async with http.client(way) as client:
        try:
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = await client.get("/v1/daemon/host", headers=headers)
        except (httpx2.HTTPError, OSError) as error:
            return http.why_no_answer(error, way)
        return "ok" if http.is_ours(answer) and answer.status_code == 200 else str(answer)


@asynccontextmanager
async def secured(tmp_path: Path, name: str = "127.0.0.1") -> AsyncGenerator[tuple[int, Path]]:
    """A backend behind TLS: its port, and who signed for it."""
    signer = authority(tmp_path)
    async with (
        scripted_backend() as backend,
        tls_front(signer.server(name), port_of(backend)) as front,
    ):
        yield front.port, signer.ca_file


# --- certificates (row 33) -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("self-signed", "self-signed"),
        ("unknown", "does not trust"),
        ("other name", "not valid for '127.0.0.1'"),
        ("expired", "has expired"),
        ("not yet", "not valid yet"),
    ],
)
async def test_a_certificate_that_is_no_good_ends_it_before_a_word(
    tmp_path: Path, kind: str, told: str
) -> None:
    signer, stranger = authority(tmp_path), authority(tmp_path, "Middle Authority")
    context = {
        "self-signed": lambda: self_signed(tmp_path),
        "unknown": stranger.server,
        "other name": lambda: signer.server("agents.example"),
        "expired": lambda: signer.server(age=timedelta(days=2)),
        "not yet": lambda: signer.server(age=timedelta(days=-2)),
    }[kind]()
    async with scripted_backend() as backend, tls_front(context, port_of(backend)) as middle:
        way = way_to(f"https://{middle.address}", {}, ca_file=signer.ca_file)
        assert told in await link(way)
        assert told in await request(way)
        assert (bytes(middle.heard), middle.connections) == (b"", 0)
        assert backend.attempts == 0


async def test_a_certificate_that_is_swapped_is_refused_at_the_next_connection(
    tmp_path: Path,
) -> None:
    signer, stranger = authority(tmp_path), authority(tmp_path, "Middle Authority")
    async with scripted_backend() as backend:
        async with tls_front(signer.server(), port_of(backend)) as front:
            way = way_to(f"https://{front.address}", {}, ca_file=signer.ca_file)
            assert [await link(way), await request(way)] == ["ok", "ok"]
            assert KEY.encode() in front.heard
            port = front.port
        async with tls_front(stranger.server(), port_of(backend), port=port) as middle:
            assert "cannot be trusted" in await link(way)
            assert "does not trust" in await request(way)
            assert middle.heard == b""


async def test_what_was_not_asked_for_insecurely_is_checked_and_what_was_is_not(
    tmp_path: Path,
) -> None:
    async with secured(tmp_path, "other.example") as (port, ca_file):
        url = f"https://127.0.0.1:{port}"
        assert "ok" not in (await link(way_to(url, {})), await request(way_to(url, {})))
        way = way_to(url, {}, ca_file=ca_file, insecure=True)
        assert [await link(way), await request(way)] == ["ok", "ok"]


async def test_a_server_that_speaks_no_tls_gets_no_plain_word(tmp_path: Path) -> None:
    async with scripted_backend() as backend:
        way = way_to(backend.url.replace("http:", "https:"), {})
        for told in (await link(way), await request(way)):
            assert "TLS" in told
        assert backend.attempts == 0


# --- a network's login page (row 32) -------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "401 Unauthorized", "502 Bad"])
async def test_a_web_page_is_no_verdict_on_the_key(status: str) -> None:
    async with page_front("<html>Welcome to the hotel</html>", status=status) as hotel:
        way = way_to(f"http://{hotel.address}", {})
        transport = WebSocketTransport(way, always(KEY))
        with pytest.raises(UnreachableError, match=r"web page|answers"):
            async with transport.connect():
                pass


async def test_a_login_page_in_place_of_a_secure_server_hears_no_key(tmp_path: Path) -> None:
    async with page_front("<html>hotel</html>", self_signed(tmp_path)) as hotel:
        way = way_to(f"https://{hotel.address}", {})
        assert "self-signed" in await link(way)
        assert "self-signed" in await request(way)
        assert hotel.heard == b""


async def test_a_redirect_is_not_followed() -> None:
    async with scripted_backend() as backend:
        more = f"Location: {backend.url}/v1/daemon/ws\r\n"
        async with page_front("moved", status="302 Found", more=more) as old:
            way = way_to(f"http://{old.address}", {})
            assert f"sends us on to {backend.url}" in await link(way)
            assert await request(way) != "ok"
            assert backend.attempts == 0


async def test_only_a_backend_rejects_a_key() -> None:
    async with scripted_backend() as backend:
        with pytest.raises(KeyRejectedError) as rejected:
            async with WebSocketTransport(Way(backend.url), always("sk_machine_x")).connect():
                pass
        assert not rejected.value.revoked


# --- proxies -------------------------------------------------------------------------------


async def test_link_and_requests_go_through_the_proxy_which_learns_nothing(tmp_path: Path) -> None:
    signer = authority(tmp_path)
    async with (
        scripted_backend() as backend,
        tls_front(signer.server(ELSEWHERE), port_of(backend)) as front,
        connect_proxy(detour=front.port) as proxy,
    ):
        environ = {"https_proxy": f"http://{proxy.address}"}
        way = way_to(f"https://{ELSEWHERE}", environ, ca_file=signer.ca_file)
        assert [await link(way), await request(way)] == ["ok", "ok"]
        assert proxy.targets == [f"{ELSEWHERE}:443"] * 2
        assert KEY.encode() not in proxy.heard
        spared = way_to(f"https://{ELSEWHERE}", environ | {"no_proxy": ".test"})
        assert "is not known" in await link(spared)
        assert "is not known" in await request(spared)
        assert len(proxy.targets) == 2


async def test_a_proxy_gets_its_user_and_password_and_says_when_they_are_wrong(
    tmp_path: Path,
) -> None:
    signer = authority(tmp_path)
    async with (
        scripted_backend() as backend,
        tls_front(signer.server(ELSEWHERE), port_of(backend)) as front,
        connect_proxy(user="ana", password="s3cret", detour=front.port) as proxy,
    ):
        for user, ok in (("ana:s3cret@", True), ("", False), ("ana:wrong@", False)):
            environ = {"https_proxy": f"http://{user}{proxy.address}"}
            way = way_to(f"https://{ELSEWHERE}", environ, ca_file=signer.ca_file)
            for told in (await link(way), await request(way)):
                assert (told == "ok") is ok
                if not ok:
                    assert "407" in told
                    assert "http://USER:PASSWORD@HOST:PORT" in told
                assert "s3cret" not in told
                assert "wrong" not in told
        assert KEY.encode() not in proxy.heard


@pytest.mark.parametrize("refusal", ["403 Forbidden", "502 Bad Gateway"])
async def test_a_proxy_that_refuses_is_named(refusal: str) -> None:
    async with connect_proxy(refusal=refusal) as proxy:
        way = way_to(f"https://{ELSEWHERE}", {"https_proxy": f"http://{proxy.address}"})
        for told in (await link(way), await request(way)):
            assert f"the proxy http://{proxy.address} answers {refusal}" in told
        assert KEY.encode() not in proxy.heard


async def test_a_proxy_that_is_not_there_is_named() -> None:
    way = way_to(f"https://{ELSEWHERE}", {"https_proxy": "http://127.0.0.1:9"})
    for told in (await link(way), await request(way)):
        assert "the proxy http://127.0.0.1:9" in told


async def test_a_proxy_in_the_middle_is_refused_unless_its_authority_is_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inspector = authority(tmp_path, "Corporate Inspection")
    async with (
        scripted_backend() as backend,
        tls_front(inspector.server(ELSEWHERE), port_of(backend)) as middle,
        connect_proxy(detour=middle.port) as proxy,
    ):
        environ = {"https_proxy": f"http://{proxy.address}"}
        way = way_to(f"https://{ELSEWHERE}", environ)
        for told in (await link(way), await request(way)):
            assert "does not trust" in told
        assert middle.heard == b""
        assert not [one for one in caplog.records if one.levelname == "ERROR"]
        trusted = way_to(f"https://{ELSEWHERE}", environ, ca_file=inspector.ca_file)
        assert [await link(trusted), await request(trusted)] == ["ok", "ok"]


async def test_this_machine_is_reached_directly_whatever_proxy_is_named() -> None:
    async with scripted_backend() as backend, connect_proxy() as proxy:
        names = ("http_proxy", "https_proxy", "all_proxy")
        way = way_to(backend.url, dict.fromkeys(names, f"http://{proxy.address}"))
        with anyio.fail_after(20):
            assert [await link(way), await request(way)] == ["ok", "ok"]
        assert proxy.connections == 0
