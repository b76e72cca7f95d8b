"""What nobody may do to the server: slow heads, slow bodies, bombs, foreign names and origins."""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import h11
import pytest
from anyio.abc import SocketStream
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudagent_backend.api.limits import OneWrite, is_address, is_loopback
from fakes.server import Backend, running_backend

HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@asynccontextmanager
async def wire(backend: Backend) -> AsyncGenerator[SocketStream]:
    """A bare connection to the backend."""
    port = int(backend.url.rsplit(":", 1)[1])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        yield stream


async def until_closed(stream: SocketStream) -> bytes:
    """Everything the server says until it closes or aborts the connection."""
    said = b""
    with anyio.fail_after(5):
        try:
            while True:
                said += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return said


def answering(request: bytes) -> OneWrite:
    connection = OneWrite(16_384)
    connection.receive_data(request + b"\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    return connection


def test_the_head_and_the_body_of_an_answer_are_written_at_once() -> None:
    connection = answering(HEAD)
    head = h11.Response(status_code=200, headers=[("Content-Length", "2")])
    assert connection.send(head) == b""
    written = connection.send(h11.Data(data=b"ok")) or b""
    assert written.startswith(b"HTTP/1.1 200")
    assert written.endswith(b"\r\n\r\nok")
    assert connection.send(h11.EndOfMessage()) == b""


def test_the_head_of_an_answer_without_a_length_or_a_body_waits_for_nothing() -> None:
    streamed = h11.Response(status_code=200, headers=[])
    assert (answering(HEAD).send(streamed) or b"").startswith(b"HTTP/1.1 200")
    connection = answering(HEAD.replace(b"GET", b"HEAD"))
    assert connection.send(h11.Response(status_code=200, headers=[("Content-Length", "2")])) == b""
    assert (connection.send(h11.EndOfMessage()) or b"").startswith(b"HTTP/1.1 200")


async def test_a_head_that_never_ends_ends_the_connection(tmp_path: Path) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.2) as backend:
        for start in (b"", b"G", HEAD):
            async with wire(backend) as stream:
                await stream.send(start) if start else None
                assert await until_closed(stream) == b""


async def test_dripping_bytes_do_not_put_the_deadline_off(tmp_path: Path) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.3) as backend, wire(backend) as stream:
        await stream.send(HEAD)

        async def drip() -> None:
            for _ in range(250):
                await stream.send(b"x")
                await anyio.sleep(0.02)  # the pace of the attack, not a wait for something

        with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
            await drip()


async def test_the_second_head_of_a_connection_has_a_deadline_too(tmp_path: Path) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.2) as backend, wire(backend) as stream:
        await stream.send(HEAD + b"\r\n" + HEAD)
        assert (await until_closed(stream)).count(b"200 OK") == 1


async def test_a_body_that_follows_its_answer_does_not_hold_the_connection(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.2) as backend, wire(backend) as stream:
        await stream.send(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert (await until_closed(stream)).count(b"200 OK") == 1


async def test_an_idle_connection_between_requests_is_kept(tmp_path: Path) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.2) as backend, wire(backend) as stream:
        await stream.send(HEAD + b"\r\n")
        with anyio.fail_after(5):
            assert b"200 OK" in await stream.receive()
        await anyio.sleep(0.4)  # what is tested is that this time changes nothing
        await stream.send(HEAD + b"\r\n")
        with anyio.fail_after(5):
            assert b"200 OK" in await stream.receive()


async def test_many_slow_heads_are_gone_while_honest_requests_are_answered(tmp_path: Path) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.5) as backend:
        port = int(backend.url.rsplit(":", 1)[1])
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for one in slow:
            one.sendall(HEAD)
        async with backend.client() as client:
            assert (await client.get("/v1/me")).status_code == 200
        await anyio.sleep(0.7)  # past the deadline of all of them
        for one in slow:
            one.settimeout(2)
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
            one.close()


async def test_a_body_that_never_ends_is_answered_and_cut(tmp_path: Path) -> None:
    async with running_backend(tmp_path, body_deadline_s=0.2) as backend, wire(backend) as stream:
        await stream.send(
            b"POST /v1/auth/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
        )
        said = await until_closed(stream)
        assert b" 400 " in said.split(b"\r\n")[0]
        assert b"did not arrive" in said


async def test_a_body_may_not_be_larger_than_the_limit_whatever_it_declares(
    tmp_path: Path,
) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with (
        running_backend(tmp_path, max_body_bytes=1_000) as backend,
        backend.client() as client,
    ):
        for body in (chunks(), b"x" * 1_001, b"x" * 8_000_000):
            answer = await client.post("/v1/tokens", content=body)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        fits = await client.post("/v1/tokens", content=b'{"name": "x"}' + b" " * 987)
        assert fits.status_code == 422, "read, but it did not say that it is JSON"


async def test_a_reader_who_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path, write_deadline_s=0.3) as backend,
        wire(backend) as stream,
    ):
        request = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        # Answers are far larger than requests: the server's buffers fill, and nobody reads them.

        async def never_read() -> None:
            while True:
                await stream.send(request * 20)

        with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
            await never_read()


async def test_a_head_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        fits = await client.get("/healthz", headers={"X-Long": "x" * 15_000})
        assert fits.status_code == 200
        for headers, query in (({"X-Long": "x" * 17_000}, ""), ({}, "q" * 17_000)):
            answer = await client.get(f"/healthz?{query}", headers=headers)
            assert answer.status_code == 400
            assert answer.headers["content-type"] == "application/problem+json"
        async with wire(backend) as stream:
            await stream.send(HEAD)
            said = b""
            with anyio.fail_after(5):
                try:
                    for _ in range(100):
                        await stream.send(b"X-Long: " + b"x" * 1_000)
                except anyio.BrokenResourceError:
                    pass
                else:
                    said = await until_closed(stream)
            assert not said or b" 400 " in said


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"]
)
async def test_what_is_no_http_is_a_problem(tmp_path: Path, garbage: bytes) -> None:
    async with running_backend(tmp_path, head_deadline_s=0.5) as backend, wire(backend) as stream:
        await stream.send(garbage)
        said = await until_closed(stream)
        assert not said or b"application/problem+json" in said


async def test_a_listener_on_this_machine_answers_only_to_its_own_names(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend, backend.client() as client:
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "["):
            answer = await client.get("/healthz", headers={"Host": host})
            assert answer.status_code in {400, 403}, host
        for host in ("localhost:1", "127.0.0.1", "[::1]:80", "cloudagent.localhost"):
            answer = await client.get("/healthz", headers={"Host": host})
            assert answer.status_code == 200, host


async def test_behind_a_public_url_its_name_is_answered_too(tmp_path: Path) -> None:
    public = "https://agents.example.com"
    async with running_backend(tmp_path, public_url=public) as backend, backend.client() as client:
        answer = await client.get("/healthz", headers={"Host": "agents.example.com"})
        assert answer.status_code == 200
        assert (await client.get("/healthz", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "file://",
        "http://sub.127.0.0.1",
        "http://127.0.0.1.evil",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/v1/events/ws", "/v1/daemon/ws"])
async def test_a_socket_of_a_foreign_page_is_refused(
    tmp_path: Path, origin: str, path: str
) -> None:
    async with running_backend(tmp_path) as backend:
        key = backend.ana.host.raw_key if "daemon" in path else backend.ana.token
        headers = {"Authorization": f"Bearer {key}", "Origin": origin}
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{backend.socket_url}{path}", additional_headers=headers)
        assert refused.value.response.status_code == 403


async def test_a_socket_from_the_page_itself_needs_its_cookie_and_origin(tmp_path: Path) -> None:
    async with running_backend(tmp_path, open_signup=True) as backend, backend.client() as client:
        body = {"email": "ben@example.com", "password": "correct horse"}
        await client.post("/v1/auth/signup", json=body)
        cookie = {"Cookie": f"cloudagent_session={client.cookies['cloudagent_session']}"}
        url = f"{backend.socket_url}/v1/events/ws"
        async with connect(url, additional_headers=cookie | {"Origin": backend.url}) as events:
            assert "ping" in str(await events.recv())
        for headers, status in ((cookie, 403), ({"Origin": backend.url}, 401)):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, additional_headers=headers)
            assert refused.value.response.status_code == status
            assert refused.value.response.headers["content-type"] == "application/problem+json"


async def test_a_socket_takes_no_frame_over_the_limit_and_no_deflate(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        headers = {"Authorization": f"Bearer {backend.ana.host.raw_key}"}
        url = f"{backend.socket_url}/v1/daemon/ws"
        async with connect(url, additional_headers=headers) as link:
            assert not link.protocol.extensions
            await link.send("x" * 1_048_577)
            with pytest.raises(ConnectionClosed):
                await link.recv()
            assert link.close_code in {1009, 4413}


@pytest.mark.parametrize("path", ["/v1/events/ws", "/v1/daemon/ws"])
async def test_fragments_of_a_message_count_together(tmp_path: Path, path: str) -> None:
    async def pieces() -> AsyncGenerator[str]:
        while True:
            yield "x" * 300_000

    async with running_backend(tmp_path) as backend:
        key = backend.ana.host.raw_key if "daemon" in path else backend.ana.token
        headers = {"Authorization": f"Bearer {key}"}
        async with connect(f"{backend.socket_url}{path}", additional_headers=headers) as link:
            with anyio.fail_after(20), pytest.raises(ConnectionClosed):
                await link.send(pieces())
            # What is still being sent may reset the connection before its last word is read.
            assert link.close_code in {1009, 1006}


async def test_an_unknown_socket_is_refused(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{backend.socket_url}/v1/nothing")
        assert refused.value.response.status_code == 403


def test_names_and_addresses_are_told_apart() -> None:
    for name in ("localhost", "x.localhost", "127.0.0.1", "::1", "127.9.9.9"):
        assert is_loopback(name)
        assert is_address(name)
    for name in ("10.0.0.1", "2001:db8::1"):
        assert is_address(name)
        assert not is_loopback(name)
    for name in ("", "example.com", "localhost.evil", "127.0.0.1.evil", "0x7f000001"):
        assert not is_address(name)
        assert not is_loopback(name)
