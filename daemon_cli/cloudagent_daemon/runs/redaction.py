"""What a process says is reported without the keys in it: a model's, a service's, a person's.

Programs print the request that failed, with its headers, or the environment they were given. What goes
to the backend is kept there and shown, so it loses what has the form of a key, and the very values of
those variables of the process that hold one by their name.
"""

import re
from collections.abc import Mapping
from typing import Final

#: In place of a key; its first letters stay, to tell which one it was.
GONE: Final = "…"
#: A shorter value of a variable may be any word.
_LEAST_CHARS: Final = 8
#: Of a text that goes on, so much is held back that no key is cut in two.
HELD_CHARS: Final = 4_096

SECRET_NAME: Final = re.compile(r"(key|token|secret|passw(or)?d|credential)", re.IGNORECASE)
#: Prefixes that vendors give their keys, JSON Web Tokens (RFC 7519), and what names itself.
SECRET_VALUE: Final = re.compile(
    r"\b(sk[-_](?:machine_|ant-|proj-)?|cat_|crt_|gh[opsur]_|github_pat_|glpat-|hf_|xox[a-z]-|AKIA|AIza|eyJ)"
    r"[A-Za-z0-9_.-]{12,}"
)
_BEARER: Final = re.compile(r"\b(bearer|basic)( +)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_HEADER: Final = re.compile(
    r"((?:x-api-key|api[-_]key|proxy-authorization)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]{8,}",
    re.IGNORECASE,
)
_USER_IN_URL: Final = re.compile(r"(://[^/\s:@]{0,100}:)[^/\s@]{1,200}@")


class Redaction:
    """Takes the keys out of what one process says.

    Args:
        environment: the process's variables.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {
            value
            for name, value in environment.items()
            if SECRET_NAME.search(name) and len(value) >= _LEAST_CHARS and "\n" not in value
        }
        # The longest first: one may be the beginning of another.
        ordered = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._held = ""

    def clean(self, text: str) -> str:
        """The text without keys."""
        if self._values:
            text = self._values.sub(GONE, text)
        text = SECRET_VALUE.sub(rf"\1{GONE}", text)
        text = _BEARER.sub(rf"\1\2{GONE}", text)
        text = _HEADER.sub(rf"\1{GONE}", text)
        return _USER_IN_URL.sub(rf"\1{GONE}@", text)

    def feed(self, piece: str) -> str:
        """What of a text that goes on can be told now: whole lines, but never a very long rest."""
        text = self._held + piece
        end = text.rfind("\n") + 1
        if not end and len(text) > 2 * HELD_CHARS:
            end = len(text) - HELD_CHARS
        self._held = text[end:]
        return self.clean(text[:end])

    def flush(self) -> str:
        """The rest."""
        rest, self._held = self._held, ""
        return self.clean(rest)
