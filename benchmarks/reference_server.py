"""The bare reference: the least that takes a message, keeps it, pushes it and takes its ack.

Starlette, one table, one writer thread with group commit; no accounts, no ladder, no events, no
resume. It has the paths and frames of the backend, as far as the load needs them, so that the same
load runs against both. `python -m benchmarks.reference_server DATABASE`
"""

import asyncio
import gc
import json
import queue
import socket
import sqlite3
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

MAX_BATCH: Final = 512
Statement = tuple[str, Sequence[Any]]


def open_bare(path: str) -> sqlite3.Connection:
    """One table, as durable as the backend's."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS messages"
        " (host TEXT, seq INTEGER, body TEXT, PRIMARY KEY (host, seq)) WITHOUT ROWID"
    )
    return connection


class Store:
    """One writer thread; whoever waits meanwhile shares the next commit."""

    def __init__(self, path: str) -> None:
        self._connection = open_bare(path)
        self._jobs: queue.SimpleQueue[tuple[Statement, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def write(self, sql: str, *values: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        self._jobs.put(((sql, values), future))
        await future

    def _run(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                batch.append(self._jobs.get())
            self._connection.execute("BEGIN IMMEDIATE")
            for (sql, values), _ in batch:
                self._connection.execute(sql, values)
            self._connection.execute("COMMIT")
            batch[0][1].get_loop().call_soon_threadsafe(_settle, [one for _, one in batch])


def _settle(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Reference:
    """Hosts are known by the key that they bring, agents have the name of their host."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        self._hosts: dict[str, WebSocket] = {}
        self._last: dict[str, int] = {}

    async def post(self, request: Request) -> JSONResponse:
        body = await request.json()
        host = request.path_params["agent"]
        seq = self._last[host] = self._last.get(host, 0) + 1
        text = json.dumps({"type": "deliver", "seq": seq, "message": body})
        await self._store.write("INSERT INTO messages VALUES (?, ?, ?)", host, seq, text)
        if websocket := self._hosts.get(host):
            await websocket.send_text(text)
        return JSONResponse({"seq": seq}, 201)

    async def link(self, websocket: WebSocket) -> None:
        host = websocket.headers["authorization"].removeprefix("Bearer ")
        await websocket.accept()
        try:
            await websocket.receive_text()
            self._hosts[host] = websocket
            await websocket.send_text('{"type": "welcome", "epoch": "e", "last_seq": 0}')
            while True:
                frame = json.loads(await websocket.receive_text())
                if frame["type"] == "ack":
                    await self._store.write(
                        "DELETE FROM messages WHERE host = ? AND seq <= ?", host, frame["seq"]
                    )
        except WebSocketDisconnect:
            self._hosts.pop(host, None)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


def main() -> None:
    reference = Reference(sys.argv[1])
    app = Starlette(
        routes=[
            Route("/v1/agents/{agent}/messages", reference.post, methods=["POST"]),
            WebSocketRoute("/v1/daemon/ws", reference.link),
            WebSocketRoute("/echo", echo),
        ]
    )
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_level="error",
    )
    # Named as TCP, or asyncio does not switch Nagle's algorithm off.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
    print(f"Listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
