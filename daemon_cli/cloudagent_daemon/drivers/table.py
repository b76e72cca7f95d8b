"""Which drivers there are."""

from collections.abc import Mapping

from cloudagent_daemon.drivers.base import Driver, DriverError
from cloudagent_protocol.events import Reason
from cloudagent_protocol.resources import Runtime

DRIVERS: dict[str, Driver] = {}


def driver_named(name: str) -> Driver:
    """The driver of that name.

    Raises:
        DriverError: this daemon has none.
    """
    if driver := DRIVERS.get(name):
        return driver
    raise DriverError(
        Reason.RUNTIME_MISSING,
        f"This daemon has no driver {name!r} (it has {', '.join(DRIVERS)}). Update the daemon, "
        "or choose another driver for the agent.",
    )


async def detect(environment: Mapping[str, str]) -> list[Runtime]:
    """The agent programs of this machine, usable or not, in the table's order."""
    raise NotImplementedError
