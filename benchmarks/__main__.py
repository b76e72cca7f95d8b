"""Runs the benchmarks: `python -m benchmarks [NAME ...] [--json]`; exit code 1 if a goal is missed."""

import argparse
import importlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from benchmarks.measure import Figure, report  # noqa: E402 - the harness is found through the line above

NAMES = (
    "commands",
    "start",
    "bridge",
    "cold_turn",
    "warm_turn",
    "delivery",
    "one_message",
    "idle_host",
    "reconnect",
    "backlog",
    "growth",
    "spool",
    "daemon_idle",
)
#: Those that `--whole` makes larger.
LARGER = ("idle_host", "backlog")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--whole", action="store_true", help="5,000 idle hosts, a backlog of 100,000"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(
            f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    figures: list[Figure] = []
    for name in options.names or NAMES:
        print(f"{name} ...", file=sys.stderr)
        run = importlib.import_module(f"benchmarks.{name}").run
        figures += run(whole=True) if options.whole and name in LARGER else run()
    report(figures, as_json=options.json)
    return 0 if all(each.ok for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
