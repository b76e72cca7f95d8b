from typing import TYPE_CHECKING, Annotated

import typer

from cloudagent import terminal
from cloudagent.cli.names import complete_agents

if TYPE_CHECKING:
    from cloudagent_protocol.resources import DayUsage


def usage(
    agent: Annotated[
        str | None,
        typer.Argument(help="Name or id; all agents without.", autocompletion=complete_agents),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="So many, today included.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what your agents have used: turns, tokens, and the price where their programs tell one."""
    from datetime import UTC, datetime, timedelta

    from cloudagent.client import CloudAgent

    since = (datetime.now(UTC) - timedelta(days=days - 1)).date()
    with CloudAgent() as ca:
        wanted = ca.agents.get(agent).id if agent else None
        found = list(ca.usage.list(since=since, agent_id=wanted))
        names = {one.id: one.name for one in ca.agents.list()} if found else {}
    if as_json:
        terminal.show_json("usage", {"usage": [one.model_dump(mode="json") for one in found]})
        return
    if not found:
        terminal.say("No turn has ended in that time that told what it used.")
        return
    rows = [("DAY (UTC)", "AGENT", "TURNS", "INPUT", "OUTPUT", "COST")]
    rows += [_row(one.day, names.get(one.agent_id, one.agent_id), one) for one in found]
    terminal.columns(rows)
    turns, cost = sum(one.turns for one in found), sum(one.cost_usd for one in found)
    tokens = sum(one.input_tokens + one.output_tokens for one in found)
    terminal.say(
        f"{turns} {'turn' if turns == 1 else 'turns'}, {tokens:,} tokens{f', ${cost:,.2f}' if cost else ''}"
    )


def _row(day: str, name: str, one: "DayUsage") -> tuple[str, ...]:
    cost = f"${one.cost_usd:,.2f}" if one.cost_usd else "-"
    return day, name, str(one.turns), f"{one.input_tokens:,}", f"{one.output_tokens:,}", cost
