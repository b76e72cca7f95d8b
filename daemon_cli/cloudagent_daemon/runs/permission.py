"""Whether an agent may do what it asks for, by its permission mode alone. Pure.

A person's answer is to come before this one's: whoever asks a person does so in the runner's `_decide`,
and falls back to `by_mode` when nobody is there.
"""

from typing import Final

from cloudagent_daemon.drivers.base import Decision, PermissionAsked

#: Looks only, at the agent's own machine; the same that Claude Code does unasked.
_LOOKING: Final = frozenset({"read", "search", "think"})
_EDITING: Final = _LOOKING | {"edit"}
#: What each mode allows without asking. A mode that is not known allows what `default` does.
_ALLOWED: Final = {"default": _LOOKING, "plan": _LOOKING, "acceptEdits": _EDITING}


def by_mode(mode: str, asked: PermissionAsked) -> Decision:
    """The decision of a machine at which nobody sits: what the mode does not allow is denied."""
    if asked.ours:
        return Decision(True, "It is a tool of cloudagent.")
    looked_at = not asked.beyond_mode  # else the program has, and what is asked is more than that
    if mode == "bypassPermissions" or (looked_at and asked.kind in _ALLOWED.get(mode, _LOOKING)):
        return Decision(True, f"The agent's permission mode is {mode}.")
    return Decision(
        False,
        f"The agent's permission mode ({mode}) does not allow it, and nobody can be asked. Go on "
        "without it, or say in a message what you would have done.",
    )
