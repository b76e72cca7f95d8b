"""The agent's loop: ask the model, do what it calls for, until it has no more to call.

New behaviour is a new tool or another model, not a branch in here.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import anyio

from cloudagent_daemon.agent.context import fit
from cloudagent_daemon.agent.errors import PASSING, AgentError, ModelError, ToolError
from cloudagent_daemon.agent.history import (
    Call,
    Picture,
    Result,
    Results,
    Usage,
    User,
    clip,
    encodable,
)
from cloudagent_daemon.agent.models.base import Model, Reply, Request, Stop
from cloudagent_daemon.agent.session import Session
from cloudagent_daemon.agent.tools.base import Toolset
from cloudagent_daemon.agent.wire import Emit

#: Requests to the model for one answer, the first included.
TRIES: Final = 5
#: Bounds of the wait before another try: doubled each time, full jitter below it.
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
#: A service that asks for a longer wait than this is not waited for.
PATIENCE_S: Final = 60.0
_CUT: Final = "\n\n[Cut off here: the model reached the limit of its output.]"


@dataclass(frozen=True)
class Answer:
    """A turn that went well."""

    #: What the model wrote last; may be empty.
    text: str
    usage: Usage


class Loop:
    """Takes one turn of a session.

    Args:
        budget_tokens: how much history a request may carry.
        max_calls: how many answers the model may take.
    """

    def __init__(
        self,
        model: Model,
        toolsets: Sequence[Toolset],
        session: Session,
        emit: Emit,
        *,
        budget_tokens: int,
        max_calls: int,
    ) -> None:
        self._model = model
        self._tools = {spec.name: tools for tools in toolsets for spec in tools.specs}
        self._specs = [spec for tools in toolsets for spec in tools.specs]
        self._session = session
        self._emit = emit
        self._budget_tokens = budget_tokens
        self._max_calls = max_calls
        self._texts = TextBlocks(emit)
        self.usage = Usage()

    async def run(self, prompt: str, system: str, pictures: tuple[Picture, ...] = ()) -> Answer:
        """Works until the model is done; the session then tells how the turn ended, whatever way.

        Raises:
            AgentError: the turn failed.
        """
        self._session.add(User(prompt, pictures))
        try:
            text = await self._work(system)
        except AgentError as error:
            self._texts.keep()
            self._session.end(error.reason)
            raise
        except anyio.get_cancelled_exc_class():
            self._texts.keep()
            self._session.end("interrupted")
            raise
        self._session.end(None)
        return Answer(text, self.usage)

    async def _work(self, system: str) -> str:
        for _ in range(self._max_calls):
            reply = await self._ask(system)
            self.usage += reply.usage
            self._texts.finish(reply.texts)
            if reply.stop is Stop.REFUSAL:
                raise AgentError("model_error", reply.message.text or "The model refused.")
            if reply.message.text or reply.message.calls:
                self._session.add(reply.message)
            if not reply.message.calls:
                return reply.message.text + (_CUT if reply.stop is Stop.LENGTH else "")
            results = [await self._call(call) for call in reply.message.calls]
            self._session.add(Results(tuple(results)))
        raise AgentError("max_turns", f"The model was asked {self._max_calls} times in this turn.")

    async def _ask(self, system: str) -> Reply:
        """The model's next reply, with patience for what may pass."""
        for attempt in range(1, TRIES + 1):
            history = fit(self._session.history, self._budget_tokens)
            self._texts.restart()
            try:
                request = Request(system, history, self._specs)
                return await self._model.complete(request, self._texts.say)
            except ModelError as error:
                wait_s = self._wait(error, attempt)
                if wait_s is None:
                    raise
                self._emit({
                    "type": "retry",
                    "attempt": attempt + 1,
                    "reason": error.reason,
                    "delay_s": round(wait_s, 3),
                    "detail": str(error),
                })  # fmt: skip
                await anyio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: ModelError, attempt: int) -> float | None:
        """Seconds until another try; None if there is no point in one."""
        if attempt == TRIES:
            return None
        if error.reason == "context_overflow" and attempt == 1:
            self._budget_tokens //= 2
            return 0.0
        if error.reason not in PASSING:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= PATIENCE_S else None
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))
        return random.uniform(0, longest)  # noqa: S311 (spreads load, hides nothing)

    async def _call(self, call: Call) -> Result:
        self._emit({"type": "tool_call", "id": call.id, "name": call.name, "input": call.input})
        output, failed = await self._outcome(call)
        output, truncated = clip(encodable(output))
        result = Result(call.id, output, is_error=failed, truncated=truncated)
        event = asdict(result)
        self._emit({"type": "tool_result", "id": event.pop("call_id"), **event})
        return result

    async def _outcome(self, call: Call) -> tuple[str, bool]:
        if call.problem:
            return call.problem, True
        tools = self._tools.get(call.name)
        if tools is None:
            return f"There is no tool {call.name!r}; there are {', '.join(self._tools)}.", True
        try:
            return await tools.call(call.name, call.input), False
        except ToolError as failure:
            return str(failure), True


class TextBlocks:
    """The text that the model is writing, numbered through the turn."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._finished = 0
        self._partial: dict[int, str] = {}

    def say(self, block: int, text: str) -> None:
        before = self._partial.get(block, "")
        self._partial[block] = before + text
        event = {"block": self._finished + block, "offset": len(before), "text": text}
        self._emit({"type": "delta", **event})

    def restart(self) -> None:
        """The reply under way is asked for anew: its blocks begin again."""
        self._partial.clear()

    def finish(self, texts: Sequence[str]) -> None:
        """The reply is whole, and these are its blocks."""
        for text in texts:
            if text:
                self._emit({"type": "text", "block": self._finished, "text": text})
            self._finished += 1
        self._partial.clear()

    def keep(self) -> None:
        """No more will come: what was said stays as it is."""
        self.finish(tuple(self._partial.values()))
