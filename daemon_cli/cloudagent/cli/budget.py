from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloudagent import terminal
from cloudagent.cli.names import complete_agents

if TYPE_CHECKING:
    from cloudagent_protocol.resources import Agent


def budget(
    agent: Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete_agents)],
    decision: Annotated[
        str | None,
        typer.Argument(help="continue or stop, where it has paused; without it, how it stands."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="It may use so many in a day (UTC); `none` for no limit.")
    ] = None,
    cost: Annotated[
        str | None, typer.Option(help="It may cost so many dollars in a day; `none` for no limit.")
    ] = None,
    auto_resume: Annotated[
        bool | None,
        typer.Option(help="Whether a turn that a rate limit cut off goes on by itself after that."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show or set what an agent may use without asking you, or answer it when it has paused."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import AgentLimitsGiven, AgentUpdate, ChainDecide

    if decision not in {None, "continue", "stop"}:
        raise typer.BadParameter(f"{decision!r} is no decision; it is continue or stop")
    changes: dict[str, Any] = {}
    if tokens is not None:
        changes["day_tokens"] = _number(tokens, int)
    if cost is not None:
        changes["day_cost_usd"] = _number(cost, float)
    if auto_resume is not None:
        changes["auto_resume"] = auto_resume
    with CloudAgent() as ca:
        found: Agent = ca.agents.get(agent)
        if changes:
            limits = AgentLimitsGiven.model_validate(found.limits.model_dump() | changes)
            found = ca.agents.update(found.id, AgentUpdate(limits=limits))
        if decision is not None:
            body = ChainDecide.model_validate({"decision": decision})
            found = ca.usage.decide(found.id, body)
    if as_json:
        terminal.show_json("agent", found.model_dump(mode="json"))
    else:
        _show(found)


def _number(text: str, kind: type[int] | type[float]) -> int | float | None:
    if text == "none":
        return None
    try:
        value = kind(text.replace(",", "").replace("_", ""))
    except ValueError:
        value = kind(0)
    if not 0 < value <= 10**12:
        raise typer.BadParameter(f"{text!r} is no limit; use a number above 0, or none")
    return value


def _show(found: "Agent") -> None:
    limits = found.limits
    caps = [f"{limits.day_tokens:,} tokens"] if limits.day_tokens else []
    caps += [f"${limits.day_cost_usd:,.2f}"] if limits.day_cost_usd else []
    terminal.show(terminal.safe(f"{found.name}: {' and '.join(caps) or 'no limit'} a day"))
    resumes = "goes on by itself" if limits.auto_resume else "waits for your word"
    terminal.show(f"after a rate limit it {resumes}")
    if found.pause:
        terminal.show(terminal.safe(f"paused: {found.pause.detail}"))
        count = found.pause.waiting
        waiting = "1 message waits" if count == 1 else f"{count} messages wait"
        terminal.show(terminal.safe(f"{waiting}: cloudagent budget {found.name} continue|stop"))
