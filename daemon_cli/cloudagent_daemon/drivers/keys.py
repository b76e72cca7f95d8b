"""An API key in the daemon's environment that would switch what a logged-in program's turns are billed to.

Who has logged in to a plan and has a key in a profile file, or in a service's environment, pays twice
without noticing: the program prefers the key. So such a key is told of, and is not handed to agents,
unless the agent's own `env` holds it, or `CLOUDAGENT_KEEP_API_KEY=1` says that it is wanted (in either
environment). A key for a service of one's own (a base URL, a provider in codex's configuration) is none
of these. Looks at files, so all of it blocks.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudagent_daemon.drivers.lines import parse_object
from cloudagent_daemon.drivers.values import Json, as_object

KEEP: Final = "CLOUDAGENT_KEEP_API_KEY"
#: A login's file is small; what is larger is something else.
_MOST_BYTES: Final = 4_194_304
_PROVIDER: Final = re.compile(rb"^\s*model_provider\s*=", re.MULTILINE)


@dataclass(frozen=True)
class _Program:
    called: str
    variables: tuple[str, ...]
    #: With one of these the key is for something else than the plan's own service.
    elsewhere: tuple[str, ...]
    logged_in: Callable[[Mapping[str, str]], bool]


def stray(driver: str, environment: Mapping[str, str]) -> list[str]:
    """Variables of the environment that would be used instead of the driver's login."""
    program = _PROGRAMS.get(driver)
    if program is None or environment.get(KEEP) == "1":
        return []
    found = [name for name in program.variables if environment.get(name)]
    elsewhere = any(environment.get(name) for name in program.elsewhere)
    return found if found and not elsewhere and program.logged_in(environment) else []


def warning(driver: str, environment: Mapping[str, str]) -> str | None:
    """The same for a person: what there is, what becomes of it, and what to do."""
    found = stray(driver, environment)
    if not found:
        return None
    called, names = _PROGRAMS[driver].called, " and ".join(found)
    return (
        f"{names} is set in the daemon's environment, and {called} is logged in: its turns would be billed "
        f"to the key. Agents do not get it. Remove it, or set {KEEP}=1 to use it"
    )


def _claude(environment: Mapping[str, str]) -> bool:
    """By the file of its login, or (macOS keeps that in the keychain) by the account it remembers."""
    home, folder = environment.get("HOME", ""), environment.get("CLAUDE_CONFIG_DIR")
    base = Path(folder or f"{home}/.claude")
    if as_object(_read(base / ".credentials.json").get("claudeAiOauth")):
        return True
    state = Path(folder) / ".claude.json" if folder else Path(home) / ".claude.json"
    return bool(as_object(_read(state).get("oauthAccount")))


def _codex(environment: Mapping[str, str]) -> bool:
    base = Path(environment.get("CODEX_HOME") or f"{environment.get('HOME', '')}/.codex")
    if not as_object(_read(base / "auth.json").get("tokens")):
        return False
    return _PROVIDER.search(_bytes(base / "config.toml")) is None


def _read(path: Path) -> Json:
    return parse_object(_bytes(path)) or {}


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except (OSError, ValueError):
        return b""


_PROGRAMS: Final = {
    "claude_code": _Program(
        "Claude Code",
        ("ANTHROPIC_API_KEY",),
        (
            "ANTHROPIC_BASE_URL",
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
            "CLAUDE_CODE_USE_FOUNDRY",
        ),
        _claude,
    ),
    "codex": _Program("Codex", ("OPENAI_API_KEY", "CODEX_API_KEY"), ("OPENAI_BASE_URL",), _codex),
}
