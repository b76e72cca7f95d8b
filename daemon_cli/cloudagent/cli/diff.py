from typing import TYPE_CHECKING, Annotated

import typer

from cloudagent import terminal

if TYPE_CHECKING:
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import RunDiff


def diff(
    message: Annotated[
        str, typer.Argument(help="A message, msg_…: yours, or an agent's answer; or a run, run_….")
    ],
    stat: Annotated[bool, typer.Option("--stat", help="The files and their numbers only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what an agent changed in its repository while it worked on a message, as `git diff` does."""
    from cloudagent.client import CloudAgent

    with CloudAgent() as ca:
        found = _found(ca, message)
    if as_json:
        diffs = [one.model_dump(mode="json") for one in found]
        terminal.show_json("diff", {"message": message, "diffs": diffs})
        return
    for one in found:
        _show(one, stat=stat)
    if not found:
        terminal.say(
            "No change is known: the agent changed nothing, still works, or its folder is in no "
            "git repository."
        )


def _found(ca: "CloudAgent", about: str) -> "list[RunDiff]":
    from cloudagent.errors import NotFoundError

    if about.startswith("run_"):
        runs: list[str] = [about]
    else:
        said = ca.messages.get(about)
        traced = [one.run_id for one in ca.messages.trace(about).deliveries if one.run_id]
        runs = [said.run_id] if said.run_id else [str(one) for one in traced]
    found: list[RunDiff] = []
    for run_id in runs:
        try:
            found.append(ca.runs.diff(run_id))
        except NotFoundError:
            ca.runs.get(run_id)  # there is such a run, or this says so
    return found


def _show(diff: "RunDiff", *, stat: bool) -> None:
    for file in diff.files:
        if stat or not file.patch:
            lines = "binary" if file.binary else f"+{file.additions} -{file.deletions}"
            name = f"{file.old_path} => {file.path}" if file.old_path else file.path
            terminal.show(terminal.safe(f"{file.status:9} {lines:>12}  {name}"))
            continue
        for line in file.patch.splitlines():
            terminal.show(_styled(terminal.safe(line)))
    for note in notes(diff):
        terminal.say(terminal.safe(note))


def _styled(line: str) -> str:
    import sys

    code = {"+": "32", "-": "31", "@": "36", "d": "1"}.get(line[:1])
    return terminal.style(line, code, sys.stdout) if code else line


def notes(diff: "RunDiff") -> list[str]:
    """What to know of a diff, its numbers first."""
    files = len(diff.files) + diff.more
    word = "file" if files == 1 else "files"
    told = [f"{files} {word} changed, +{diff.additions} -{diff.deletions}"] if files else []
    if diff.problem:
        told.append(diff.problem)
    elif diff.more:
        told.append(f"{diff.more} of them are not listed")
    if any(file.truncated for file in diff.files):
        told.append("some of it was too long to be kept, and is left out")
    if diff.redacted:
        told.append("what looks like a key was taken out: this cannot be applied as a patch")
    if diff.shared:
        told.append("others worked in this folder at the same time: their changes are in it too")
    if diff.late:
        told.append(
            "the agent began before the first look was over: its first changes may be missing"
        )
    return told
