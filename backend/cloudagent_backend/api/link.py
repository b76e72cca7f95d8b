"""The daemons' endpoint: frames of one WebSocket to the protocol's `Link`, and on to delivery.

Four loops per connection: read, apply, send, watch. What a daemon says is applied in its order.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from cloudagent_backend.api.auth import authenticate_machine
from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.api.limits import heard_at
from cloudagent_backend.api.world import World, world_of
from cloudagent_backend.delivery.handshake import Greeting
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.reports import Applied, Reported
from cloudagent_protocol.errors import CloseCode, ErrorCode, ProtocolError
from cloudagent_protocol.frames import (
    Ack,
    Answer,
    DeliveryReport,
    Delta,
    FindAgent,
    Frame,
    Heartbeat,
    Hello,
    HostReport,
    ListAgents,
    ListMessages,
    Query,
    RunReport,
    Send,
    UnknownFrame,
    UnknownQuery,
    Welcome,
    decode,
    encode,
)
from cloudagent_protocol.link import Duplicate, Link
from cloudagent_protocol.resources import Message
from cloudagent_protocol.version import negotiate

logger = logging.getLogger(__name__)
router = APIRouter()

#: Frames of a connection that wait for the store; above it the socket is not read, and TCP holds
#: the daemon back. There is no limit of frames per second: a model that streams makes hundreds of
#: small deltas a second, which is honest. What must be bounded is memory (this times the frame
#: size) and the store's share, and a connection has only one group of frames there at a time.
_INBOX: Final = 32
#: Characters of an answer as ASCII JSON: with its envelope it fits into a frame.
_MAX_ANSWER: Final = 1_000_000
#: Bytes that a close frame's reason may have (RFC 6455 §5.5).
_MAX_REASON: Final = 120
_CLOSE_DEADLINE_S: Final = 2.0

_Inbound = Reported | Query


@router.websocket("/v1/daemon/ws")
async def daemon_link(websocket: WebSocket) -> None:
    """The link of a host's daemon; docs/protocol.md."""
    world = world_of(websocket)
    host = await authenticate_machine(websocket)
    if not world.hub.admit(host.id, time.monotonic()):
        raise ApiError(
            ErrorCode.RATE_LIMITED,
            "This host connects too often.",
            next="Look whether two daemons run with the same key.",
            headers={"Retry-After": "30"},
        )
    await websocket.accept()
    machine = Machine.of(host)
    try:
        hello = await _hello(websocket, world.settings.hello_deadline_s)
        protocol = negotiate(hello.protocol)
    except ProtocolError as error:
        await _close(websocket, error.close_code, str(error))
    except WebSocketDisconnect:
        return
    else:
        session = Session(host.id, hello.instance_id, host.parent_id, hello.capabilities)
        await _Connection(world, websocket, machine, session).serve(hello, protocol)


async def _hello(websocket: WebSocket, deadline_s: float) -> Hello:
    with anyio.move_on_after(deadline_s):
        frame = await _receive(websocket)
        if isinstance(frame, Hello):
            return frame
        raise ProtocolError(f"the first frame is {frame.type}, not hello")
    raise ProtocolError(f"no hello within {deadline_s:g} s", CloseCode.HEARTBEAT_MISSED)


async def _receive(websocket: WebSocket) -> Frame:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text")
    return decode(message["bytes"] if text is None else text)


async def _close(websocket: WebSocket, code: CloseCode, reason: str) -> None:
    short = reason.encode()[:_MAX_REASON].decode(errors="ignore")
    try:
        with anyio.move_on_after(_CLOSE_DEADLINE_S):  # a peer that reads nothing takes no close
            await websocket.close(code, short)
    except (RuntimeError, WebSocketDisconnect):
        logger.debug("closed from the other side", extra={"action": "close"})


class _Connection:
    """One daemon's connection after its hello."""

    def __init__(
        self, world: World, websocket: WebSocket, machine: Machine, session: Session
    ) -> None:
        self._world = world
        self._websocket = websocket
        self._machine = machine
        self._session = session
        self._gone = False

    async def serve(self, hello: Hello, protocol: int) -> None:
        """Until either side ends it; the host is offline afterwards, if this was its newest."""
        session, service = self._session, self._world.service
        # Attached before the first write: from here on an older connection writes nothing more.
        if not self._world.hub.attach(session):
            await _close(self._websocket, session.close_code, session.close_reason)
            return
        try:
            # Again, and only now: a key that was revoked before its hello had no session to close.
            await authenticate_machine(self._websocket)
            greeting = await service.greet(self._machine, hello)
            link = self._link(greeting)
            await self._send(link, self._welcome(greeting, protocol))
            session.ready = True
            service.hints.hint(session.host_id)
            logger.info("host connected", extra=self._about("attach"))
            await self._run(link)
        except WebSocketDisconnect:
            self._gone = True
        except ApiError as error:
            revoked = error.code is ErrorCode.REVOKED
            session.close(CloseCode.REVOKED if revoked else CloseCode.UNAUTHORIZED, error.detail)
        except Exception:
            logger.exception("a connection failed; closing", extra=self._about("greet"))
            session.close(CloseCode.RESTART)
        finally:
            with anyio.CancelScope(shield=True):
                if self._world.hub.detach(session):
                    await service.leave(self._machine)
                logger.info("host left", extra=self._about("detach"))
                if not self._gone:
                    await _close(self._websocket, session.close_code, session.close_reason)

    def _about(self, action: str) -> dict[str, str]:
        return {"action": action, "host_id": self._machine.host_id}

    def _link(self, greeting: Greeting) -> Link:
        settings = self._world.settings
        return Link(
            accepted=greeting.link.accepted,
            acked=greeting.link.acked,
            now=time.monotonic(),
            heartbeat_s=settings.heartbeat_s,
            silence_s=settings.silence_s,
        )

    def _welcome(self, greeting: Greeting, protocol: int) -> Welcome:
        settings = self._world.settings
        return Welcome(
            protocol=protocol,
            session_id=self._session.id,
            epoch=greeting.link.epoch,
            host_id=self._machine.host_id,
            heartbeat_s=settings.heartbeat_s,
            silence_s=settings.silence_s,
            last_seq=greeting.link.accepted,
            window=settings.window,
            agents=greeting.agents,
            drop=greeting.drop,
        )

    async def _run(self, link: Link) -> None:
        send, receive = anyio.create_memory_object_stream[_Inbound](_INBOX)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._guarded, self._reads, link, send)
            tg.start_soon(self._guarded, self._applies, link, receive)
            tg.start_soon(self._guarded, self._sends, link)
            tg.start_soon(self._guarded, self._watches, link)
            await self._session.closed.wait()
            tg.cancel_scope.cancel()

    async def _guarded(self, loop: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run one loop; whatever ends it ends the connection."""
        session = self._session
        try:
            await loop(*args)
        except ProtocolError as error:
            logger.warning("closing: %s", error, extra=self._about("close"))
            session.close(error.close_code, str(error))
        except WebSocketDisconnect:
            self._gone = True
            session.close(CloseCode.NORMAL)
        except Exception:  # a fault of ours must not look like one of the daemon's
            logger.exception("a connection failed; closing", extra=self._about("apply"))
            session.close(CloseCode.RESTART)

    # --- the four loops ---

    async def _reads(self, link: Link, inbox: MemoryObjectSendStream[_Inbound]) -> None:
        async with inbox:
            while True:
                frame = await _receive(self._websocket)
                link.heard(time.monotonic())
                if inbound := await self._judge(link, frame):
                    await inbox.send(inbound)

    async def _applies(self, link: Link, inbox: MemoryObjectReceiveStream[_Inbound]) -> None:
        async with inbox:
            async for first in inbox:
                group = [first]
                while len(group) <= _INBOX and inbox.statistics().current_buffer_used:
                    group.append(inbox.receive_nowait())
                await self._apply(link, group)

    async def _sends(self, link: Link) -> None:
        async for rows in self._session.outgoing(self._world.database, link):
            for row in rows:
                await self._websocket.send_text(row.frame)
            sent = [row.delivery_id for row in rows if row.type == "deliver" and row.delivery_id]
            if sent:
                await self._world.service.sent(self._machine, sent)

    async def _watches(self, link: Link) -> None:
        while True:
            now = time.monotonic()
            link.heard(heard_at(self._websocket.scope))
            if link.dead(now):
                raise ProtocolError("nothing was heard", CloseCode.HEARTBEAT_MISSED)
            if link.heartbeat_due(now):
                # A network that takes nothing must not hide that nothing comes either.
                with anyio.move_on_after(link.dies_at - now):
                    await self._send(link, Heartbeat())
            await anyio.sleep(max(0.01, link.next_deadline() - time.monotonic()))

    # --- one frame, one group ---

    async def _judge(self, link: Link, frame: Frame) -> _Inbound | None:
        """What of a frame is left for the store; a duplicate is only acknowledged anew."""
        match frame:
            case RunReport() | Send() | DeliveryReport() | HostReport():
                return frame if await self._is_fresh(link, frame.seq) else None
            case UnknownFrame(seq=int(seq)):
                return frame if await self._is_fresh(link, seq) else None
            case Ack():
                was_full = link.may_send <= 0
                if not link.on_ack(frame.seq):
                    return None
                if was_full:
                    self._session.hint()
                return frame
            case Delta() | Query():
                return frame
            case Heartbeat() if not self._machine.changes_nothing(frame):
                return frame
            case Heartbeat() | UnknownFrame():
                return None
            case _:
                raise ProtocolError(f"a {frame.type} is not for a backend")

    async def _is_fresh(self, link: Link, seq: int) -> bool:
        verdict = link.receive(seq)
        if isinstance(verdict, Duplicate):
            await self._send(link, Ack(seq=verdict.ack))
            return False
        return True

    async def _apply(self, link: Link, group: Sequence[_Inbound]) -> None:
        if self._session.closed.is_set():
            return  # a newer connection may have begun another history since these came
        reported = [frame for frame in group if not isinstance(frame, Query)]
        if reported:
            applied = Applied()
            # Shielded: what gets into the store must also be shown, whatever happens to the socket.
            with anyio.CancelScope(shield=True):
                applied = await self._world.service.apply(self._machine, reported)
            link.heard(time.monotonic())  # while the store was slow, the socket was not read
            await self._acknowledge(link, reported[: applied.count])
            if applied.error:
                raise applied.error
        for frame in group:
            if isinstance(frame, Query):
                await self._send(link, await self._answer(frame))

    async def _acknowledge(self, link: Link, applied: Sequence[Reported]) -> None:
        numbers = [
            f.seq
            for f in applied
            if not isinstance(f, Ack | Delta | Heartbeat) and f.seq is not None
        ]
        if numbers:
            await self._send(link, Ack(seq=link.accept(numbers[-1])))

    async def _answer(self, query: Query) -> Answer:
        service = self._world.service
        match query.query:
            case ListMessages() as asked:
                return _told(query.id, await service.list_messages(self._machine, asked))
            case ListAgents() as asked:
                entries = await service.list_agents(self._machine, asked)
                if entries is None:
                    return Answer(id=query.id, error="no such agent on this machine")
                data = [entry.model_dump(mode="json") for entry in entries]
                return Answer(id=query.id, data={"agents": data})
            case FindAgent() as asked:
                found = await service.find_agent(self._machine, asked)
                if isinstance(found, str):
                    return Answer(id=query.id, error=found)
                return Answer(id=query.id, data=found.model_dump(mode="json", exclude_none=True))
            case UnknownQuery(op=op):
                return Answer(id=query.id, error=f"this server does not know {op[:50]!r}")

    async def _send(self, link: Link, frame: BaseModel) -> None:
        await self._websocket.send_text(encode(frame))
        link.spoke(time.monotonic())


def _told(number: int, found: list[Message] | None) -> Answer:
    """The answer to `list_messages`, as many of the newest as fit into a frame."""
    if found is None:
        return Answer(id=number, error="no such conversation, or not one of this agent's")
    data = [message.model_dump(mode="json", exclude_none=True) for message in found]
    while data and len(json.dumps(data)) > _MAX_ANSWER:
        del data[0]  # the oldest: what was said last matters most
    if found and not data:
        return Answer(id=number, error="the newest message is too long to be shown here")
    return Answer(id=number, data={"messages": data})
