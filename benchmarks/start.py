"""From `start` to a connected daemon, on a warm cache, against a bare interpreter.

All of it counts: the interpreter, imports, the disk, key and hello at a real backend.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, python, seconds_of
from e2e.harness import clean_environment, running_backend, running_daemon

RUNS = 11


def run() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="ca-") as name,
        running_backend(Path(name) / "server") as backend,
    ):
        home = Path(name) / "laptop"
        _, key = backend.create_host()
        env = clean_environment(home)
        with running_daemon(home, backend.url, key):
            pass  # logs in, and warms the caches

        def ours() -> float:
            began = time.perf_counter()
            with running_daemon(home, backend.url, key):
                return time.perf_counter() - began

        bare = python("-c", "pass")
        pairs = paired(ours, lambda: seconds_of(bare, env=env, cwd=home), runs=RUNS)
    return [figure("start to connected", "python -c pass", pairs, goal="<= 60x", max_ratio=60)]
