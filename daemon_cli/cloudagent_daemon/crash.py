"""Points where a test may kill the daemon, as a power cut would: no clean-up, no flush.

`CLOUDAGENT_CRASH_AT` names one; without it a point costs one comparison.
"""

import os
from typing import Literal, TypeAlias

Point: TypeAlias = Literal[
    "after_receive",
    "after_persist",
    "after_ack",
    "before_spawn",
    "after_spawn",
    "after_copy",
    "after_send",
    "after_bring",
    "before_finish",
]

_armed: str | None = None


def arm(name: str | None) -> None:
    """Chooses where to die; None for nowhere."""
    global _armed
    _armed = name


def point(name: Point) -> None:
    """Exits with 137, as if killed, if this is the chosen point."""
    if _armed == name:
        os._exit(137)
