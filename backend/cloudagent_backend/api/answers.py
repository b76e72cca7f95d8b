"""Answers to what a daemon asks on behalf of an agent's tool."""

import json
from typing import Final

from cloudagent_backend.delivery.machine import Machine
from cloudagent_backend.delivery.service import Service
from cloudagent_protocol.frames import (
    Answer,
    FindAgent,
    ListAgents,
    ListMessages,
    Query,
    UnknownQuery,
)
from cloudagent_protocol.resources import Message

#: Characters of an answer as ASCII JSON: with its envelope it fits into a frame.
_MAX_ANSWER: Final = 1_000_000


async def answer(service: Service, machine: Machine, query: Query) -> Answer:
    """What the machine may know of what it asked."""
    match query.query:
        case ListMessages() as asked:
            return _told(query.id, await service.list_messages(machine, asked))
        case ListAgents() as asked:
            entries = await service.list_agents(machine, asked)
            if entries is None:
                return Answer(id=query.id, error="no such agent on this machine")
            data = [entry.model_dump(mode="json") for entry in entries]
            return Answer(id=query.id, data={"agents": data})
        case FindAgent() as asked:
            found = await service.find_agent(machine, asked)
            if isinstance(found, str):
                return Answer(id=query.id, error=found)
            return Answer(id=query.id, data=found.model_dump(mode="json", exclude_none=True))
        case UnknownQuery(op=op):
            return Answer(id=query.id, error=f"this server does not know {op[:50]!r}")


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
