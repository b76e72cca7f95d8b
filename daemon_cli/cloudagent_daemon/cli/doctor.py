"""`doctor`: checks everything that a message needs, goes on after a failure, and says what helps."""

import argparse

from cloudagent_daemon.cli.options import Commands


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("doctor", parents=[options])
    parser.add_argument("--fix", action="store_true", help="mend what can be mended without harm")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, without secrets"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from cloudagent_daemon.cli import examine  # what it needs takes time that no other command has

    return examine.run(arguments)
