"""A TCP proxy that makes a network bad on demand, for tests on loopback.

    with running_proxy(("127.0.0.1", 8700)) as proxy:       # proxy.url instead of the backend's
        with proxy.toxic(Latency(2.0), "up"):
            ...
        proxy.reset()                                        # RST to both sides, now

Bytes toxics (`Latency`, `Bandwidth`, `Slicer`, `Loss`, `Stall`, `LimitData`) act on any TCP stream.
Message toxics (`Duplicate`, `Replay`, `Gap`) and the record `seen` need WebSocket messages. Toxics are put
on and taken off while connections are open; `docs/testing.md` has a table of them.
"""

import argparse
import random
import socket
import struct
import sys
import threading
import time
from asyncio import get_running_loop
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import anyio
import anyio.from_thread
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from faults.wire import Message, Splitter

#: `up` goes from the client to the server.
Direction: TypeAlias = Literal["up", "down"]
BOTH: Final[tuple[Direction, Direction]] = ("up", "down")
_CHUNK: Final = 65_536
#: Chunks between reader and writer of a direction; when they are full, TCP holds the sender back.
_QUEUED: Final = 64
_REPLAYED: Final = 256


# --- toxics ---------------------------------------------------------------------------


@dataclass(eq=False)
class Latency:
    """Each chunk arrives so much later; chunks keep their order."""

    seconds: float
    jitter_s: float = 0.0


@dataclass(eq=False)
class Bandwidth:
    bytes_per_s: float


@dataclass(eq=False)
class Slicer:
    """No write is larger than `size` bytes."""

    size: int
    gap_s: float = 0.0


@dataclass(eq=False)
class Loss:
    """Each chunk is lost with this chance: it, and all behind it, come when it was sent again.

    As TCP shows loss: a lost segment comes `rto_s` later; if it is lost again, twice as long after.
    """

    rate: float
    rto_s: float = 1.0


@dataclass(eq=False)
class Gap:
    """The next so many numbered frames vanish, or others that are wanted; what follows does not."""

    frames: int = 1
    #: Which frames vanish, by their JSON object; None: any that is numbered.
    wanted: Callable[[dict[str, Any]], bool] | None = None
    #: When each of them came, Unix seconds.
    lost_at: list[float] = field(default_factory=list[float])


@dataclass(eq=False)
class Stall:
    """Half-open: the sockets stay, nothing passes, not even an end. What waited passes afterwards."""


@dataclass(eq=False)
class LimitData:
    """After so many more bytes the connection ends: by a reset, wherever that cuts a frame, or closed."""

    size: int
    reset: bool = False
    passed: int = 0


@dataclass(eq=False)
class Duplicate:
    """Each numbered frame is sent twice."""


@dataclass(eq=False)
class Replay:
    """Once a new connection is welcomed, the numbered frames of older ones are sent again in it."""


Toxic: TypeAlias = (
    Latency | Bandwidth | Slicer | Loss | Stall | LimitData | Duplicate | Replay | Gap
)


@dataclass(eq=False)
class _Placed:
    toxic: Toxic
    directions: tuple[Direction, ...]
    #: Numbers of the connections it acts on; None: all, also new ones.
    connections: frozenset[int] | None


# --- connections ----------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A WebSocket message that came to the proxy, when, and in which connection (from 1)."""

    at: float
    connection: int
    direction: Direction
    frame: dict[str, Any]


@dataclass(eq=False)
class _Connection:
    number: int
    client: socket.socket
    server: socket.socket
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    welcomed: bool = False
    #: Directions in which older frames have been replayed.
    replayed: set[Direction] = field(default_factory=set[Direction])

    def cut(self, *, reset: bool) -> None:
        """Ends it: by RST, or by a close. The pumps' cancellation closes the sockets."""
        if reset:
            for end in (self.client, self.server):
                with suppress(OSError):  # gone already
                    # Linger for 0 s: close() sends RST (socket(7), SO_LINGER).
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.scope.cancel()


@dataclass(eq=False)
class _Flow:
    """One direction of a connection."""

    connection: _Connection
    direction: Direction
    splitter: Splitter | None
    broken: bool = False

    @property
    def source(self) -> socket.socket:
        return self.connection.client if self.direction == "up" else self.connection.server

    @property
    def target(self) -> socket.socket:
        return self.connection.server if self.direction == "up" else self.connection.client


class Proxy:
    """Made by `running_proxy`; its methods may be called from any thread.

    Args:
        upstream: where connections go on to.
        websocket: whether to look for WebSocket messages; False for other protocols.
        seed: of the jitter.
    """

    def __init__(self, upstream: tuple[str, int], *, websocket: bool, seed: int) -> None:
        self.upstream = upstream
        self.host, self.port = "127.0.0.1", 0
        #: All frames that came to the proxy, in order.
        self.seen: list[Seen] = []
        #: Connections that were accepted so far.
        self.accepted = 0
        self._websocket = websocket
        self._random = random.Random(seed)
        self._placed: list[_Placed] = []
        self._live: dict[int, _Connection] = {}
        self._older: dict[Direction, list[tuple[int, bytes]]] = {"up": [], "down": []}
        self._news = threading.Condition()
        self._changed = anyio.Event()
        self._stopped = anyio.Event()
        self._listener: socket.socket | None = None
        self._accepting: anyio.CancelScope | None = None
        self._refusing = False
        self._portal: anyio.from_thread.BlockingPortal | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # --- for the test ---

    def add(
        self,
        toxic: Toxic,
        *directions: Direction,
        current: bool = False,
    ) -> None:
        """Puts a toxic on, in both directions if none is named.

        Args:
            current: it acts on the connections that are open now, and not on new ones.
        """
        self._call(self._add, toxic, directions or BOTH, current)

    def remove(self, toxic: Toxic) -> None:
        self._call(self._remove, toxic)

    @contextmanager
    def toxic(self, toxic: Toxic, *directions: Direction, current: bool = False) -> Generator[None]:
        """The toxic is on inside of the block."""
        self.add(toxic, *directions, current=current)
        try:
            yield
        finally:
            self.remove(toxic)

    def reset(self) -> None:
        """All open connections end by RST, on both sides."""
        self._call(self._cut, True)

    def close(self) -> None:
        """All open connections are closed, in order."""
        self._call(self._cut, False)

    def refuse(self) -> None:
        """New connections are refused from now on; open ones stay."""
        self._call(self._stop_listening)

    def allow(self) -> None:
        """New connections are accepted again, on the same port."""
        self._call(self._listen)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def until(self, wanted: Callable[["Proxy"], bool], deadline_s: float = 30.0) -> None:
        """Waits for something that the proxy sees: a frame, a connection, an end.

        Raises:
            AssertionError: not within the deadline.
        """
        with self._news:
            if not self._news.wait_for(lambda: wanted(self), deadline_s):
                tail = [(s.connection, s.direction, s.frame.get("type")) for s in self.seen[-20:]]
                raise AssertionError(f"not within {deadline_s} s; last frames: {tail}")

    def never(self, unwanted: Callable[["Proxy"], bool], for_s: float) -> None:
        """Looks on for so long.

        Raises:
            AssertionError: it was seen.
        """
        with self._news:
            assert not self._news.wait_for(lambda: unwanted(self), for_s), "it came all the same"

    def count(self, kind: str, *, connection: int | None = None) -> int:
        """How many frames of a type came to the proxy."""
        return sum(
            seen.frame.get("type") == kind and connection in (None, seen.connection)
            for seen in list(self.seen)
        )

    def _call(self, what: Callable[..., Any], *arguments: Any) -> None:
        assert self._portal, "the proxy does not run"
        self._portal.call(what, *arguments)

    # --- in the proxy's thread ---

    async def serve(
        self, portal: anyio.from_thread.BlockingPortal, *, task_status: TaskStatus[None]
    ) -> None:
        """Until `stop` is called."""
        self._portal = portal
        self._changed, self._stopped = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            self._listen()
            tasks.start_soon(self._accept, tasks)
            task_status.started()
            await self._stopped.wait()
            await self._stop_listening()
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """Cuts what is open and accepts nothing more."""
        self._call(self._stopped.set)

    def _add(self, toxic: Toxic, directions: tuple[Direction, ...], current: bool) -> None:
        connections = frozenset(self._live) if current else None
        self._placed.append(_Placed(toxic, directions, connections))
        self._tell()

    def _remove(self, toxic: Toxic) -> None:
        self._placed = [placed for placed in self._placed if placed.toxic is not toxic]
        self._tell()

    def _cut(self, reset: bool) -> None:
        for connection in list(self._live.values()):
            connection.cut(reset=reset)

    def _listen(self) -> None:
        self._refusing = False
        if self._listener:
            return
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(128)
        listener.setblocking(False)
        self._listener, self.port = listener, listener.getsockname()[1]
        self._tell()

    async def _stop_listening(self) -> None:
        self._refusing = True
        if self._accepting:
            self._accepting.cancel()
        while self._listener:
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        with self._news:
            self._news.notify_all()

    async def _accept(self, tasks: anyio.abc.TaskGroup) -> None:
        loop = get_running_loop()
        while True:
            while (listener := self._listener) is None:
                await self._changed.wait()
            with listener, anyio.CancelScope() as self._accepting:
                while not self._refusing:
                    client, _ = await loop.sock_accept(listener)
                    tasks.start_soon(self._serve, client)
            self._listener = None
            self._tell()

    async def _serve(self, client: socket.socket) -> None:
        self.accepted += 1
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection = _Connection(self.accepted, client, server)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._live[connection.number] = connection
        self._tell()
        try:
            with connection.scope:
                await self._connect(connection)
                async with anyio.create_task_group() as pumps:
                    for direction in BOTH:
                        pumps.start_soon(self._pump, connection, direction)
        finally:
            client.close()
            server.close()
            del self._live[connection.number]
            self._tell()

    async def _connect(self, connection: _Connection) -> None:
        try:
            await get_running_loop().sock_connect(connection.server, self.upstream)
        except OSError:
            connection.cut(reset=True)
            await anyio.lowlevel.checkpoint()

    async def _pump(self, connection: _Connection, direction: Direction) -> None:
        flow = _Flow(connection, direction, Splitter() if self._websocket else None)
        put, take = anyio.create_memory_object_stream[tuple[float, bytes]](_QUEUED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, flow, put)
            await self._write(flow, take)

    async def _read(self, flow: _Flow, put: MemoryObjectSendStream[tuple[float, bytes]]) -> None:
        loop = get_running_loop()
        with put:
            try:
                while data := await loop.sock_recv(flow.source, _CHUNK):
                    await put.send((time.monotonic(), data))
            except OSError:
                flow.broken = True
            except anyio.BrokenResourceError:
                pass  # the writer has gone first

    async def _write(
        self, flow: _Flow, take: MemoryObjectReceiveStream[tuple[float, bytes]]
    ) -> None:
        with take:
            try:
                async for arrived, data in take:
                    for piece in self._pieces(flow, data):
                        await self._pass(flow, arrived, piece)
                if flow.splitter and (rest := flow.splitter.rest()):
                    await self._pass(flow, time.monotonic(), rest)
            except OSError:
                flow.broken = True
            await self._unless_stalled(flow)
            if flow.broken:
                flow.connection.cut(reset=True)
            else:
                with suppress(OSError):
                    flow.target.shutdown(socket.SHUT_WR)

    # --- messages ---

    def _pieces(self, flow: _Flow, data: bytes) -> list[bytes]:
        if flow.splitter is None:
            return [data]
        out: list[bytes] = []
        for piece in flow.splitter.feed(data):
            if isinstance(piece, Message):
                out += self._message(flow, piece)
            else:
                out.append(piece)
        return out

    def _message(self, flow: _Flow, message: Message) -> list[bytes]:
        """What goes out for a message that came in."""
        connection, frame = flow.connection, message.frame
        self.seen.append(Seen(time.time(), connection.number, flow.direction, frame))
        self._tell()
        out = [message.raw]
        if message.seq is not None:
            older = self._older[flow.direction]
            older.append((connection.number, message.raw))
            del older[:-_REPLAYED]
            if self._active(flow, Duplicate):
                out.append(message.raw)
        for gap in self._active(flow, Gap):
            meant = gap.wanted(frame) if gap.wanted else message.seq is not None
            if meant and len(gap.lost_at) < gap.frames:
                gap.lost_at.append(time.time())
                self._tell()
                out.clear()
        if frame.get("type") == "welcome":
            connection.welcomed = True
            return out + self._replay(flow)
        # Before the client's next message, which it sends after it has read the welcome.
        return self._replay(flow) + out

    def _replay(self, flow: _Flow) -> list[bytes]:
        connection = flow.connection
        ready = connection.welcomed and flow.direction not in connection.replayed
        if not ready or not self._active(flow, Replay):
            return []
        connection.replayed.add(flow.direction)
        older = self._older[flow.direction]
        return [raw for number, raw in older if number < connection.number]

    # --- bytes ---

    async def _pass(self, flow: _Flow, arrived: float, data: bytes) -> None:
        delays = [
            toxic.seconds + self._random.uniform(-toxic.jitter_s, toxic.jitter_s)
            for toxic in self._active(flow, Latency)
        ]
        delays += [self._lost_for(loss) for loss in self._active(flow, Loss)]
        if delays:
            await anyio.sleep(max(0.0, arrived + sum(delays) - time.monotonic()))
        while data:
            await self._unless_stalled(flow)
            size, gap_s = self._slice(flow)
            part, data = data[:size], data[size:]
            await self._send(flow, part)
            await anyio.sleep(gap_s(len(part)))

    def _lost_for(self, loss: Loss) -> float:
        """How much later a chunk comes, seconds; mostly 0."""
        late, again = 0.0, loss.rto_s
        while self._random.random() < loss.rate:
            late, again = late + again, again * 2
        return late

    def _slice(self, flow: _Flow) -> tuple[int, Callable[[int], float]]:
        """The size of the next write, and the time to wait after it by what was written."""
        slicers, bands = self._active(flow, Slicer), self._active(flow, Bandwidth)
        rate = min((band.bytes_per_s for band in bands), default=float("inf"))
        sizes = [slicer.size for slicer in slicers]
        if bands:
            sizes.append(max(1, int(rate / 50)))
        gap_s = max((slicer.gap_s for slicer in slicers), default=0.0)
        return min(sizes, default=_CHUNK), lambda written: max(gap_s, written / rate)

    async def _send(self, flow: _Flow, data: bytes) -> None:
        loop = get_running_loop()
        for limit in self._active(flow, LimitData):
            data = data[: max(0, limit.size - limit.passed)]
            limit.passed += len(data)
            if limit.passed >= limit.size:
                await loop.sock_sendall(flow.target, data)
                flow.connection.cut(reset=limit.reset)
                await anyio.lowlevel.checkpoint()
        await loop.sock_sendall(flow.target, data)

    async def _unless_stalled(self, flow: _Flow) -> None:
        while self._active(flow, Stall):
            await self._changed.wait()

    def _active(self, flow: _Flow, kind: type[Any]) -> list[Any]:
        return [
            placed.toxic
            for placed in self._placed
            if isinstance(placed.toxic, kind)
            and flow.direction in placed.directions
            and (placed.connections is None or flow.connection.number in placed.connections)
        ]


@contextmanager
def running_proxy(
    upstream: tuple[str, int], *, websocket: bool = True, seed: int = 0
) -> Generator[Proxy]:
    """A proxy on a free port of 127.0.0.1, in a thread of its own."""
    proxy = Proxy(upstream, websocket=websocket, seed=seed)
    with anyio.from_thread.start_blocking_portal() as portal:
        end, _ = portal.start_task(proxy.serve, portal)
        try:
            yield proxy
        finally:
            proxy.stop()
            end.result()


# --- as a program ---------------------------------------------------------------------


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults.proxy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("upstream", help="HOST:PORT to go on to")
    parser.add_argument("--latency", type=float, metavar="S", help="seconds, both ways")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="S")
    parser.add_argument("--bandwidth", type=float, metavar="BYTES_PER_S")
    parser.add_argument("--slice", type=int, metavar="BYTES")
    parser.add_argument("--duplicate", action="store_true")
    parser.add_argument("--replay", action="store_true")
    return parser.parse_args(arguments)


_COMMANDS: Final = "commands: reset | close | refuse | allow | stall | flow | quit"


def main(arguments: list[str] | None = None) -> int:
    """Prints its URL, then does what each line of standard input says."""
    options = _options(arguments)
    host, _, port = options.upstream.rpartition(":")
    toxics: list[Toxic] = []
    toxics += [Latency(options.latency, options.jitter)] if options.latency else []
    toxics += [Bandwidth(options.bandwidth)] if options.bandwidth else []
    toxics += [Slicer(options.slice)] if options.slice else []
    toxics += [Duplicate()] if options.duplicate else []
    toxics += [Replay()] if options.replay else []
    stall = Stall()
    with running_proxy((host or "127.0.0.1", int(port))) as proxy:
        for toxic in toxics:
            proxy.add(toxic)
        print(f"Proxy on {proxy.url}; {_COMMANDS}", flush=True)
        commands: dict[str, Callable[[], None]] = {
            "reset": proxy.reset,
            "close": proxy.close,
            "refuse": proxy.refuse,
            "allow": proxy.allow,
            "stall": lambda: proxy.add(stall),
            "flow": lambda: proxy.remove(stall),
        }
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            if command := commands.get(line.strip()):
                command()
            else:
                print(_COMMANDS, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
