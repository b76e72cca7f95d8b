"""Which port of 127.0.0.1 the server gets."""

import socket
from typing import Final
from urllib.parse import urlsplit

from cloudagent.errors import OccupiedError

PREFERRED: Final = 8700
_TRIED: Final = 20


def choose(wanted: int | None, last: int) -> int:
    """The wanted port; else the preferred one, the last one, or the next that is free.

    Raises:
        OccupiedError: the wanted port is taken, or every one that we would take.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise OccupiedError(
                f"port {wanted} is taken by another program",
                why=f"127.0.0.1:{wanted} cannot be bound",
                next_step="cloudagent up   (finds a free one)",
            )
        return wanted
    candidates = [PREFERRED, last or PREFERRED, *range(PREFERRED + 1, PREFERRED + _TRIED)]
    for port in candidates:
        if is_free(port):
            return port
    raise OccupiedError(
        f"no port from {PREFERRED} to {candidates[-1]} is free",
        why="each of them is taken by another program",
        next_step="cloudagent up --port 0   (any free one)",
    )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server binds: connections of its last life may still linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def of(url: str) -> int:
    return urlsplit(url).port or 0
