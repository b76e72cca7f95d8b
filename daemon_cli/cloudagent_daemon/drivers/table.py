"""Which drivers there are."""

from collections.abc import Mapping
from typing import Final

import anyio
import anyio.to_thread

from cloudagent_daemon.drivers import keys, known
from cloudagent_daemon.drivers.acp import ACP
from cloudagent_daemon.drivers.base import Driver, DriverError
from cloudagent_daemon.drivers.builtin import BUILTIN, SCRIPTED
from cloudagent_daemon.drivers.claude_code import CLAUDE_CODE
from cloudagent_daemon.drivers.codex import CODEX
from cloudagent_daemon.leash import NO_MASK, Mask
from cloudagent_protocol.events import Reason
from cloudagent_protocol.resources import Runtime

_ALL: Final[tuple[Driver, ...]] = (CLAUDE_CODE, CODEX, *ACP, BUILTIN, SCRIPTED)
DRIVERS: Final = {driver.name: driver for driver in _ALL}


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


def _warned(runtime: Runtime, environment: Mapping[str, str]) -> Runtime:
    """With what is known of its version, and of keys that would be used instead of its login."""
    if runtime.problem:
        return runtime
    told = [known.warning(runtime.name, runtime.version), keys.warning(runtime.name, environment)]
    words = ". ".join(filter(None, told))
    return runtime.model_copy(update={"warning": words}) if words else runtime


async def detect(environment: Mapping[str, str], mask: Mask = NO_MASK) -> list[Runtime]:
    """The agent programs of this machine, usable or not, in the table's order.

    They are asked with `environment`, and do not see what `mask` hides.
    """
    found: dict[str, Runtime] = {}

    async def look(driver: Driver) -> None:
        if runtime := await driver.detect(environment, mask):
            found[driver.name] = await anyio.to_thread.run_sync(_warned, runtime, environment)

    async with anyio.create_task_group() as tasks:
        for driver in DRIVERS.values():
            tasks.start_soon(look, driver)
    return [found[name] for name in DRIVERS if name in found]
