"""`agent register`, `unregister`, `list`, `clean`, `rules`: the local workspaces of agents."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cloudagent_daemon.cli import clean, rules
from cloudagent_daemon.cli.options import USAGE, CommandError, Commands, Here, safe
from cloudagent_daemon.cli.status import identity_of, look
from cloudagent_daemon.usage import Size, size_of

_ARCHIVE: Final = clean.ARCHIVE


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("agent", parents=[options])
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    register = verbs.add_parser("register", parents=[options], help="create a workspace")
    register.add_argument("--agent-id", required=True, metavar="ID")
    register.add_argument("--name", metavar="NAME", help="what to call it (default: its id)")
    register.add_argument("--cwd", metavar="DIR", help="where it works (default: its workspace)")
    register.add_argument("--driver", default="claude_code", metavar="DRIVER")
    # No setting of this machine's; whoever looks for it here is told where it is.
    register.add_argument("--worktree", nargs="?", const="", help=argparse.SUPPRESS)
    register.set_defaults(run=run_register)
    unregister = verbs.add_parser("unregister", parents=[options], help="archive a workspace")
    unregister.add_argument("--agent-id", required=True, metavar="ID")
    unregister.set_defaults(run=run_unregister)
    listing = verbs.add_parser("list", parents=[options], help="the workspaces that there are")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=run_list)
    cleaning = verbs.add_parser(
        "clean",
        parents=[options],
        help="remove archived workspaces and unused work trees, after it has shown which",
    )
    cleaning.add_argument("--yes", action="store_true", help="remove what it shows")
    cleaning.add_argument(
        "--unused-days",
        type=float,
        default=14.0,
        metavar="DAYS",
        help="of work trees without work, those that no run has used for so long (default: 14)",
    )
    cleaning.add_argument("--json", action="store_true", help="print one JSON object")
    cleaning.set_defaults(run=clean.run)
    allowed = verbs.add_parser(
        "rules", parents=[options], help="what agents may do unasked because you said always"
    )
    allowed.add_argument("--agent-id", metavar="ID", help="those of one agent")
    allowed.add_argument("--remove", metavar="RULE", help="have the agent ask again")
    allowed.add_argument("--json", action="store_true", help="print one JSON object")
    allowed.set_defaults(run=rules.run)


def run_register(arguments: argparse.Namespace) -> int:
    from cloudagent_daemon.runs.workspace import Workspace
    from cloudagent_protocol.ids import AgentId
    from cloudagent_protocol.resources import AgentSpec

    here = Here(arguments)
    agent_id: str = arguments.agent_id
    if arguments.worktree is not None:
        raise _set_elsewhere(agent_id)
    _look_for_driver(arguments.driver, agent_id, here)
    cwd = _folder(arguments.cwd, here) if arguments.cwd else None
    spec = AgentSpec(
        id=AgentId(agent_id),
        name=arguments.name or agent_id,
        driver=arguments.driver,
        cwd=str(cwd) if cwd else None,
    )
    try:
        workspace = Workspace(here.paths.agents_dir, spec)
    except ValueError as error:
        raise _bad_id(agent_id, here) from error
    workspace.prepare()
    print(f"registered {agent_id}: {workspace.home}")
    print(
        "note: the server's name, folder and driver of the agent count from its first message on, "
        "as do all its other settings",
        file=sys.stderr,
    )
    return 0


def run_unregister(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    agent_id: str = arguments.agent_id
    home = here.paths.agents_dir / agent_id
    if home.parent != here.paths.agents_dir or not (home / ".meta").is_dir():
        raise _bad_id(agent_id, here)
    archive = here.paths.agents_dir / _ARCHIVE
    archive.mkdir(mode=0o700, exist_ok=True)
    target = archive / f"{agent_id}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    home.rename(target)
    print(f"archived {agent_id}: {target}")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    said = {agent["id"]: agent for agent in look(here)["agents"]}
    found = [
        {
            **identity,
            "status": said.get(identity["id"], {}).get("status", "offline"),
            **_size(Path(identity["home"])),
        }
        for identity in _identities(here.paths.agents_dir)
    ]
    if arguments.json:
        body = {"schema": "cloudagent.agents/1", "profile": here.profile, "agents": found}
        print(json.dumps(body))
    elif found:
        print(safe("\n".join(_line(agent) for agent in found)))
    else:
        print(f"no agents have worked here yet ({here.paths.agents_dir})")
    return 0


def known_agents(here: Here) -> dict[str, str]:
    """Names of agents by id, from what lies on this machine."""
    told = {agent["id"]: agent["name"] for agent in look(here)["agents"]}
    return {one["id"]: one["name"] for one in _identities(here.paths.agents_dir)} | told


def agent_folders(here: Here) -> dict[str, tuple[str, str | None]]:
    """Name and working folder, if it has one of its own, of each agent that worked here."""
    found = _identities(here.paths.agents_dir)
    return {one["id"]: (str(one["name"]), one.get("cwd")) for one in found}


def _identities(agents_dir: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(agents_dir.glob("*/.meta/identity.json")):
        if file.parent.parent.parent == agents_dir and file.parent.parent.name != _ARCHIVE:
            home = file.parent.parent
            told = identity_of(file)
            yield {"name": home.name, **told, "id": home.name, "home": str(home)}


def _size(home: Path) -> dict[str, Any]:
    size = size_of(home)
    return {"size_bytes": size.size_bytes, "size_complete": size.complete}


def _line(agent: dict[str, Any]) -> str:
    driver, where = agent.get("driver", "?"), agent.get("cwd") or f"{agent['home']}/workspace"
    size = Size(agent["size_bytes"], complete=agent["size_complete"])
    return (
        f"{agent['status']:9} {size.shown:>8}  {agent['id']}  {agent['name']}  ({driver})  {where}"
    )


def _folder(text: str, here: Here) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise CommandError(
            "The agent's folder is not there",
            f"--cwd {folder}",
            here.command(f"agent register --agent-id ID --cwd {folder}") + f"   (mkdir {folder})",
            USAGE,
        )
    return folder


def _look_for_driver(name: str, agent_id: str, here: Here) -> None:
    from cloudagent_daemon.drivers.table import DRIVERS

    if name not in DRIVERS:
        raise CommandError(
            "This daemon has no such driver",
            f"--driver {name!r}; it has {', '.join(DRIVERS)}",
            here.command(f"agent register --agent-id {agent_id} --driver NAME"),
            USAGE,
        )


def _set_elsewhere(agent_id: str) -> CommandError:
    return CommandError(
        "--worktree is no setting of this machine's",
        "whether conversations get work trees is kept at the server, and comes with each message",
        'tick "Each conversation works in a work tree of its own" in the page (the gear beside its name), or '
        f'PATCH /v1/agents/{agent_id} {{"worktree": "per_conversation"}}',
        USAGE,
    )


def _bad_id(agent_id: str, here: Here) -> CommandError:
    return CommandError(
        "There is no such workspace", f"--agent-id {agent_id!r}", here.command("agent list"), USAGE
    )
