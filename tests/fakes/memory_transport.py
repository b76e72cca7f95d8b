"""A transport without a network: two ends in one process, for the contract and for timing tests."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cloudagent_daemon.link.transport import LinkClosedError, LinkError
from cloudagent_protocol.errors import CloseCode, ProtocolError


class MemoryStream:
    def __init__(
        self,
        out: MemoryObjectSendStream[str | bytes],
        incoming: MemoryObjectReceiveStream[str | bytes],
    ) -> None:
        self._out = out
        self._incoming = incoming
        self.other: MemoryStream | None = None
        self.closed: LinkClosedError | None = None
        #: Whole messages only come here.
        self.heard_at = 0.0

    async def send(self, text: str | bytes) -> None:
        if self.closed:
            raise self.closed
        try:
            await self._out.send(text)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise self.closed or LinkClosedError(1006) from error

    async def receive(self) -> str:
        try:
            data = await self._incoming.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError) as error:
            raise self.closed or LinkClosedError(1006) from error
        if isinstance(data, bytes):
            raise ProtocolError("binary frame; frames are JSON text")
        return data

    async def close(self, code: int, reason: str) -> None:
        for end in (self, self.other):
            if end and end.closed is None:
                end.closed = LinkClosedError(code, reason)
                end._out.close()


class MemoryTransport:
    """Connects to whoever calls `accept`."""

    def __init__(self) -> None:
        self._put, self._take = anyio.create_memory_object_stream[MemoryStream](10)
        self._ends: list[MemoryStream] = []
        self.refusal: LinkError | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[MemoryStream]:
        if self.refusal:
            raise self.refusal
        near, far = _pair()
        self._ends += [near, far]
        await self._put.send(far)
        try:
            yield near
        finally:
            await near.close(CloseCode.GOING_AWAY, "")

    async def accept(self) -> MemoryStream:
        return await self._take.receive()

    def close(self) -> None:
        self._put.close()
        self._take.close()
        for end in self._ends:
            end._out.close()
            end._incoming.close()


def _pair() -> tuple[MemoryStream, MemoryStream]:
    to_far, far_in = anyio.create_memory_object_stream[str | bytes](100)
    to_near, near_in = anyio.create_memory_object_stream[str | bytes](100)
    near, far = MemoryStream(to_far, near_in), MemoryStream(to_near, far_in)
    near.other, far.other = far, near
    return near, far
