"""Which wire protocol two peers speak."""

from collections.abc import Iterable
from typing import Final

from cloudagent_protocol.errors import CloseCode, ProtocolError

#: Versions that this code speaks. A released version never changes the meaning of a frame.
SUPPORTED: Final[tuple[int, ...]] = (1,)

#: Version of the distribution; pyproject.toml holds the same (a test compares them).
DISTRIBUTION: Final = "0.3.0"

#: The oldest daemon that this backend still serves.
MINIMUM_DAEMON: Final = "0.3.0"


def negotiate(offered: Iterable[int], supported: Iterable[int] = SUPPORTED) -> int:
    """The newest version that both sides know.

    Raises:
        ProtocolError: there is none; the link closes with `UPGRADE_NEEDED`.
    """
    offered, supported = set(offered), set(supported)
    if common := offered & supported:
        return max(common)
    raise ProtocolError(
        f"no common protocol version: offered {sorted(offered)}, supported {sorted(supported)}",
        CloseCode.UPGRADE_NEEDED,
    )
