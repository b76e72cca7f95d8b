"""What the program reads and writes: one JSON object per line, a turn in, events out.

    in   {"prompt", "system_prompt", "session_id", "resume", "sessions_dir", "folder", "socket",
          "token_file", "model"?, "files"?, "pictures"? [{"path", "media_type"}]}
    out  {"type": "ready", "session_id", "model"}              the tools are there
         {"type": "delta", "block", "offset", "text"}          of a text under way
         {"type": "text", "block", "text"}                     one whole block
         {"type": "tool_call", "id", "name", "input"}
         {"type": "tool_result", "id", "output", "is_error", "truncated"}
         {"type": "retry", "attempt", "reason", "delay_s", "detail"}
         {"type": "result", "ok", "reason"?, "detail", "session_id", "text", "input_tokens",
          "output_tokens", "retry_after_s"?}                   the turn's last line, always

After a retry the deltas of a block begin anew at offset 0; its `text` has the last word.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cloudagent_daemon.agent.errors import AgentError
from cloudagent_daemon.agent.history import Picture, encodable

#: Takes one event; returns when it is written.
Emit: TypeAlias = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TurnRequest:
    """A turn to take."""

    prompt: str
    #: Who the agent is and how it answers.
    system_prompt: str
    session_id: str
    #: Whether that session must already exist.
    resume: bool
    sessions_dir: Path
    #: The folder that the file tools may read.
    folder: Path
    #: Where the tools of the daemon's bridge are, and the file that holds the token for them.
    socket: Path
    token_file: Path
    model: str | None = None
    #: Where files of messages lie, which they may read too.
    files: Path | None = None
    #: Those of them that the model is to be shown, by the kind that their bytes say.
    pictures: tuple[Picture, ...] = ()

    def line(self) -> bytes:
        values = {name: str(v) if isinstance(v, Path) else v for name, v in vars(self).items()}
        values["pictures"] = [
            {"path": str(one.path), "media_type": one.media_type} for one in self.pictures
        ]
        return json.dumps(values).encode() + b"\n"


def parse_turn(line: bytes) -> TurnRequest:
    """The turn on a line.

    Raises:
        AgentError: there is none.
    """
    try:
        value: dict[str, Any] = json.loads(line)
        return TurnRequest(
            prompt=encodable(value["prompt"]),
            system_prompt=value["system_prompt"],
            session_id=value["session_id"],
            resume=value["resume"],
            sessions_dir=Path(value["sessions_dir"]),
            folder=Path(value["folder"]),
            socket=Path(value["socket"]),
            token_file=Path(value["token_file"]),
            model=value.get("model"),
            files=Path(value["files"]) if value.get("files") else None,
            pictures=tuple(
                Picture(Path(one["path"]), one["media_type"]) for one in value.get("pictures", ())
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError("internal", f"not a turn: {error!r}") from error


def write(event: dict[str, Any]) -> None:
    """Writes one event to standard output; waits if nobody takes it."""
    sys.stdout.buffer.write(json.dumps(event).encode() + b"\n")
    sys.stdout.buffer.flush()
