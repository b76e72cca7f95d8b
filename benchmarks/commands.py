"""`status` and `--help` against a bare interpreter: people type them all day."""

import tempfile
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, python, seconds_of
from e2e.harness import BIN, clean_environment

RUNS = 21


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        env = clean_environment(home)
        bare = python("-c", "pass")
        figures: list[Figure] = []
        for words in (["cloudagent-daemon", "status"], ["cloudagent-daemon", "--help"]):
            argv = [str(BIN / words[0]), *words[1:]]
            pairs = paired(
                lambda argv=argv: seconds_of(argv, env=env, cwd=home),
                lambda: seconds_of(bare, env=env, cwd=home),
                runs=RUNS,
            )
            figures.append(
                figure(" ".join(words), "python -c pass", pairs, goal="<= 8x", max_ratio=8)
            )
        return figures
