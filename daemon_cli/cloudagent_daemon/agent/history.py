"""What was said in a session, in words that fit every model's API. Plain values, no I/O."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

#: Characters that a tool's output keeps of its start, and of its end.
KEEP_CHARS: Final = 15_000


@dataclass(frozen=True)
class Picture:
    """A picture that came with a message; its path is in the message's text as well."""

    #: Where it lies; null: it came as bytes, and is shown for as long as this process has its session open.
    path: Path | None
    media_type: str
    #: Its bytes in base 64; empty where they were not read.
    data: str = field(default="", repr=False)


@dataclass(frozen=True)
class User:
    """A message to the agent."""

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Call:
    """A tool call of the model's; `problem` says why its arguments could not be read."""

    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None


@dataclass(frozen=True)
class Assistant:
    """What the model wrote and which tools it wants called; one of both is never empty."""

    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Result:
    call_id: str
    output: str
    is_error: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Results:
    """The answers to all calls of the assistant's entry before it, in their order."""

    results: tuple[Result, ...]


Entry: TypeAlias = User | Assistant | Results


@dataclass(frozen=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens
        )


def seen(entry: User) -> list[Picture]:
    """The pictures of a message that a model can be shown."""
    return [one for one in entry.pictures if one.data]


def parse_input(arguments: str) -> tuple[dict[str, Any], str | None]:
    """The arguments of a tool call as a model spelled them; or none, and what is wrong with them."""
    try:
        value: Any = encodable(json.loads(arguments or "{}"))
    except (ValueError, RecursionError) as error:
        return {}, f"The arguments were not JSON ({error}). Call the tool again."
    if not isinstance(value, dict):
        return {}, "The arguments were not a JSON object. Call the tool again."
    return cast("dict[str, Any]", value), None


def clip(text: str, keep: int = KEEP_CHARS) -> tuple[str, bool]:
    """The text, or its first and last `keep` characters with a note between; and whether it was cut."""
    if len(text) <= 2 * keep:
        return text, False
    left_out = len(text) - 2 * keep
    return f"{text[:keep]}\n[… {left_out} characters left out …]\n{text[-keep:]}", True


def encodable(value: Any) -> Any:
    """The value with surrogates paired where a stream tore them apart, else replaced by U+FFFD.

    JSON can spell a lone surrogate, but no request that holds one can be encoded.
    """
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {encodable(key): encodable(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]  (JSON)
        case list():
            return [encodable(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]  (JSON)
        case _:
            return value
