from typing import Annotated

import typer

from cloudagent import terminal


def hosts(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List your host machines, and the agent programs found on them."""
    from cloudagent.cli import words
    from cloudagent.client import CloudAgent
    from cloudagent_protocol.resources import HostState

    with CloudAgent() as ca:
        found = list(ca.hosts.list())
    if as_json:
        terminal.show_json("hosts", {"hosts": [host.model_dump(mode="json") for host in found]})
        return
    if not found:
        terminal.say("There are no host machines yet. `cloudagent up` adds this one.")
        return
    rows = [("NAME", "STATE", "LAST SEEN", "DAEMON", "RUNTIMES", "ID")]
    for host in found:
        runtimes = ", ".join(
            f"{runtime.name} {runtime.version or ''}".strip()
            for runtime in host.runtimes
            if runtime.problem is None
        )
        seen = words.ago(host.last_seen_at) if host.last_seen_at else "never"
        seen = seen if host.state == HostState.OFFLINE else "now"
        daemon = host.daemon_version or "-"
        name = f"{host.name} (a job)" if host.parent_id else host.name
        rows.append((name, host.state, seen, daemon, runtimes or "-", host.id))
    terminal.columns(rows)
    for host in found:
        for hold in host.holds:
            terminal.say(terminal.safe(f"! {host.name}: {hold.detail}"))
