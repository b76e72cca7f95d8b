"""Plays macOS's `launchctl` as its users have met it, failures and all.

Put it on PATH as `launchctl`; `$FAKE_LAUNCHD` is a folder with its memory. What it shall do
otherwise is told by files there: `no-gui` (nobody at the screen), `errno-5` (a number: so many
bootstraps fail), `slow` (a number: so many looks until a bootout has happened). `calls` lists what it
was asked.
"""

import os
import plistlib
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_LAUNCHD"])


def fail(code: int, text: str) -> int:
    print(text, file=sys.stderr)
    return code


def count_down(name: str) -> bool:
    """Whether there is one left of so many."""
    file = STATE / name
    left = int(file.read_text()) if file.exists() else 0
    if left:
        file.write_text(str(left - 1))
    return left > 0


def loaded(target: str) -> Path:
    return STATE / target.replace("/", "_")


def bootstrap(domain: str, plist: str) -> int:
    label = plistlib.loads(Path(plist).read_bytes())["Label"]
    if (STATE / "no-gui").exists():
        return fail(125, "Bootstrap failed: 125: Domain does not support specified action")
    if count_down("errno-5"):
        return fail(5, "Bootstrap failed: 5: Input/output error")
    service = loaded(f"{domain}/{label}")
    if service.exists():
        return fail(37, "Bootstrap failed: 37: Operation already in progress")
    service.write_bytes(Path(plist).read_bytes())
    return 0


def bootout(target: str) -> int:
    service = loaded(target)
    if not service.exists():
        return fail(3, "Boot-out failed: 3: No such process")
    (STATE / "going").touch()
    if not (STATE / "slow").exists():
        service.unlink()
        return 0
    return fail(36, "Boot-out failed: 36: Operation now in progress")


def show(target: str) -> int:
    if target.count("/") == 1:
        if (STATE / "no-gui").exists():
            return fail(113, f"Could not print domain: 113: Could not find domain {target}")
        print(f"{target} = {{")
        return 0
    service = loaded(target)
    if (STATE / "going").exists() and not count_down("slow"):
        service.unlink(missing_ok=True)
        (STATE / "going").unlink()
    if not service.exists():
        return fail(113, f'Could not find service "{target}" in domain for user')
    print(f"{target} = {{\n\tactive count = 1\n\tstate = running\n\truns = 1\n\tpid = 4711\n}}")
    return 0


def main() -> int:
    verb, *words = sys.argv[1:]
    with (STATE / "calls").open("a") as calls:
        calls.write(" ".join([verb, *words]) + "\n")
    match verb:
        case "bootstrap":
            return bootstrap(*words)
        case "bootout":
            return bootout(*words)
        case "print":
            return show(*words)
        case "enable" | "kickstart":
            return 0
        case _:
            return fail(64, f"Unrecognized subcommand: {verb}")


if __name__ == "__main__":
    sys.exit(main())
