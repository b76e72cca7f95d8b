"""What exactly a person allows, once or for longer, and whether it covers what is asked now. Pure.

security.md PERM-10: leave binds the tool, its input, the folder, the contents of the files that a
command names, and the agent's settings. A rule for longer is no wider than its words say.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, Field

from cloudagent_protocol.resources import AgentSpec

#: Words about a call that change nothing of what it does.
_TALK: Final = frozenset({"description"})
_PATHS: Final = ("file_path", "path", "notebook_path", "abs_path")
#: A longer input is asked for each time: nobody would read its rule.
_LONGEST: Final = 1_000
#: Control characters, and what hides or turns text (PERM-4).
_UNREADABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\uff01-\uff5e]|[ ]{20}"
)
#: Files that steer programs, or hold secrets: each change, and each look, is asked for (INJ-6).
_TOUCHY: Final = re.compile(
    r"(^|/)(\.git|\.ssh|\.gnupg|\.aws|\.claude|\.codex|\.gemini|\.cloudagent|\.github|\.vscode|\.husky"
    r"|\.mcp\.json|\.env[^/]*|\.netrc|\.npmrc|\.pypirc|\.bash[^/]*|\.zsh[^/]*|\.profile|id_[a-z0-9]+"
    r"|credentials[^/]*)(/|$)|\.(pem|key|p12)$",
    re.IGNORECASE,
)
#: What may send something away or bring something in, by what it comes to.
_WAYS_OUT: Final = frozenset({"execute", "fetch", "other"})
#: Tools that bring in what strangers wrote.
_STRANGERS: Final = re.compile(r"(^|_)(web_?(fetch|search)|fetch|browser?)($|_)", re.IGNORECASE)


class Rule(BaseModel):
    """What is allowed without asking."""

    tool: str
    action: str
    #: The command, the file, the origin or the whole input.
    what: str
    cwd: str
    #: Of the agent's settings.
    context: str
    #: Files that the command names, with their SHA-256.
    files: dict[str, str] = Field(default_factory=dict[str, str])
    #: For a person.
    words: str
    by: str = ""
    made_at: AwareDatetime | None = None

    def made(self, by: str, at: datetime) -> "Rule":
        return self.model_copy(update={"by": by, "made_at": at})

    def covers(self, other: "Rule | None") -> bool:
        """Whether what is asked for now (`rule_for` of it) is what this allows."""
        fields = {"tool", "action", "what", "cwd", "context", "files"}
        return other is not None and self.model_dump(include=fields) == other.model_dump(
            include=fields
        )


def context_of(agent: AgentSpec) -> str:
    """The settings under which leave was given; other ones make it void."""
    return _sha256([agent.driver, agent.mode, agent.command, sorted(agent.env.items())])


def digest(
    tool: str,
    action: str,
    given: Mapping[str, Any],
    cwd: str,
    context: str,
    files: Mapping[str, str],
) -> str:
    """Names exactly what is asked for."""
    meant = {name: value for name, value in given.items() if name not in _TALK}
    return _sha256([tool, action, meant, cwd, context, dict(files)])


def rule_for(
    tool: str,
    action: str,
    given: Mapping[str, Any],
    cwd: str,
    context: str,
    files: Mapping[str, str],
) -> Rule | None:
    """The rule that `conversation` and `always` would make; null: each time is to be asked for."""
    found = _what(tool, action, given, cwd)
    if found is None or len(found[0]) > _LONGEST or _UNREADABLE.search(found[0]):
        return None
    what, words = found
    return Rule(
        tool=tool,
        action=action,
        what=what,
        cwd=cwd,
        context=context,
        files=dict(files),
        words=words,
    )


def _what(tool: str, action: str, given: Mapping[str, Any], cwd: str) -> tuple[str, str] | None:
    if action == "execute":
        command = given.get("command")
        if not isinstance(command, str) or not command.strip():
            return None
        return command, f"exactly the command `{command}` in {cwd}"
    if action in {"edit", "read", "search", "delete", "move"}:
        return _file(tool, action, given, cwd)
    if action == "fetch":
        return _origin(tool, given)
    meant = {name: value for name, value in given.items() if name not in _TALK}
    if not meant:
        return None  # nothing is known of what it would do
    what = _canonical(meant)
    return what, f"{tool} with exactly {what}"


def _file(tool: str, action: str, given: Mapping[str, Any], cwd: str) -> tuple[str, str] | None:
    named = next((given[name] for name in _PATHS if isinstance(given.get(name), str)), None)
    if action not in {"edit", "read"} or not named:
        return None
    path = PurePosixPath(cwd, named)
    if ".." in path.parts or not path.is_relative_to(cwd) or _TOUCHY.search(str(path)):
        return None
    doing = "change" if action == "edit" else "read"
    return str(path), f"to {doing} the file {path} with {tool}, whatever it is to hold"


def _origin(tool: str, given: Mapping[str, Any]) -> tuple[str, str] | None:
    url = given.get("url")
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        return None
    origin = f"{parts.scheme}://{parts.hostname}{f':{port}' if port else ''}"
    return origin, f"{tool} from any page of {origin}"


def applies(action: str, *, tainted: bool) -> bool:
    """Whether remembered leave counts: not for ways out, once strangers' words were read (INJ-2)."""
    return not (tainted and action in _WAYS_OUT)


def taints(tool: str) -> bool:
    """Whether a call of this tool brings in what strangers wrote."""
    return _STRANGERS.search(tool) is not None


def named_files(command: str) -> list[str]:
    """The words of a command that may name files; each could be what it runs."""
    try:
        words = shlex.split(command, comments=False)
    except ValueError:
        words = command.split()
    return list(dict.fromkeys(word for word in words if word and not word.startswith("-")))[:50]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def _sha256(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode("utf-8", "replace")).hexdigest()
