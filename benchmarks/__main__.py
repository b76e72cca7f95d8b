"""Runs the benchmarks: `python -m benchmarks [NAME ...] [--json]`; exit code 1 if a goal is missed."""

import argparse
import importlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from benchmarks.measure import Figure, report  # noqa: E402 - the harness is found through the line above

NAMES = ("commands", "bridge", "cold_turn")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(
            f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    figures: list[Figure] = []
    for name in options.names or NAMES:
        print(f"{name} ...", file=sys.stderr)
        figures += importlib.import_module(f"benchmarks.{name}").run()
    report(figures, as_json=options.json)
    return 0 if all(each.ok for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
