"""The `cloudagent` command, one file per command; their bodies import what they run."""

from collections.abc import Callable
from typing import Annotated

import typer

from cloudagent.cli import guard
from cloudagent.cli.agents import agents
from cloudagent.cli.approvals import approvals, approve
from cloudagent.cli.budget import budget
from cloudagent.cli.chains import chain, chains
from cloudagent.cli.diff import diff
from cloudagent.cli.download import download
from cloudagent.cli.go_on import go_on
from cloudagent.cli.hosts import hosts
from cloudagent.cli.interrupt import interrupt
from cloudagent.cli.retry import retry
from cloudagent.cli.send import send
from cloudagent.cli.trace import trace
from cloudagent.cli.up import up
from cloudagent.cli.usage import usage

app = typer.Typer(
    name="cloudagent",
    help="Message your coding agents, which live on your own machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    guard.options.debug = debug


commands: list[Callable[..., None]] = [
    up,
    send,
    trace,
    diff,
    download,
    retry,
    go_on,
    agents,
    hosts,
    interrupt,
    approvals,
    approve,
    chains,
    chain,
    usage,
    budget,
]
#: Where a command is called otherwise than the function that does it.
_NAMES: dict[Callable[..., None], str] = {go_on: "continue"}
for command in commands:
    app.command(_NAMES.get(command))(guard.told(command))


def main() -> None:
    app()
