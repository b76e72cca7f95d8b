from typing import TYPE_CHECKING, Annotated

import typer

from cloudagent import terminal

if TYPE_CHECKING:
    from cloudagent_protocol.resources import Approval


def approvals(
    everything: Annotated[
        bool, typer.Option("--all", help="Those that were answered or are over, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List what your agents ask you: whether they may do something, or what to do."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import ApprovalState

    with CloudAgent() as ca:
        found = list(ca.approvals.list(None if everything else ApprovalState.PENDING))
        agents = {agent.id: agent.name for agent in ca.agents.list()} if found else {}
    if as_json:
        shown = [one.model_dump(mode="json") for one in found]
        terminal.show_json("approvals", {"approvals": shown})
        return
    if not found:
        terminal.say(
            "Your agents have asked nothing yet." if everything else "Nothing waits for you."
        )
        return
    # The oldest first: who has waited longest is read first.
    for number, one in enumerate(reversed(found)):
        if number:
            terminal.show("")
        for line in lines(one, agents.get(one.agent_id, one.agent_id)):
            terminal.show(line)


def approve(
    approval_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `cloudagent approvals` shows it.")
    ],
    decision: Annotated[
        str | None,
        typer.Argument(help="once, conversation, always or deny; to a question also its answer."),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="For the agent: why not.")] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", help="To a question: the answer, in your words.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Answer what an agent asks you. The first answer counts, wherever it comes from."""
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.events import ApprovalDecision
    from cloudagent_protocol.resources import ApprovalKind

    words = "once, conversation, always or deny"
    if decision is None and not answer:
        raise typer.BadParameter(f"say {words}; or, to a question, the answer")
    with CloudAgent() as ca:
        if decision is None or decision not in set(ApprovalDecision):
            asked = ca.approvals.get(approval_id)
            if asked.kind is not ApprovalKind.QUESTION or (decision and answer):
                said = f"{decision!r} is no decision" if decision else "it is no question"
                raise typer.BadParameter(f"{said}; say {words}")
            decision, answer = ApprovalDecision.ONCE, answer or _option(asked, decision or "")
        done = ca.approvals.answer(approval_id, decision, reason=reason, answer=answer)
    if as_json:
        terminal.show_json("approval", done.model_dump(mode="json"))
    else:
        terminal.show(terminal.safe(f"{done.id}: {outcome(done)}"))


def _option(asked: "Approval", said: str) -> str:
    """A number stands for the option that is listed under it."""
    if said.isdecimal() and said not in asked.options and 1 <= int(said) <= len(asked.options):
        return asked.options[int(said) - 1]
    return said


def lines(one: "Approval", agent: str) -> list[str]:
    """All of a request, in lines: nothing of what is asked is left out."""
    from cloudagent.cli import words

    head = f"{one.id}  {agent}  asked {words.ago(one.requested_at)}"
    shown = [terminal.safe(head), *_asked(one)]
    if one.state != "pending":
        return [*shown, terminal.safe(f"  {outcome(one)}")]
    if one.question is not None:
        return [*shown, f"  answer with: cloudagent approve {one.id} ANSWER   (or deny)"]
    lasting = "|conversation|always" if one.rule else ""
    return [*shown, f"  answer with: cloudagent approve {one.id} once{lasting}|deny"]


def _asked(one: "Approval") -> list[str]:
    if one.question is not None:
        options = [f"  {number}. {option}" for number, option in enumerate(one.options, 1)]
        return [terminal.safe(line) for line in (*_indented(one.question), *options)]
    shown = [f"  {one.tool or 'a tool'} wants to do this{f' in {one.cwd}' if one.cwd else ''}:"]
    for name, value in (one.input or {}).items():
        shown += _indented(f"{name}: {_value(value)}", "    ")
    if one.truncated:
        shown.append("  ! It is too long to be shown whole.")
    if one.redacted:
        shown.append("  ! Keys in it are shown as “…”.")
    shown += [f"  runs the file {path}, as it is now" for path in one.files]
    if one.rule:
        shown.append(f"  conversation or always would allow: {one.rule}")
    return [terminal.safe(line) for line in shown]


def _value(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _indented(text: str, by: str = "  ") -> list[str]:
    return [f"{by}{line}" for line in text.splitlines()] or [by]


def outcome(one: "Approval") -> str:
    """What became of it, and whether the machine has it."""
    said = f": {one.answer or one.reason}" if one.answer or one.reason else ""
    match one.state:
        case "answered":
            return f"{one.decided_by} decided {one.decision}{said}; on its way to the machine"
        case "resolved":
            return f"{one.decided_by} decided {one.decision}{said}"
        case "expired":
            return "nobody answered in time, so it counted as refused"
        case _:
            return f"{one.state}{f': {one.detail}' if one.detail else ''}"
