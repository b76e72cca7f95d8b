"""A file system of a test's own, small enough to be full at once."""

import contextlib
import subprocess
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def small_disk(folder: Path) -> Generator[bool]:
    """A file system of 16 MB at `folder`, where the system lets us; whether it did."""
    folder.mkdir(exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", "size=16m", "cloudagent-test", str(folder)]
    if subprocess.run(argv, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
