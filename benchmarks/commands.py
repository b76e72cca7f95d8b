"""`status`, `--help` and `doctor` against a bare interpreter: people type them all day.

Without a daemon: `doctor` then looks itself, and starts no other program here. With `HAPPY` (the path of
`happy`, of npm's `happy-coder`) also `status` against the same question to another daemon for coding agents.
"""

import os
import tempfile
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, python, seconds_of
from e2e.harness import BIN, clean_environment

RUNS = 21
#: `doctor` asks programs and the backend; without a daemon or a login, that is its imports.
COMMANDS = (
    (["cloudagent-daemon", "status"], 8),
    (["cloudagent-daemon", "--help"], 8),
    (["cloudagent-daemon", "doctor", "--json"], 60),
)


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        env = clean_environment(home)
        bare = python("-c", "pass")
        figures: list[Figure] = []
        for words, most in COMMANDS:
            argv = [str(BIN / words[0]), *words[1:]]
            pairs = paired(
                lambda argv=argv: seconds_of(argv, env=env, cwd=home),
                lambda: seconds_of(bare, env=env, cwd=home),
                runs=RUNS,
            )
            figures.append(
                figure(" ".join(words), "python -c pass", pairs, goal=f"<= {most}x", max_ratio=most)
            )
        if peer := os.environ.get("HAPPY"):
            status = [str(BIN / "cloudagent-daemon"), "status"]
            pairs = paired(
                lambda: seconds_of(status, env=env, cwd=home),
                lambda: seconds_of([peer, "daemon", "status"], env=env, cwd=home),
                runs=RUNS,
            )
            figures.append(figure("cloudagent-daemon status", "happy daemon status", pairs))
        return figures
