"""`acp`: the built-in agent for an editor, on standard input and output."""

import argparse
import sys
from typing import Final

from cloudagent_daemon.cli.options import USAGE, CommandError, Commands, Here

_KINDS: Final = ("anthropic", "openai")


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "acp",
        parents=[options],
    )
    parser.add_argument("--model", metavar="NAME", help="the model (default: as configured)")
    parser.add_argument(
        "--model-kind", choices=_KINDS, help="the API to speak (default: by the model's name)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    if sys.stdin.isatty():
        raise CommandError(
            "`acp` is spoken to by an editor, not by a person",
            "standard input is a terminal",
            'in your editor\'s settings, an agent with the command "cloudagent-daemon" and the '
            'arguments ["acp"] (docs/drivers.md)',
            USAGE,
        )
    from cloudagent_daemon.agent.acp import server
    from cloudagent_protocol.version import DISTRIBUTION

    sessions = here.paths.state_dir / "acp"
    return server.run(sessions, DISTRIBUTION, arguments.model, arguments.model_kind)
