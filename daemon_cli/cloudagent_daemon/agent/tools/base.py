"""What a tool is to the loop."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the model is told of it."""

    name: str
    description: str
    #: JSON schema of its arguments, an object.
    schema: dict[str, Any]


class Toolset(Protocol):
    """Some tools of one origin."""

    @property
    def specs(self) -> list[ToolSpec]: ...

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Calls one of them.

        Raises:
            ToolError: it could not be done; the model reads why.
        """
        ...
