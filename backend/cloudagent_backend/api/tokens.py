"""Personal access tokens."""

from fastapi import APIRouter

from cloudagent_backend.api.auth import CurrentUser
from cloudagent_backend.api.errors import documented
from cloudagent_backend.api.idempotency import Once
from cloudagent_backend.api.pages import After, Limit, page_of
from cloudagent_backend.api.world import CurrentWorld
from cloudagent_backend.delivery.errors import not_found
from cloudagent_backend.store import tokens
from cloudagent_protocol.errors import ErrorCode
from cloudagent_protocol.ids import TokenId
from cloudagent_protocol.resources import Page, Token, TokenCreate

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


@router.get("")
async def list_tokens(
    user: CurrentUser, world: CurrentWorld, limit: Limit = 50, after: After = ""
) -> Page[Token]:
    """Your personal access tokens, oldest first."""
    found = await world.database.read(
        lambda c: tokens.page(c, user.user_id, limit=limit + 1, after=after)
    )
    return page_of(found, limit, lambda token: token.id)


@router.post("", status_code=201, responses=documented(ErrorCode.CONFLICT))
async def create_token(
    body: TokenCreate, user: CurrentUser, world: CurrentWorld, once: Once
) -> Token:
    """Make a token; `raw_token` is in this answer and never again."""
    return await world.database.write(
        once(lambda c: tokens.create(c, user.user_id, body.name), lambda token: token, secret=True)
    )


@router.delete("/{token_id}", status_code=204, responses=documented(ErrorCode.NOT_FOUND))
async def delete_token(token_id: TokenId, user: CurrentUser, world: CurrentWorld) -> None:
    """Revoke a token; it opens nothing from now on."""
    if not await world.database.write(lambda c: tokens.delete(c, user.user_id, token_id)):
        raise not_found()
    world.authenticator.forget()
