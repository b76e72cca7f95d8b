"""`status`, `--help` and `doctor` against a bare interpreter: people type them all day.

Without a daemon: `doctor` then looks itself, and starts no other program here.
"""

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
        return figures
