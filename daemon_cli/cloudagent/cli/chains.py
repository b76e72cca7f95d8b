from typing import TYPE_CHECKING, Annotated

import typer

from cloudagent import terminal

if TYPE_CHECKING:
    from cloudagent_protocol.resources import Chain


def chains(
    everything: Annotated[
        bool, typer.Option("--all", help="Those that go on or ended too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List chains of messages between agents that have paused and wait for your decision."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import ChainState

    with CloudAgent() as ca:
        found = list(ca.chains.list(None if everything else ChainState.PAUSED))
    if as_json:
        terminal.show_json("chains", {"chains": [one.model_dump(mode="json") for one in found]})
        return
    if not found:
        terminal.say(
            "Agents have not messaged each other yet." if everything else "None has paused."
        )
        return
    rows = [("STATE", "TURNS", "WAITING", "BEGAN WITH", "ID")]
    for one in found:
        opening = " ".join(f"{one.author.name}: {one.opening}".split())[:50]
        turns = f"{one.turns} of {one.turns_allowed}"
        rows.append((one.state, turns, str(one.waiting), opening, one.id))
    terminal.columns(rows)


def chain(
    chain_id: Annotated[str, typer.Argument(metavar="ID", help="As `cloudagent chains` shows it.")],
    decision: Annotated[
        str | None, typer.Argument(help="continue or stop; without it, how it stands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a chain of messages between agents, or decide whether it goes on."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import ChainDecide

    if decision not in {None, "continue", "stop"}:
        raise typer.BadParameter(f"{decision!r} is no decision; it is continue or stop")
    with CloudAgent() as ca:
        if decision is None:
            found = ca.chains.get(chain_id)
        else:
            body = ChainDecide.model_validate({"decision": decision})
            found = ca.chains.decide(chain_id, body)
    if as_json:
        terminal.show_json("chain", found.model_dump(mode="json"))
    else:
        _show(found)


def _show(found: "Chain") -> None:
    terminal.show(terminal.safe(f"{found.author.name}: {' '.join(found.opening.split())}"))
    terminal.show(f"{found.state} after {found.turns} of {found.turns_allowed} turns")
    if found.waiting:
        terminal.show(f"{found.waiting} messages wait: cloudagent chain {found.id} continue|stop")
    for answer in found.answers:
        said = f"{answer.at.astimezone():%Y-%m-%d %H:%M} {answer.by}: {answer.decision}"
        terminal.show(terminal.safe(said))
