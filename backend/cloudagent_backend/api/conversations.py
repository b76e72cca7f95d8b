"""Conversations and what is in them, page by page."""

import sqlite3
from collections.abc import Callable
from typing import Final, Literal, TypeVar

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld, World
from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import agents, conversations, deliveries, messages, runs
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId, ConversationId, MessageId, UserId
from cloudagent_protocol.resources import (
    Conversation,
    ConversationCreate,
    DeliveryTrace,
    Message,
    Page,
    Run,
)

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])
T = TypeVar("T")

_MISSING: Final = documented(ErrorCode.NOT_FOUND)


@router.get("")
async def list_conversations(
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    agent_id: AgentId | None = None,
) -> Page[Conversation]:
    """Your conversations, newest first; those of one agent with `agent_id`."""
    found = await world.database.read(
        lambda c: conversations.page(
            c, user.user_id, limit=limit + 1, after=after, agent_id=agent_id
        )
    )
    return page_of(found, limit, lambda conversation: conversation.id)


@router.post("", status_code=201, responses=_MISSING)
async def create_conversation(
    body: ConversationCreate, user: CurrentUser, world: CurrentWorld, once: Once
) -> Conversation:
    """Begin a conversation with one agent or several."""
    wanted = list(dict.fromkeys(body.agent_ids))

    def work(c: sqlite3.Connection) -> Conversation:
        if not all(agents.load(c, user.user_id, agent_id) for agent_id in wanted):
            raise not_found()
        return conversations.create(c, user.user_id, wanted, body.title)

    return await world.database.write(once(work, lambda made: made))


@router.get("/{conversation_id}", responses=_MISSING)
async def show_conversation(
    conversation_id: ConversationId, user: CurrentUser, world: CurrentWorld
) -> Conversation:
    """One conversation."""
    return await world.database.read(lambda c: _own(c, user.user_id, conversation_id))


@router.get("/{conversation_id}/messages", responses=_MISSING)
async def list_messages(
    conversation_id: ConversationId,
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
    order: Literal["asc", "desc"] = "asc",
) -> Page[Message]:
    """The messages of a conversation, oldest first; with `order=desc` newest first.

    A page that shows the end of a thread asks for `order=desc` and goes on with `after` towards
    what is older. A cursor is the id of the last message seen.
    """

    def work(c: sqlite3.Connection) -> messages.MessagePage:
        _own(c, user.user_id, conversation_id)
        position = None
        if after:
            position = messages.position(c, conversation_id, MessageId(after))
            if position is None:
                raise not_found()
        page = messages.following if order == "asc" else messages.preceding
        return page(c, conversation_id, position, limit)

    found = await world.database.read(work)
    return Page(data=found.data, next_cursor=found.data[-1].id if found.more else None)


@router.get("/{conversation_id}/traces", responses=_MISSING)
async def list_traces(
    conversation_id: ConversationId,
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
) -> Page[DeliveryTrace]:
    """Where the messages of a conversation are, newest first."""
    return await _newest(
        world,
        user.user_id,
        conversation_id,
        limit,
        lambda c: [
            ladder.trace(c, row)
            for row in deliveries.of_conversation(c, conversation_id, limit=limit + 1, after=after)
        ],
        lambda trace: trace.id,
    )


@router.get("/{conversation_id}/runs", responses=_MISSING)
async def list_runs(
    conversation_id: ConversationId,
    user: CurrentUser,
    world: CurrentWorld,
    limit: Limit = 50,
    after: After = "",
) -> Page[Run]:
    """The runs of a conversation, newest first."""
    return await _newest(
        world,
        user.user_id,
        conversation_id,
        limit,
        lambda c: [
            row.resource
            for row in runs.of_conversation(c, conversation_id, limit=limit + 1, after=after)
        ],
        lambda run: run.id,
    )


@router.post("/{conversation_id}/expect", status_code=204, responses=_MISSING)
async def expect_message(
    conversation_id: ConversationId, user: CurrentUser, world: CurrentWorld
) -> None:
    """Say that you may be about to write here: the agent's process may be started ahead of it.

    A hint, and no more: no message, no turn, and no promise.
    """
    await world.service.expect(user.user_id, conversation_id)


async def _newest(
    world: World,
    user_id: UserId,
    conversation_id: ConversationId,
    limit: int,
    load: Callable[[sqlite3.Connection], list[T]],
    id_of: Callable[[T], str],
) -> Page[T]:
    """A page of something in a conversation of the user's; `load` gives one more than fits."""

    def work(c: sqlite3.Connection) -> list[T]:
        _own(c, user_id, conversation_id)
        return load(c)

    return page_of(await world.database.read(work), limit, id_of)


def _own(c: sqlite3.Connection, user_id: UserId, conversation_id: ConversationId) -> Conversation:
    found = conversations.load(c, user_id, conversation_id)
    if found is None:
        raise not_found()
    return found
