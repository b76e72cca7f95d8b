"""Log lines on standard error: time, level, where, what, and the facts beside it. Never a secret."""

import logging
import re
from datetime import UTC, datetime
from typing import Final

from typing_extensions import override

_SECRET: Final = re.compile(r"\b(sk_machine_|cat_|crt_|eyJ)[A-Za-z0-9_.-]{6,}")
_LINK_KEY: Final = re.compile(r"([?&]k=)[A-Za-z0-9_-]{6,}")
#: What would steer a terminal, begin a line that nobody logged, or cannot be encoded.
_STEERING: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def start_logging(*, debug: bool = False) -> None:
    """Send our lines, and uvicorn's from warnings up, to standard error."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    # Not DEBUG: at that level libraries log the very bytes that they send, prompts and keys.
    root.setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger("cloudagent_backend").setLevel(logging.DEBUG if debug else logging.INFO)


class Lines(logging.Formatter):
    """`2026-11-20T21:00:00.123Z INFO api.link host connected action=attach host_id=host_...`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        name = record.name.removeprefix("cloudagent_backend.")
        facts = "".join(
            f" {key}={value}" for key, value in vars(record).items() if key not in _STANDARD
        )
        text = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z {record.levelname} {name} "
        lines = [text + record.getMessage() + facts]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return without_secrets("\n".join(visible(line) for line in lines))


def visible(text: str) -> str:
    """One line of `text`, with nothing in it that could steer a terminal."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """`text` with keys and tokens cut down to their kind."""
    return _LINK_KEY.sub(r"\1...", _SECRET.sub(r"\1...", text))
