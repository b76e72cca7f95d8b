"""Asking the running daemon of a profile what only it can know. Standard library only.

One question and one answer per connection, each a JSON object on a line:

    {"ask": "report"}   ->   {"answer": {...}}   or   {"error": "..."}

`report` is what `status.json` holds, as of now. `check` has the daemon try everything once from
where it lives (check.py). `reload` has it look into config.json, and connect with another key. The socket is 0600 in a directory 0700; the answers hold no secrets.
"""

import json
import socket
import time
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from cloudagent_daemon import sockets

SOCKET: Final = "control.sock"
Verb: TypeAlias = Literal["report", "check", "reload"]
#: How long each answer may take: a check starts coding agents and asks them who they are.
REPORT_S: Final = 5.0
CHECK_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 4 * 1_048_576


class NoAnswerError(Exception):
    """The daemon was not there, or did not answer; `str()` says why, for a person."""


def ask(state_dir: Path, verb: Verb, timeout_s: float | None = None) -> dict[str, Any]:
    """The daemon's answer.

    Raises:
        NoAnswerError: there is none within `timeout_s` (by default as long as the verb may take).
    """
    patience_s = timeout_s or (CHECK_S if verb == "check" else REPORT_S)
    path = sockets.find(SOCKET, state_dir)
    deadline = time.monotonic() + patience_s
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(patience_s)
            sock.connect(str(path))
            sock.sendall(json.dumps({"ask": verb}).encode() + b"\n")
            line = _line(sock, deadline)
        said: Any = json.loads(line)
        error, answer = said.get("error"), said.get("answer")
    except TimeoutError as failure:
        raise NoAnswerError(f"{path}: no answer within {patience_s:g} s") from failure
    except (OSError, ValueError, AttributeError) as failure:
        raise NoAnswerError(f"{path}: {failure}") from failure
    if not isinstance(answer, dict):
        raise NoAnswerError(f"{path}: {error or 'not the answer of a daemon'}")
    return answer  # pyright: ignore[reportUnknownVariableType] - any JSON object


def _line(sock: socket.socket, deadline: float) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(65_536)
        data += chunk
        if not chunk or len(data) > MAX_ANSWER_BYTES:
            raise ValueError("the answer broke off")
    return bytes(data)
