"""Lists, page by page: `?limit=` and `?after=`, an opaque cursor."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from cloudagent_protocol.resources import Page

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=200, description="Entries of a page at most.")]
After = Annotated[str, Query(max_length=100, description="The `next_cursor` of the page before.")]


def page_of(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> Page[T]:
    """A page of what was found; the query asked for one entry more than fits."""
    if len(found) <= limit:
        return Page(data=list(found))
    return Page(data=list(found[:limit]), next_cursor=cursor(found[limit - 1]))
