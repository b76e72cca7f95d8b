"""What a person sees while everything starts."""

import sys

from cloudagent.terminal import moving, safe, say, style

_LABEL_WIDTH = 9


class Report:
    """Lines of a start, each replaced by its outcome where the terminal can do that."""

    def __init__(self) -> None:
        self._moving = moving(sys.stderr)

    def busy(self, label: str, text: str) -> None:
        """What takes a moment now; only on a terminal."""
        if self._moving:
            sys.stderr.write(f"\r\x1b[K· {label:<{_LABEL_WIDTH}} {safe(text)} …")
            sys.stderr.flush()

    def done(self, label: str, text: str) -> None:
        self._line("✓", "32", label, text)

    def note(self, label: str, text: str, *more: str) -> None:
        self._line("!", "33", label, text, *more)

    def failed(self, label: str, text: str, *more: str) -> None:
        self._line("✗", "31", label, text, *more)

    def clear(self) -> None:
        """Take away what `busy` showed."""
        if self._moving:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, mark: str, colour: str, label: str, text: str, *more: str) -> None:
        self.clear()
        say(f"{style(mark, colour, sys.stderr)} {label:<{_LABEL_WIDTH}} {safe(text)}")
        for line in more:
            say(" " * (_LABEL_WIDTH + 3) + safe(line))
