"""A scripted CloudAgent server: real sockets, and an event log that can be cut and trimmed."""

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

Json = dict[str, Any]
NOW = "2026-11-20T12:00:00Z"


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


#: In place of an answer: the request is read, then the connection is reset.
DROP = Answer(status=0)
Script = Answer | Callable[[Request], Answer]


class Server:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.log: list[Json] = []
        #: For each stream that is opened, after how many frames it is reset; then no cuts.
        self.cuts: deque[int] = deque()
        #: Events up to this id are no longer kept.
        self.trimmed = 0
        #: Is told of each stream that is opened.
        self.on_stream: Callable[[Request], object] = lambda request: None
        self._scripts: dict[tuple[str, str], deque[Script]] = {}
        self._changed = threading.Condition()
        self._closing = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                server.handle(self)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

            @override
            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def on(self, method: str, path: str, *scripts: Script) -> None:
        """How requests are answered, in their order; the last one for all that follow."""
        self._scripts[method, path] = deque(scripts)

    def publish(self, kind: str, data: Json) -> int:
        """Append to the event log; its followers see it at once. The event's id."""
        with self._changed:
            number = len(self.log) + 1
            self.log.append({"id": number, "type": kind, "at": NOW, "data": data})
            self._changed.notify_all()
            return number

    def delta(self, run_id: str, block: int, offset: int, text: str) -> None:
        """An event that is not kept: it has the id of the newest kept one."""
        data = {"run_id": run_id, "conversation_id": "conv_1", "block": block}
        with self._changed:
            newest = max((event["id"] for event in self.log), default=0)
            event = {"id": newest, "type": "run.delta", "at": NOW}
            self.log.append(event | {"data": data | {"offset": offset, "text": text}})
            self._changed.notify_all()

    def sent(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    @contextmanager
    def running(self) -> Generator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        path, _, query = http.path.partition("?")
        raw = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        request = Request(http.command, path, query, dict(http.headers), body)
        self.requests.append(request)
        scripts = self._scripts.get((http.command, path))
        if scripts is None and path == "/v1/events":
            self._stream(http, request)
        elif scripts is None:
            _answer(http, problem(404, "not_found", f"nothing at {path}"))
        else:
            script = scripts[0] if len(scripts) == 1 else scripts.popleft()
            _answer(http, script if isinstance(script, Answer) else script(request))

    def _stream(self, http: BaseHTTPRequestHandler, request: Request) -> None:
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream; charset=utf-8")
        http.send_header("Connection", "close")
        http.end_headers()
        left = self.cuts.popleft() if self.cuts else -1
        position = len(self.log)
        first = {"id": self._newest(), "type": "ping", "at": NOW, "data": {}}
        if after := request.headers.get("Last-Event-ID"):
            if int(after) < self.trimmed:
                first["type"] = "resync"
            else:
                position = self._index_after(int(after))
                first["id"] = int(after)
        self.on_stream(request)
        http.wfile.write(b"retry: 1000\n\n")
        outgoing = [first]
        while outgoing:
            for event in outgoing:
                if left == 0:
                    _reset(http)
                    return
                left -= 1
                text = f"id: {event['id']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
                try:
                    http.wfile.write(text.encode())
                except OSError:
                    return
            outgoing = self._after(position)
            position += len(outgoing)
        http.close_connection = True

    def _after(self, position: int) -> list[Json]:
        """The next events of the log, as soon as there are any; none when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self.log) > position)
            return [] if self._closing else self.log[position:]

    def _newest(self) -> int:
        return max((event["id"] for event in self.log), default=0)

    def _index_after(self, event_id: int) -> int:
        kept = [
            i for i, e in enumerate(self.log) if e["type"] != "run.delta" and e["id"] > event_id
        ]
        return kept[0] if kept else len(self.log)


def problem(
    status: int, code: str, detail: str, *, next_step: str | None = None, **headers: str
) -> Answer:
    body = {"title": code, "status": status, "code": code, "detail": detail, "next": next_step}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body, {"Content-Type": "application/problem+json"} | names)


def page(*items: Json, next_cursor: str | None = None) -> Answer:
    return Answer(body={"data": list(items), "next_cursor": next_cursor})


def _answer(http: BaseHTTPRequestHandler, answer: Answer) -> None:
    if answer is DROP:
        _reset(http)
        return
    raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    http.send_response(answer.status)
    for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
        http.send_header(name, value)
    http.send_header("Content-Length", str(len(raw)))
    http.end_headers()
    http.wfile.write(raw)


def _reset(http: BaseHTTPRequestHandler) -> None:
    """End the connection by RST, as a died server or a cut line does."""
    linger = struct.pack("ii", 1, 0)
    http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    http.close_connection = True
    http.wfile.close()
    http.rfile.close()
    http.connection.close()
