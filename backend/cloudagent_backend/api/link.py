"""The daemons' endpoint: who may connect, the hello and the welcome. What follows is `Links`'."""

import logging
import sqlite3
import time

import anyio
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from cloudagent_backend.api.auth import authenticate_machine
from cloudagent_backend.api.connection import Connection
from cloudagent_backend.api.errors import ApiError
from cloudagent_backend.api.sockets import socket_of
from cloudagent_backend.api.world import World, world_of
from cloudagent_backend.delivery.handshake import Greeting
from cloudagent_backend.delivery.hub import Session
from cloudagent_backend.delivery.machine import Machine
from cloudagent_protocol.errors import CloseCode, ErrorCode, ProtocolError
from cloudagent_protocol.frames import Frame, Hello, Welcome, decode, encode
from cloudagent_protocol.link import Link
from cloudagent_protocol.version import negotiate

logger = logging.getLogger(__name__)
router = APIRouter()


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
    try:
        hello = await _hello(websocket, world.settings.hello_deadline_s)
        protocol = negotiate(hello.protocol)
    except ProtocolError as error:
        socket_of(websocket).close(error.close_code, str(error))
    except WebSocketDisconnect:
        return
    else:
        await _begin(world, websocket, Machine.of(host), hello, protocol)


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


async def _begin(
    world: World, websocket: WebSocket, machine: Machine, hello: Hello, protocol: int
) -> None:
    """From the hello to a connection that `Links` looks after."""
    socket = socket_of(websocket)
    session = Session(
        machine.host_id,
        hello.instance_id,
        machine.parent_id,
        hello.capabilities,
        draining=hello.draining,
    )
    # Attached before the first write: from here on an older connection writes nothing more.
    if not world.hub.attach(session):
        socket.close(session.close_code, session.close_reason)
        return
    begun = False
    try:
        # Again, and only now: a key that was revoked before its hello had no session to close.
        await authenticate_machine(websocket)
        greeting = await world.service.greet(machine, hello)
        socket.write(encode(_welcome(world, session, greeting, protocol)))
        link = _link(world, greeting)
        world.links.begin(Connection(socket, session, machine, link, world.links.bells))
        begun = True
    except ApiError as error:
        revoked = error.code is ErrorCode.REVOKED
        socket.close(CloseCode.REVOKED if revoked else CloseCode.UNAUTHORIZED, error.detail)
    except Exception:
        logger.exception("a handshake failed; closing", extra={"action": "greet"})
        socket.close(CloseCode.RESTART, "")
    finally:
        if not begun:
            with anyio.CancelScope(shield=True):
                if world.hub.detach(session):
                    await _leave(world, machine)


async def _leave(world: World, machine: Machine) -> None:
    try:
        await world.service.leave(machine)
    except sqlite3.Error:  # a full disk, a lock: the dispatcher tries again
        logger.exception("a host's leaving is not noted yet", extra={"action": "leave"})


def _link(world: World, greeting: Greeting) -> Link:
    settings = world.settings
    return Link(
        accepted=greeting.link.accepted,
        acked=greeting.link.acked,
        now=time.monotonic(),
        heartbeat_s=settings.heartbeat_s,
        silence_s=settings.silence_s,
        lease_s=settings.lease_s,
    )


def _welcome(world: World, session: Session, greeting: Greeting, protocol: int) -> Welcome:
    settings = world.settings
    return Welcome(
        protocol=protocol,
        session_id=session.id,
        epoch=greeting.link.epoch,
        host_id=session.host_id,
        heartbeat_s=settings.heartbeat_s,
        silence_s=settings.silence_s,
        lease_s=settings.lease_s,
        last_seq=greeting.link.accepted,
        window=settings.window,
        agents=greeting.agents,
        drop=greeting.drop,
    )
