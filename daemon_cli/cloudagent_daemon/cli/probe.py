"""`probe`: the way to the backend, step by step, and what exactly fails on it."""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloudagent_daemon import config, ssh
from cloudagent_daemon.cli.login import add_tls_options, add_tunnel_option, check_trust
from cloudagent_daemon.cli.options import USAGE, CommandError, Commands, Here, safe
from cloudagent_daemon.config import ConfigError, Stored
from cloudagent_daemon.proxy import without_secret

if TYPE_CHECKING:
    from cloudagent_daemon.probe.judge import Step
    from cloudagent_daemon.probe.seen import Seen

SCHEMA: Final = "cloudagent.probe/1"
_SIGNS: Final = {"ok": "✓", "warn": "!", "fail": "✗", "skip": "·"}


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("probe", parents=[options])
    parser.add_argument(
        "--server", metavar="URL", help="the backend's address (default: the profile's)"
    )
    add_tls_options(parser)
    add_tunnel_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import anyio

    from cloudagent_daemon.probe import judge
    from cloudagent_protocol.version import DISTRIBUTION, SUPPORTED

    here = Here(arguments)
    stored = _stored(here)
    server_url = _server_url(arguments, stored, here)
    known = stored if stored and stored.server_url == server_url else None
    key = known.machine_key if known else None
    if key is not None:
        check_trust(arguments, server_url, here.command(f"probe --server {server_url}"))
    ca_file = arguments.ca_file or (known.ca_file if known else None)
    authority = Path(ca_file).expanduser() if ca_file else None
    kept = known.ssh_tunnel if known else None
    tunnel = ssh.kept(kept if arguments.ssh_tunnel is None else arguments.ssh_tunnel)
    looked = Looked(server_url, authority, key, tunnel, insecure=arguments.insecure)
    seen, proxy = anyio.run(look_at, here, looked)
    steps = judge.judge(seen, SUPPORTED, DISTRIBUTION)
    code = judge.exit_code(steps)
    if arguments.json:
        print(json.dumps(_json(here, server_url, proxy, steps, ok=code == 0)))
    else:
        through = f", through the proxy {proxy}" if proxy else ""
        print(safe(f"{server_url}{through} · profile {here.profile}"))
        print(safe("\n".join(line for step in steps for line in _lines(step))))
    return code


@dataclass(frozen=True)
class Looked:
    """What is to be looked at, and how."""

    server_url: str
    ca_file: Path | None
    machine_key: str | None = field(repr=False)
    tunnel: str | None
    insecure: bool


async def look_at(here: Here, looked: Looked) -> "tuple[Seen, str | None]":
    """What was seen, and the proxy's address if there is one."""
    from cloudagent_daemon.cli.through import through
    from cloudagent_daemon.link.way import way_to
    from cloudagent_daemon.probe.look import look
    from cloudagent_daemon.probe.seen import Seen

    server = looked.server_url

    async def work(near_end: Path | None) -> "tuple[Seen, str | None]":
        way = way_to(
            server,
            here.environ,
            ca_file=looked.ca_file,
            insecure=looked.insecure,
            socket=near_end,
        )
        proxy = without_secret(way.proxy) if way.proxy else None
        return await look(way, looked.machine_key), proxy

    try:
        return await through(looked.tunnel, server, here.environ, work)
    except (CommandError, ConfigError) as error:
        return Seen(server, no_way=f"{error.what}: {error.why}", no_way_next=error.next_step), None


def _stored(here: Here) -> Stored | None:
    """What the profile holds; a file that cannot be used is doctor's business."""
    try:
        return config.read_file(here.paths.config)
    except ConfigError:
        return None


def _server_url(arguments: argparse.Namespace, stored: Stored | None, here: Here) -> str:
    if arguments.server:
        return config.check_server_url(arguments.server)
    if stored is None:
        raise CommandError(
            "The server's address is missing",
            f"profile {here.profile} is not logged in",
            here.command("probe --server URL"),
            USAGE,
        )
    return stored.server_url


def _lines(step: "Step") -> list[str]:
    line = f"{_SIGNS[step.state]} {step.name:11} {step.seen}"
    return [line, f"{'':14}next  {step.next}"] if step.next else [line]


def _json(
    here: Here, server_url: str, proxy: str | None, steps: "list[Step]", *, ok: bool
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "profile": here.profile,
        "server_url": server_url,
        "proxy": proxy,
        "ok": ok,
        "steps": [
            {
                "name": step.name,
                "state": step.state,
                "seen": safe(step.seen),
                "next": step.next or None,
            }
            for step in steps
        ],
    }
