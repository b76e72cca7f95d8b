"""What a model is to the loop: a request in, text as it comes, one whole reply."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from cloudagent_daemon.agent.history import Assistant, Entry, Usage
from cloudagent_daemon.agent.tools.base import ToolSpec

#: Takes a piece of the text block with that number, which counts from 0 in each reply.
Say: TypeAlias = Callable[[int, str], None]


class Stop(StrEnum):
    """Why the model stopped writing."""

    END = "end"
    TOOLS = "tools"
    #: It ran into the limit of its output: text and arguments may be cut off.
    LENGTH = "length"
    REFUSAL = "refusal"


@dataclass(frozen=True)
class Request:
    system: str
    history: Sequence[Entry]
    tools: Sequence[ToolSpec]


@dataclass(frozen=True)
class Reply:
    """One whole answer; a stream that broke off is none."""

    #: The blocks of text, numbered as they were said.
    texts: tuple[str, ...]
    message: Assistant
    stop: Stop
    usage: Usage


class Model(Protocol):
    @property
    def name(self) -> str: ...

    async def complete(self, request: Request, say: Say) -> Reply:
        """Asks once.

        Raises:
            ModelError: there is no whole answer.
        """
        ...

    async def aclose(self) -> None: ...
