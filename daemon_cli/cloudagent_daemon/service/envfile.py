"""The person's own additions to the service's environment, where no manager reads them (launchd).

systemd reads the same file itself (systemd.exec(5), EnvironmentFile=); what is understood here is
what both understand alike: `NAME=value`, one a line, perhaps in quotes, `#` for comments.
"""

import re
from pathlib import Path
from typing import Final

_LINE: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*?)\s*")
_QUOTED: Final = re.compile(r"\"([^\"\\]*)\"|'([^']*)'")


def parse(text: str) -> dict[str, str]:
    """The variables that the text sets; lines that are understood otherwise are left out."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            name, value = match.groups()
            if quoted := _QUOTED.fullmatch(value):
                found[name] = quoted[1] or quoted[2] or ""
            elif not value.startswith(("'", '"')) and "\\" not in value:
                found[name] = value
    return found


def read(path: Path) -> dict[str, str]:
    """What the file sets; nothing if there is none."""
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
