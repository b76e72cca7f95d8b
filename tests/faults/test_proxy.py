"""Each toxic of the fault proxy, seen from both ends of real sockets."""

import contextlib
import errno
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from faults.proxy import (
    Bandwidth,
    Duplicate,
    Latency,
    LimitData,
    Proxy,
    Replay,
    Slicer,
    Stall,
    running_proxy,
)
from faults.wire import Message, Splitter

DEADLINE_S = 5.0


@contextlib.contextmanager
def tcp_server(talk: Callable[[socket.socket], None]) -> Generator[tuple[str, int]]:
    """A server that lets `talk` have each connection, in a thread."""
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(DEADLINE_S)
            talk(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=serve_one, args=(client,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(DEADLINE_S)


def echo(client: socket.socket) -> None:
    while data := client.recv(65_536):
        client.sendall(data)


@contextlib.contextmanager
def echo_through_proxy() -> Generator[tuple[Proxy, socket.socket]]:
    with (
        tcp_server(echo) as upstream,
        running_proxy(upstream, websocket=False) as proxy,
        socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as client,
    ):
        yield proxy, client


def receive(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = client.recv(size - len(got))
        assert data, f"ended after {len(got)} bytes"
        got += data
    return got


def silent(client: socket.socket, for_s: float) -> bool:
    client.settimeout(for_s)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(DEADLINE_S)
    return False


# --- bytes ---


def test_without_a_toxic_everything_passes_and_an_end_passes_too() -> None:
    with echo_through_proxy() as (_, client):
        sent = bytes(range(256)) * 4_000
        threading.Thread(target=client.sendall, args=(sent,)).start()
        assert receive(client, len(sent)) == sent
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_latency_holds_each_chunk_back_and_keeps_the_order() -> None:
    with echo_through_proxy() as (proxy, client):
        with proxy.toxic(Latency(0.2, jitter_s=0.05), "down"):
            began = time.monotonic()
            for word in (b"one ", b"two ", b"three"):
                client.sendall(word)
            assert receive(client, 13) == b"one two three"
            assert time.monotonic() - began >= 0.15
        began = time.monotonic()
        client.sendall(b"x")
        receive(client, 1)
        assert time.monotonic() - began < 0.15


def test_bandwidth_lets_so_many_bytes_pass_in_a_second() -> None:
    with echo_through_proxy() as (proxy, client), proxy.toxic(Bandwidth(20_000), "up"):
        began = time.monotonic()
        client.sendall(b"x" * 10_000)
        receive(client, 10_000)
        assert 0.4 <= time.monotonic() - began < 3


def test_the_slicer_writes_no_more_than_its_size_at_once() -> None:
    sizes: list[int] = []

    def measure(client: socket.socket) -> None:
        while data := client.recv(100):
            sizes.append(len(data))
        client.sendall(b".")

    with (
        tcp_server(measure) as upstream,
        running_proxy(upstream, websocket=False) as proxy,
        socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as client,
        proxy.toxic(Slicer(1, gap_s=0.005)),
    ):
        client.sendall(b"abcdefghij")
        client.shutdown(socket.SHUT_WR)
        receive(client, 1)
    assert sum(sizes) == 10
    assert len(sizes) > 4  # the reader may find two of them at once, not all


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stalled_direction_is_silent_until_it_flows_again(direction: Any) -> None:
    with echo_through_proxy() as (proxy, client):
        with proxy.toxic(Stall(), direction):
            client.sendall(b"hello")
            assert silent(client, 0.2)
            assert proxy.open == 1
        assert receive(client, 5) == b"hello"


def test_a_stall_keeps_even_the_end_of_a_connection_from_the_other_side() -> None:
    ended = threading.Event()

    def wait_for_end(client: socket.socket) -> None:
        client.recv(1)
        ended.set()

    with (
        tcp_server(wait_for_end) as upstream,
        running_proxy(upstream, websocket=False) as proxy,
    ):
        with socket.create_connection((proxy.host, proxy.port)):
            proxy.until(lambda p: p.open == 1)
            stall = Stall()
            proxy.add(stall)
        assert not ended.wait(0.2)
        proxy.remove(stall)
        assert ended.wait(DEADLINE_S)


def test_a_toxic_for_current_connections_leaves_new_ones_alone() -> None:
    with echo_through_proxy() as (proxy, client):
        client.sendall(b"a")
        receive(client, 1)
        with proxy.toxic(Stall(), current=True):
            client.sendall(b"b")
            with socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as other:
                other.sendall(b"c")
                assert receive(other, 1) == b"c"
            assert silent(client, 0.1)


def test_a_reset_reaches_both_sides_as_a_reset() -> None:
    heard: list[int | None] = []

    def hear(client: socket.socket) -> None:
        client.sendall(b"!")
        try:
            client.recv(1)
        except OSError as error:
            heard.append(error.errno)

    with tcp_server(hear) as upstream, running_proxy(upstream, websocket=False) as proxy:
        with socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as client:
            receive(client, 1)
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        proxy.until(lambda p: p.open == 0)
    assert heard == [errno.ECONNRESET]


def test_a_close_is_an_orderly_end() -> None:
    with echo_through_proxy() as (proxy, client):
        client.sendall(b"x")
        receive(client, 1)
        proxy.close()
        assert client.recv(1) == b""


@pytest.mark.parametrize("reset", [False, True])
def test_a_limit_ends_the_connection_after_so_many_bytes(reset: bool) -> None:
    got: list[bytes] = []

    def collect(client: socket.socket) -> None:
        while data := client.recv(100):
            got.append(data)

    with tcp_server(collect) as upstream, running_proxy(upstream, websocket=False) as proxy:
        with socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as client:
            proxy.add(LimitData(7, reset=reset), "up")
            client.sendall(b"0123456789")
            if reset:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                assert client.recv(1) == b""
        proxy.until(lambda p: p.open == 0)
    assert b"".join(got) == b"0123456" or reset  # a reset may overtake what it follows


def test_new_connections_are_refused_until_they_are_allowed_again() -> None:
    with echo_through_proxy() as (proxy, client):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S)
        client.sendall(b"still here")
        assert receive(client, 10) == b"still here"
        proxy.allow()
        with socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as other:
            other.sendall(b"again")
            assert receive(other, 5) == b"again"


def test_a_client_of_a_server_that_is_down_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    with (
        running_proxy(nobody, websocket=False) as proxy,
        pytest.raises(ConnectionResetError),
        # The reset may come before the client knows that it was connected.
        socket.create_connection((proxy.host, proxy.port), timeout=DEADLINE_S) as client,
    ):
        client.recv(1)


# --- WebSocket messages ---


class Desk:
    """A WebSocket server that welcomes, keeps what it hears, and says what the test wants."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.connections: list[ServerConnection] = []
        self._news = threading.Condition()

    def __call__(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        for text in connection:
            frame = json.loads(text)
            with self._news:
                self.heard.append(frame)
                self._news.notify_all()
            if frame.get("type") == "hello":
                connection.send(json.dumps({"type": "welcome"}))

    def until(self, count: int) -> list[Any]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.heard) >= count, DEADLINE_S), self.heard
        return self.heard


@contextlib.contextmanager
def desk_through_proxy() -> Generator[tuple[Desk, Proxy]]:
    desk = Desk()
    with serve(desk, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with running_proxy(server.socket.getsockname()) as proxy:
            yield desk, proxy
        server.shutdown()
        thread.join()


def dial(proxy: Proxy) -> Any:
    return connect(proxy.url.replace("http", "ws"), compression=None)


def say(socket_: Any, **frame: Any) -> None:
    socket_.send(json.dumps(frame))


def hear(client: Any) -> Any:
    return json.loads(client.recv(timeout=DEADLINE_S))


def test_each_numbered_frame_is_doubled_and_nothing_else_is() -> None:
    with desk_through_proxy() as (desk, proxy), dial(proxy) as client:
        proxy.add(Duplicate())
        say(client, type="hello")
        assert hear(client) == {"type": "welcome"}
        say(client, type="send", seq=1)
        say(client, type="ack", seq=9)
        heard = desk.until(4)
        assert [frame["type"] for frame in heard] == ["hello", "send", "send", "ack"]
        say(desk.connections[0], type="deliver", seq=1)
        assert [hear(client), hear(client)] == [{"type": "deliver", "seq": 1}] * 2


def test_a_message_in_many_frames_is_doubled_whole_around_a_ping() -> None:
    with desk_through_proxy() as (desk, proxy), dial(proxy) as client:
        proxy.add(Duplicate())
        client.send(iter(['{"type": "send",', ' "seq": 1, "text": "', "é" * 70_000, '"}']))
        client.ping().wait(DEADLINE_S)
        assert [frame["text"] for frame in desk.until(2)] == ["é" * 70_000] * 2


def test_frames_of_an_older_connection_come_again_after_the_next_welcome() -> None:
    with desk_through_proxy() as (desk, proxy):
        proxy.add(Replay())
        with dial(proxy) as client:
            say(client, type="hello")
            hear(client)
            say(client, type="send", seq=1)
            desk.until(2)
            say(desk.connections[0], type="deliver", seq=1)
            hear(client)
            proxy.reset()
        with dial(proxy) as client:
            say(client, type="hello")
            assert [hear(client)["type"] for _ in range(2)] == ["welcome", "deliver"]
            say(client, type="send", seq=2)
            new = desk.until(5)[2:]
            assert [(frame["type"], frame.get("seq")) for frame in new] == [
                ("hello", None),
                ("send", 1),
                ("send", 2),
            ]


def test_the_proxy_tells_which_frames_it_saw() -> None:
    with desk_through_proxy() as (_, proxy), dial(proxy) as client:
        say(client, type="hello")
        hear(client)
        proxy.until(lambda p: p.count("welcome") == 1)
        assert [(s.connection, s.direction, s.frame["type"]) for s in proxy.seen] == [
            (1, "up", "hello"),
            (1, "down", "welcome"),
        ]


def test_a_websocket_survives_being_sliced_to_single_bytes() -> None:
    with desk_through_proxy() as (desk, proxy):
        proxy.add(Slicer(1))
        with dial(proxy) as client:
            say(client, type="hello", text="x" * 300)
            assert hear(client) == {"type": "welcome"}
        assert desk.heard[0]["text"] == "x" * 300


@given(
    texts=st.lists(st.text(max_size=200), max_size=5),
    mask=st.booleans(),
    cuts=st.lists(st.integers(1, 50), min_size=1),
    long=st.booleans(),
)
def test_messages_are_found_however_the_bytes_are_cut(
    texts: list[str], mask: bool, cuts: list[int], long: bool
) -> None:
    texts = texts + ["y" * 66_000] * long
    head = b"GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n"
    wire = head + b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=mask) for text in texts)
    splitter, out, start, turn = Splitter(), list[Any](), 0, 0
    while start < len(wire):
        size = cuts[turn % len(cuts)] * (1_000 if long else 1)
        out += splitter.feed(wire[start : start + size])
        start, turn = start + size, turn + 1
    assert out[0] == head
    assert [message.payload.decode() for message in out[1:]] == texts
    assert b"".join(m.raw if isinstance(m, Message) else m for m in out) == wire
    assert splitter.rest() == b""


# --- as a program ---


def test_the_program_proxies_and_does_what_it_is_told() -> None:
    with tcp_server(echo) as (host, port):
        program = subprocess.Popen(
            [sys.executable, "-m", "faults.proxy", f"{host}:{port}", "--latency", "0.01"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdin
        assert program.stdout
        with program:
            proxy_port = int(program.stdout.readline().partition(";")[0].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", proxy_port), timeout=DEADLINE_S) as client:
                # Not HTTP, so it passes when its end shows that no head will come.
                client.sendall(b"plain\r\n\r\n")
                assert receive(client, 9) == b"plain\r\n\r\n"
                program.stdin.write("reset\n")
                program.stdin.flush()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            program.stdin.write("quit\n")
            program.stdin.close()
            assert program.wait(DEADLINE_S) == 0
