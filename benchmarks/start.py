"""From `start` to a connected daemon, on a warm cache, against a bare interpreter.

All of it counts: the interpreter, imports, the disk, key and hello at a real backend.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, python, seconds_of
from e2e.harness import clean_environment, executed, log_in, running_backend, started_daemon

RUNS = 11


def run() -> list[Figure]:
    with (
        tempfile.TemporaryDirectory(prefix="ca-") as name,
        running_backend(Path(name) / "server") as backend,
    ):
        home = Path(name) / "laptop"
        _, key = backend.create_host()
        env = clean_environment(home)
        log_in(home, backend.url, key, env)

        def ours() -> float:
            began = time.perf_counter()
            with started_daemon(home, env, start=executed):
                return time.perf_counter() - began

        bare = python("-c", "pass")
        pairs = paired(ours, lambda: seconds_of(bare, env=env, cwd=home), runs=RUNS)
    return [figure("start to connected", "python -c pass", pairs, goal="<= 60x", max_ratio=60)]
