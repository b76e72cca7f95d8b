"""What a program's JSON holds, whatever it holds: the value of the kind that is wanted, or an empty one."""

from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

from cloudagent_daemon.drivers.lines import clip

Json: TypeAlias = dict[str, Any]


def now() -> datetime:
    return datetime.now(UTC)


def clipped(value: Any) -> Any:
    """A tool's input with its long texts cut; a file's whole content does not fit a frame."""
    match value:
        case str():
            return clip(value)[0]
        case dict():
            items = list(cast("Json", value).items())[:100]
            return {key[:200]: clipped(inner) for key, inner in items}
        case list():
            return [clipped(inner) for inner in cast("list[Any]", value)[:100]]
        case _:
            return value


def plain(content: Any) -> str:
    """The text of a tool's result, which is a string or a list of content blocks."""
    if isinstance(content, str):
        return content
    return "\n".join(
        as_text(block.get("text")) or f"[{as_text(block.get('type'))}]"
        for block in as_objects(content)
    )


def as_object(value: Any) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[Json]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("Json", item) for item in items if isinstance(item, dict)]


def as_texts(value: Any) -> list[str]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def short(value: Any) -> str:
    """A name or an id: none is longer than this."""
    return as_text(value)[:200]


def number(value: Any) -> int | None:
    """A whole number that everybody behind us can hold too; JSON's own have no bounds."""
    return int(value) if isinstance(value, int | float) and abs(value) <= 2**53 else None
