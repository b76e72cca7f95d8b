import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from cloudagent import terminal
from cloudagent.cli.names import complete_agents

if TYPE_CHECKING:
    from cloudagent.client import AgentHandle, CloudAgent, Turn
    from cloudagent.turn import TurnEvent, TurnResult
    from cloudagent_protocol.resources import AgentMessageCreate, Message

#: How long a job's machine may take to connect, and how often it is looked for.
_HOST_S: Final = 60.0
_HOST_POLL_S: Final = 1.0


def _files(paths: list[Path] | None) -> list[Path] | None:
    for path in paths or ():
        if re.match(r"\s*[a-z][a-z0-9+.-]+:", str(path), re.IGNORECASE) and not path.exists():
            raise typer.BadParameter(
                f"{str(path)[:200]!r} is an address; nothing is fetched from addresses. Download it, and "
                "attach that file."
            )
        if not path.is_file():
            why = "a folder; pack it first" if path.is_dir() else "no such file"
            raise typer.BadParameter(f"{str(path)[:200]!r}: {why}.")
    return paths


def send(
    agent: Annotated[str, typer.Argument(help="Name or id.", autocompletion=complete_agents)],
    text: Annotated[str, typer.Argument(help="The message; - reads it from standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print the answer.")] = False,
    mode: Annotated[
        Literal["queue", "steer", "interrupt"],
        typer.Option(
            help="queue: after what was sent before. interrupt: next, and what runs is stopped. "
            "steer: into the turn under way, where the driver can.",
        ),
    ] = "queue",
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Wait at most this long, in seconds.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="The machine of a CI job (name or id); waits up to a minute for it."
        ),
    ] = None,
    attach: Annotated[
        list[Path] | None,
        typer.Option("--attach", help="A file; repeat for more.", callback=_files),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For this message's turn, instead of the agent's.")
    ] = None,
    permission_mode: Annotated[
        Literal["default", "acceptEdits", "plan", "bypassPermissions"] | None,
        typer.Option(
            "--permission-mode", help="For this message's turn: the agent's own, or a narrower one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Send a message to an agent.

    With --wait it exits 0 if the agent answered or chose to stay silent, 1 if its run failed.
    """
    from cloudagent.client import CloudAgent

    body = _read_stdin() if text == "-" else text
    with CloudAgent() as ca:
        handle = ca.agents.get(agent)
        host_id = _job_host(ca, host) if host else None
        files = _upload(ca, attach or [])
        wanted = _body(body, host_id, mode, files, model, permission_mode)
        if wait or timeout is not None:
            _send_and_wait(handle, wanted, timeout, as_json=as_json)
        else:
            sent = ca.messages.create(handle.id, wanted)
            _send_only(sent, agent, as_json=as_json)


def _job_host(ca: "CloudAgent", wanted: str) -> str:
    """The id of a job's machine; its daemon may only just be starting beside this command."""
    deadline = time.monotonic() + _HOST_S
    while (found := ca.hosts.job(wanted)) is None:
        if time.monotonic() > deadline:
            terminal.failure(
                f"no job is on a machine called “{wanted}”",
                f"none connected within {_HOST_S:.0f} s",
                "cloudagent hosts   (start the job's daemon with `cloudagent-daemon start --once`)",
            )
            raise typer.Exit(terminal.ExitCode.FAILED)
        # Events tell of changes only, and the machine may have come before anybody followed them;
        # this command is alone in its process, so that nothing else waits meanwhile.
        time.sleep(_HOST_POLL_S)
    return found.id


def _send_only(message: "Message", agent: str, *, as_json: bool) -> None:
    if as_json:
        terminal.show_json("message", message.model_dump(mode="json"))
    else:
        terminal.show(message.id)
        if sys.stderr.isatty():
            terminal.say(f"sent to {agent}; `cloudagent trace {message.id}` says where it is")


def _send_and_wait(
    agent: "AgentHandle",
    body: "AgentMessageCreate",
    timeout_s: float | None,
    *,
    as_json: bool,
) -> None:
    from cloudagent.errors import WaitTimeoutError

    turn = agent.send(
        body.text,
        host_machine_id=body.host_machine_id,
        mode=body.mode,
        attachments=body.attachments,
        model=body.model,
        permission_mode=body.permission_mode,
    )
    try:
        result = _follow(turn, timeout_s, quiet=as_json or not sys.stderr.isatty())
    except (WaitTimeoutError, KeyboardInterrupt) as stopped:
        after = f"cloudagent trace {turn.message.id}"
        if isinstance(stopped, WaitTimeoutError):
            stopped.why, stopped.next_step = f"no answer within {timeout_s:g} s", after
        else:
            terminal.say(f"\nno longer waiting; the message is on its way: {after}")
        raise
    if as_json:
        terminal.show_json("reply", _reply(result))
    elif result.messages:
        terminal.show(_shown(result.messages[-1].text))
        for one in result.messages[-1].attachments:
            terminal.say(terminal.safe(f"attached: {one.name}"))
        if result.messages[-1].attachments:
            terminal.say(f"save them: cloudagent download {result.messages[-1].id}")
    if not result.ok:
        terminal.failure(
            f"{agent.name} did not answer: {result.outcome}",
            ": ".join(part for part in (result.reason, result.detail) if part),
            f"cloudagent trace {turn.message.id}",
        )
        raise typer.Exit(terminal.ExitCode.FAILED)
    if not result.messages and not as_json:
        terminal.say(terminal.safe(f"{agent.name} chose to stay silent: {result.detail}"))


def _follow(turn: "Turn", timeout_s: float | None, *, quiet: bool) -> "TurnResult":
    asked: set[str] = set()
    for event in turn.events(timeout_s):
        if not quiet and (line := _progress(event)):
            terminal.say(terminal.style(terminal.safe(line), "2", sys.stderr))
        if (one := turn.pending_approval) and one.id not in asked:
            asked.add(one.id)  # also where nobody watches: the command would seem to hang
            terminal.say(f"it waits for you: cloudagent approvals   ({one.id})")
    return turn.wait()


def _progress(event: "TurnEvent") -> str | None:
    from cloudagent.cli.words import phrase
    from cloudagent_protocol.events import Retry, ToolCall
    from cloudagent_protocol.resources import Rung

    match event:
        case Rung():
            return f"· {phrase(event)}"
        case ToolCall():
            return f"· uses {event.name}"
        case Retry():
            return f"· tries again: {event.reason} {event.detail}".rstrip()
        case _:
            return None


def _reply(result: "TurnResult") -> dict[str, Any]:
    """The agent's last message, if it sent one, and how the turn ended."""
    message = result.messages[-1].model_dump(mode="json") if result.messages else {}
    return message | {
        "sent": result.sent.id,
        "outcome": result.outcome,
        "reason": result.reason,
        "detail": result.detail,
    }


def _upload(ca: "CloudAgent", paths: list[Path]) -> list[str]:
    """The ids of the files, which are there before the message is sent."""
    from cloudagent_protocol.attachments import MAX_ATTACHMENT_BYTES, MAX_ATTACHMENTS, size_text

    if len(paths) > MAX_ATTACHMENTS:
        raise typer.BadParameter(f"{len(paths)} files; a message may have {MAX_ATTACHMENTS}")
    if any(path.stat().st_size > 20 * MAX_ATTACHMENT_BYTES for path in paths):
        raise typer.BadParameter("a file is far too large to be sent with a message")
    ids: list[str] = []
    for path in paths:
        size = path.stat().st_size
        if sys.stderr.isatty():
            terminal.say(terminal.safe(f"· uploads {path.name} ({size_text(size)})"))
        ids.append(ca.attachments.upload(path.name, path).id)
    return ids


def _body(
    text: str,
    host_id: str | None,
    mode: str,
    attachments: list[str],
    model: str | None,
    permission_mode: str | None,
) -> "AgentMessageCreate":
    from cloudagent.turn import message_body
    from cloudagent_protocol.resources import DeliveryMode

    return message_body(
        text,
        host_machine_id=host_id,
        mode=DeliveryMode(mode),
        attachments=attachments,
        model=model,
        permission_mode=permission_mode,
    )


def _shown(text: str) -> str:
    """As it is for a program, made harmless for a terminal."""
    return terminal.safe(text) if sys.stdout.isatty() else text


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not UTF-8: {error}") from error
