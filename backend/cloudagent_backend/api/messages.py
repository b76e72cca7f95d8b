"""Messages: sending, where each is, cancelling."""

import sqlite3
from typing import Final

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentUser, Principal
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.delivery import ladder
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.delivery.queueing import Submission, Submitted
from cloudagent_backend.store import messages
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import AgentId, ConversationId, MessageId
from cloudagent_protocol.resources import (
    AgentMessageCreate,
    Author,
    Message,
    MessageCreate,
    MessageEdit,
    MessageMove,
    Trace,
)

router = APIRouter(prefix="/v1", tags=["messages"])

_MISSING: Final = documented(ErrorCode.NOT_FOUND)
_SEND: Final = documented(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT, ErrorCode.BACKLOG_FULL)


def _message_of(done: Submitted) -> Message:
    return done.message


def _author(principal: Principal) -> Author:
    return Author(type="user", id=principal.user_id, name=principal.name)


@router.post("/agents/{agent_id}/messages", status_code=201, responses=_SEND)
async def send_to_agent(
    agent_id: AgentId, body: AgentMessageCreate, user: CurrentUser, world: CurrentWorld, once: Once
) -> Message:
    """Send a message to an agent.

    Without `conversation_id` it goes to the newest conversation with this agent alone, or a new
    one. The answer is sent when the message is on the disk; `deliveries` says how it fares.
    With `host_machine_id`, the machine of a job, it begins a conversation of its own and runs there
    or nowhere.

    `mode` says how it takes its place: `queue` after what was sent before, `interrupt` before all
    that has not begun, and what runs in the conversation is stopped, `steer` into the turn that is
    under way (where the driver cannot, as `queue`, and the trace says so).

    `model` and `permission_mode` count for this message's turn instead of the agent's own. A mode may be
    the agent's own or `plan`, and any one of an agent that may do everything (409 otherwise).
    """
    submission = Submission(
        user.user_id,
        _author(user),
        body.text,
        agent_id,
        body.conversation_id,
        body.host_machine_id,
        body.mode,
        body.attachments,
        body.model,
        body.permission_mode,
    )
    return await world.service.submit(submission, lambda work: once(work, _message_of))


@router.post("/conversations/{conversation_id}/messages", status_code=201, responses=_SEND)
async def send_to_conversation(
    conversation_id: ConversationId,
    body: MessageCreate,
    user: CurrentUser,
    world: CurrentWorld,
    once: Once,
) -> Message:
    """Send a message into a conversation, to all of its agents or the one named."""
    submission = Submission(
        user.user_id,
        _author(user),
        body.text,
        body.agent_id,
        conversation_id,
        mode=body.mode,
        attachments=body.attachments,
        model=body.model,
        permission_mode=body.permission_mode,
    )
    return await world.service.submit(submission, lambda work: once(work, _message_of))


@router.get("/messages/{message_id}", responses=_MISSING)
async def show_message(message_id: MessageId, user: CurrentUser, world: CurrentWorld) -> Message:
    """One message."""
    found = await world.database.read(lambda c: messages.load(c, user.user_id, message_id))
    if found is None:
        raise not_found()
    return found


@router.get("/messages/{message_id}/trace", responses=_MISSING)
async def trace_message(message_id: MessageId, user: CurrentUser, world: CurrentWorld) -> Trace:
    """Where a message is: per agent its state, and each thing that is known to have happened."""

    def work(c: sqlite3.Connection) -> Trace | None:
        message = messages.load(c, user.user_id, message_id)
        return ladder.trace_of(c, user.user_id, message) if message else None

    found = await world.database.read(work)
    if found is None:
        raise not_found()
    return found


@router.post(
    "/messages/{message_id}/retry",
    status_code=201,
    responses=_MISSING | documented(ErrorCode.CONFLICT, ErrorCode.BACKLOG_FULL),
)
async def retry_message(
    message_id: MessageId, user: CurrentUser, world: CurrentWorld, once: Once
) -> Trace:
    """Deliver a message again to each agent whose last delivery of it failed, died or was cancelled.

    It is a new delivery of the same message, with a ladder of its own that says who wanted it. While
    one is under way another is refused (409), so that a second click is no second run.
    """
    return await world.service.retry(
        user.user_id, user.name, message_id, lambda work: once(work, lambda trace: trace)
    )


@router.post("/messages/{message_id}/continue", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def continue_message(
    message_id: MessageId, user: CurrentUser, world: CurrentWorld, once: Once
) -> Trace:
    """Let a message go on that a rate limit has cut off; it does so when the limit is over.

    It waits for that because its agent's `limits` do not let it go on by itself. The first word counts;
    a later one is a conflict. `DELETE` gives it up.
    """
    return await world.service.go_on(
        user.user_id, user.name, message_id, lambda work: once(work, lambda trace: trace)
    )


@router.patch("/messages/{message_id}", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def edit_message(
    message_id: MessageId, body: MessageEdit, user: CurrentUser, world: CurrentWorld
) -> Message:
    """Change what a message of yours says, while it is queued and was never sent to a machine.

    Of a change and a machine that takes the message one is first: 409 says that it was the machine.
    """
    return await world.service.edit(user.user_id, user.name, message_id, body.text)


@router.post("/messages/{message_id}/move", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def move_message(
    message_id: MessageId, body: MessageMove, user: CurrentUser, world: CurrentWorld, once: Once
) -> Message:
    """Put a message that is queued before another one of its conversation, or behind them all.

    Its delivery's `seq` is its place; 409 if one of the two waits no more.
    """
    return await world.service.move(
        user.user_id, message_id, body.before, lambda work: once(work, lambda message: message)
    )


@router.delete("/messages/{message_id}", responses=_MISSING | documented(ErrorCode.CONFLICT))
async def cancel_message(message_id: MessageId, user: CurrentUser, world: CurrentWorld) -> Trace:
    """Cancel a message: at once while it is queued; a machine that has it is asked to stop."""
    return await world.service.cancel(user.user_id, user.name, message_id)
