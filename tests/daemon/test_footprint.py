"""How much memory a tree of processes takes, and may."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import pytest

from cloudagent_daemon.cli.resident import resident_bytes
from cloudagent_daemon.config import Limits
from cloudagent_daemon.footprint import descendants, exceeds, most

MB = 1_000_000

#: 60 MB, which two further processes share with the first.
FORKS = """
import os, sys, time
kept = bytearray(b"x" * 60_000_000)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
print("ready", flush=True)
time.sleep(600)
"""
#: The root has no memory of its own that counts: it only waits.
ROOT = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', sys.argv[1]])"


@contextmanager
def tree(program: str) -> Generator[int]:
    """The pid of a process with `program` below it, once that has said that it is ready."""
    argv = [sys.executable, "-I", "-S", "-c", ROOT, program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as root:
        assert root.stdout
        try:
            assert root.stdout.readline() == b"ready\n"
            yield root.pid
        finally:
            for pid in [*descendants(root.pid), root.pid]:
                psutil.Process(pid).kill()


def test_what_a_tree_takes_is_all_of_it_and_what_is_shared_counts_once() -> None:
    with tree(FORKS) as root:
        assert len(descendants(root)) == 3
        taken = exceeds(root, 50 * MB)
        assert taken is not None
        assert 60 * MB <= taken < 110 * MB, "three times 60 MB would be wrong"
        assert exceeds(root, 110 * MB) is None
        told = resident_bytes(root)
        assert told is not None
        assert 60 * MB <= told < 110 * MB


def test_a_process_without_descendants_and_one_that_is_gone_take_nothing() -> None:
    assert exceeds(os.getpid(), 10**15) is None
    assert exceeds(2**22 - 1, 0) is None
    assert resident_bytes(2**22 - 1) is resident_bytes(None) is None


@pytest.mark.parametrize(
    ("size_mb", "percent", "expected"),
    [
        (0, 0.0, None),
        (100, 0.0, 100 * MB),
        (1, 75.0, 1 * MB),
        (10**9, 50.0, "half"),
    ],
)
def test_the_smaller_limit_counts_and_0_asks_for_nothing(
    size_mb: int, percent: float, expected: int | str | None
) -> None:
    found = most(Limits(run_memory_mb=size_mb, run_memory_percent=percent))
    if expected == "half":
        assert found is not None
        assert 0 < found <= psutil.virtual_memory().total / 2
    else:
        assert found == expected
