"""Which model and permission mode a process of claude works with, and how it is given others. Pure.

Seen with 2.1.197, and held by tests/e2e/test_claude_contract.py:

- `set_model` takes any name; without one it takes claude's own default, not that of the person's settings
  or environment. So the name of the model that it began with is kept, to go back to.
- `set_permission_mode` takes any word, and answers with it.
- A process that was begun in `bypassPermissions` asks nothing in `plan` either, and one that was not refuses
  to change to it. So such a process is for that mode alone.
- A plan that a person agrees to takes the process out of `plan` by itself, into the mode before. So its mode
  is what it says last; and it goes into `plan` by way of `default`, as one that is started in it does.
"""

from typing import Final

from cloudagent_daemon.drivers.values import Json, as_object, as_text, short

_BYPASS: Final = "bypassPermissions"
#: Those that mean the same whoever has set them, and however the process was begun.
_MODES: Final = frozenset({"default", "acceptEdits", "plan"})


class Tuning:
    """What one process works with.

    Args:
        model: what it is started with; None: none is named.
        mode: what it is started with.
    """

    def __init__(self, model: str | None, mode: str) -> None:
        self._model = model
        self._begun_in = mode
        #: The one it was put into, and the one it says that it is in.
        self._given = self._mode = mode
        #: What it works with if no model is named, once it has said so.
        self._unnamed: str | None = None

    def heard(self, message: Json) -> None:
        """Of a `system` line: its `init`, or a `status`."""
        self._mode = as_text(message.get("permissionMode")) or self._mode
        if self._model is None and message.get("subtype") == "init":
            self._unnamed = short(message.get("model")) or self._unnamed

    def requests(self, model: str | None, mode: str) -> list[Json] | None:
        """What it is to be asked for, so that it works with these; None: it cannot be had so."""
        return _both(self._to_model(model), self._to_mode(mode))

    def tuned(self, model: str | None, mode: str) -> None:
        """It has agreed to all of that."""
        self._model, self._given, self._mode = model, mode, mode

    def _to_model(self, model: str | None) -> list[Json] | None:
        if model == self._model:
            return []
        name = model or self._unnamed
        return [{"subtype": "set_model", "model": name}] if name else None

    def _to_mode(self, mode: str) -> list[Json] | None:
        if mode == self._given == self._mode:
            return []
        if self._begun_in == _BYPASS or mode not in _MODES:
            return None
        way = ["default", mode] if mode == "plan" else [mode]
        return [{"subtype": "set_permission_mode", "mode": one} for one in way]


def agrees(request: Json, answer: Json) -> bool:
    """Whether the answer to one of these requests is that it shall be so."""
    told = as_object(answer.get("response")).get("mode")
    return answer.get("subtype") == "success" and told == request.get("mode")


def _both(first: list[Json] | None, second: list[Json] | None) -> list[Json] | None:
    return None if first is None or second is None else [*first, *second]
