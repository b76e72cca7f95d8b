"""Lingering: that a user's systemd, and so the daemon, lives on after logout and from boot on.

It belongs to the user, not to a profile. A marker says that we turned it on, so that the last of our
services turns it off again, and never what somebody else wanted.
"""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloudagent_daemon.service.base import run

#: One empty file per user (loginctl(1)).
_LINGERING: Final = Path("/var/lib/systemd/linger")
_LOGINCTL_S: Final = 10.0


def user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def lingers() -> bool:
    return (_LINGERING / user()).exists()


def enable_command() -> str:
    """What an administrator would type."""
    return f"sudo loginctl enable-linger {user()}"


def enable(home: Path, environ: Mapping[str, str]) -> bool:
    """Turns it on if it is off and we may; whether it is on."""
    if lingers():
        return True
    marker = _marker(home)
    marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    marker.touch(mode=0o600)  # first: what was turned on must not be forgotten
    run(["loginctl", "--no-ask-password", "enable-linger", user()], environ, _LOGINCTL_S)
    if not lingers():
        marker.unlink()
    return lingers()


def disable_ours(home: Path, environ: Mapping[str, str]) -> bool:
    """Turns it off if we turned it on; whether that was so."""
    marker = _marker(home)
    if not marker.exists():
        return False
    run(["loginctl", "--no-ask-password", "disable-linger", user()], environ, _LOGINCTL_S)
    if lingers():
        return False
    marker.unlink()
    return True


def _marker(home: Path) -> Path:
    return home / "daemon" / "linger-enabled-by-us"
