"""Versions of coding agents that are known not to work well with us, each with where that is told."""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

_Version: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Known:
    """What is wrong from one version to another, both included."""

    driver: str
    first: _Version
    last: _Version
    what: str
    #: Where it is told, or that we have seen it.
    source: str
    repair: str


_CLAUDE: Final = "npm install -g @anthropic-ai/claude-code@latest"
_CODEX: Final = "npm install -g @openai/codex@latest"
KNOWN: Final = (
    Known(
        "claude_code", (2, 1, 22), (2, 1, 22),
        "it hangs without a terminal", "anthropics/claude-code#21506", _CLAUDE,
    ),
    Known(
        "claude_code", (2, 1, 69), (2, 1, 69),
        "it does not end after its work", "anthropics/claude-code#31050", _CLAUDE,
    ),
    Known(
        "claude_code", (2, 1, 78), (2, 1, 78),
        "it breaks turns of many steps off", "anthropics/claude-code#35832", _CLAUDE,
    ),
    Known(
        "codex", (0, 147, 0), (0, 147, 0),
        "it does not end its turns", "iOfficeAI/AionCore#906", _CODEX,
    ),
    Known(
        "codex", (0, 148, 0), (0, 148, 0),
        "it does not start tools that are given on its command line", "openai/codex#39537", _CODEX,
    ),
)  # fmt: skip
_NUMBERS: Final = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


def warning(driver: str, version: str | None) -> str | None:
    """What is known of this version, for a person; null if nothing is."""
    found = _NUMBERS.search(version or "")
    if found is None:
        return None
    numbers = (int(found[1]), int(found[2]), int(found[3]))
    for known in KNOWN:
        if known.driver == driver and known.first <= numbers <= known.last:
            return f"{found[0]}: {known.what} ({known.source}). Repair: {known.repair}"
    return None
