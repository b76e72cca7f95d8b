"""Tells systemd how the daemon is: sd_notify(3), which is a datagram to a socket."""

import logging
import socket
from collections.abc import Mapping
from typing import Final

from cloudagent_daemon.log import visible

logger = logging.getLogger(__name__)

#: What a service manager sets for the daemon alone.
_VARIABLES: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM"}
)
#: Where nobody watches, `Notifier.pet_s`.
UNWATCHED_S: Final = 20.0


def without_manager(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for children: what they said to the manager would count as said by the daemon."""
    return {name: value for name, value in environ.items() if name not in _VARIABLES}


class Notifier:
    """Sends to the socket that the environment names; says nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # `@` begins an abstract one (unix(7)).
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        watchdog = environ.get("WATCHDOG_USEC", "")
        #: How often to pet the watchdog: three times before it bites.
        self.pet_s = int(watchdog) / 3_000_000 if watchdog.isdigit() else UNWATCHED_S
        self._said = ""

    @property
    def listens(self) -> bool:
        """Whether a manager wants to be told."""
        return bool(self._address)

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self, text: str) -> None:
        """Pets the watchdog, and shows `text` in `systemctl status`."""
        # A line break would begin another message, and what a server says may be part of the text.
        status = visible(text)
        fresh = f"\nSTATUS={status}" if status != self._said else ""
        self._said = status
        self._send(f"WATCHDOG=1{fresh}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(0)
                sock.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:
            logger.debug("systemd was not told: %s", error, extra={"action": "notify"})


def standing_text(state: str, detail: str, server: str, host: str | None, working: int) -> str:
    """One line for `systemctl --user status`."""
    match state:
        case "connected":
            busy = f"{working} working" if working else "idle"
            return f"connected to {server} as {host}, {busy}"
        case "unauthorized":
            return f"key rejected by {server}: {detail}; run cloudagent-daemon login"
        case "draining":
            return f"draining: {working} still working"
        case _:
            return f"reconnecting to {server}: {detail}" if detail else f"connecting to {server}"
