"""Points where a test may kill the backend, as a power cut would: no clean-up, no flush.

`CLOUDAGENT_CRASH_AT` names one: a step, and whether its transaction is on the disk, as in
`lease_uncommitted`. Without it a point costs one comparison.
"""

import os
from itertools import product
from typing import Literal, TypeAlias, get_args

Step: TypeAlias = Literal[
    "greet",
    "submit",
    "lease",
    "sent",
    "received",
    "report",
    "end",
    "leave",
    "find",
    "decide",
]
Moment: TypeAlias = Literal["uncommitted", "committed"]

_armed: str | None = None


def points() -> list[str]:
    """The names of all of them."""
    return [f"{step}_{moment}" for step, moment in product(get_args(Step), get_args(Moment))]


def arm(name: str | None) -> None:
    """Chooses where to die; None for nowhere."""
    global _armed
    _armed = name


def point(step: Step, moment: Moment) -> None:
    """Exits with 137, as if killed, if this is the chosen point."""
    if _armed is not None and _armed == f"{step}_{moment}":
        os._exit(137)
