"""A model without a service: the message itself says what it answers. For demos and tests.

Lines of the newest message that begin with `@@` are its script, the rest of it is then ignored:

    @@say TEXT               answer with this text
    @@call TOOL {JSON}       call a tool, then go on with the lines below
    @@stream N [GAP]         answer in N pieces, GAP seconds apart
    @@sleep SECONDS          wait before answering
    @@error STATUS [TIMES]   fail with this HTTP status (only the first TIMES times)
    @@recall                 answer with the earlier messages of the conversation

Any other message is echoed, word by word, so that a person sees how an answer streams.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import anyio

from cloudagent_daemon.agent.errors import ModelError, Reason
from cloudagent_daemon.agent.history import Assistant, Call, Entry, Result, Results, Usage, User
from cloudagent_daemon.agent.models.base import Reply, Request, Say, Stop

#: An echo takes about this long at most, however long it is.
ECHO_S: Final = 1.0
#: Seconds between two words of it.
WORD_S: Final = 0.03
_DIRECTIVE: Final = re.compile(r"^[ \t]*@@(\w+)[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_STATUS: Final[dict[int, Reason]] = {
    400: "invalid_request",
    401: "authentication",
    402: "billing",
    413: "context_overflow",
    429: "rate_limit",
    503: "overloaded",
    529: "overloaded",
}


@dataclass
class Step:
    """What the model does in answer to one request."""

    text: str = ""
    recall: bool = False
    call: Call | None = None
    sleep_s: float = 0.0
    pieces: int = 1
    gap_s: float = 0.0
    error: int | None = None
    error_times: int | None = None


class ScriptedModel:
    name = "scripted"

    def __init__(self) -> None:
        self._failures = 0

    async def complete(self, request: Request, say: Say) -> Reply:
        step = next_step(request.history)
        await anyio.sleep(step.sleep_s)
        self._fail(step)
        text = step.text or ("" if step.call else "ok")
        await _stream(text, step, say)
        calls = () if step.call is None else (step.call,)
        words = sum(len(e.text.split()) for e in request.history if not isinstance(e, Results))
        usage = Usage(words, len(text.split()))
        stop = Stop.TOOLS if calls else Stop.END
        return Reply((text,) if text else (), Assistant(text, calls), stop, usage)

    async def aclose(self) -> None:
        pass

    def _fail(self, step: Step) -> None:
        if step.error is None:
            return
        self._failures += 1
        if step.error_times is None or self._failures <= step.error_times:
            reason = _STATUS.get(step.error, "server_error")
            raise ModelError(reason, f"scripted error {step.error}", retry_after_s=0.0)


def next_step(history: Sequence[Entry]) -> Step:
    """The step that the newest message's script has come to."""
    prompts = [entry.text for entry in history if isinstance(entry, User)]
    results = _results_since_prompt(history)
    try:
        script = parse(prompts[-1])
    except (ValueError, IndexError) as error:
        return Step(text=f"bad script: {error}")
    if len(results) < len(script):
        step = script[len(results)]
    elif results:
        step = _echo(f"tool said: {results[-1].output}")
    else:
        step = _echo(f"You said: {prompts[-1]}")
    if step.recall:
        step.text += " | ".join(prompts[:-1])
    return step


def parse(prompt: str) -> list[Step]:
    """The steps that a message asks for; none for an ordinary one.

    Raises:
        ValueError, IndexError: a directive is unknown or lacks something.
    """
    steps = [Step()]
    for name, rest in _DIRECTIVE.findall(prompt):
        if _apply(steps[-1], name, rest):
            steps.append(Step())
    return steps if steps[-1] != Step() else steps[:-1]


def _apply(step: Step, name: str, rest: str) -> bool:
    """Adds a directive to a step; whether the step ends with it."""
    words = rest.split()
    match name:
        case "say":
            step.text += rest
        case "recall":
            step.recall = True
        case "call":
            tool, _, arguments = rest.partition(" ")
            step.call = Call(f"call_{uuid4().hex[:20]}", tool, _arguments(arguments))
        case "stream":
            step.pieces = int(words[0])
            step.gap_s = float(words[1]) if len(words) > 1 else 0.0
            step.text = step.text or "tick " * step.pieces
        case "sleep":
            step.sleep_s = float(words[0])
        case "error":
            step.error = int(words[0])
            step.error_times = int(words[1]) if len(words) > 1 else None
        case _:
            known = "@@say @@call @@stream @@sleep @@error @@recall"
            raise ValueError(f"unknown directive @@{name}; there are {known}")
    return name == "call"


def _arguments(text: str) -> dict[str, Any]:
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise ValueError("a call's arguments are a JSON object")  # noqa: TRY004 (a fault of the text)
    return value  # pyright: ignore[reportUnknownVariableType]  (JSON)


def _echo(text: str) -> Step:
    words = max(1, len(text.split()))
    return Step(text=text, pieces=words, gap_s=min(WORD_S, ECHO_S / words))


async def _stream(text: str, step: Step, say: Say) -> None:
    size = max(1, -(-len(text) // max(1, step.pieces)))
    for start in range(0, len(text), size):
        if start:
            await anyio.sleep(step.gap_s)
        say(0, text[start : start + size])


def _results_since_prompt(history: Sequence[Entry]) -> list[Result]:
    results: list[Result] = []
    for entry in reversed(history):
        if isinstance(entry, User):
            break
        if isinstance(entry, Results):
            results = [*entry.results, *results]
    return results
