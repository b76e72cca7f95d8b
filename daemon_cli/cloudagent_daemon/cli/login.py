"""`login`: a machine key for a profile, approved in the browser or verified, and kept."""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudagent_daemon import config, ssh, trust
from cloudagent_daemon.aside import set_aside
from cloudagent_daemon.cli import reload, secret
from cloudagent_daemon.cli.options import (
    NOT_LOGGED_IN,
    USAGE,
    CommandError,
    Commands,
    Here,
    safe,
)
from cloudagent_daemon.config import ConfigError, Stored

if TYPE_CHECKING:
    from cloudagent_daemon.link.way import Way

_PATH: Final = "/v1/daemon/host"
SCHEMA: Final = "cloudagent.login/1"


@dataclass(frozen=True)
class LoggedIn:
    """What a login has brought."""

    machine_key: str = field(repr=False)
    host_id: str
    host_name: str
    #: Who approved, by email address; None where a key was given.
    approved_by: str | None = None
    known_before: bool = False


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "login",
        parents=[options],
        description="Shows a code that you approve in the browser. Or takes a machine key: from a "
        "file, from standard input, or typed without being shown (--api-key-file -).",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="the same as --server URL")
    parser.add_argument(
        "--server", metavar="URL", help="the backend's address (default: the profile's)"
    )
    add_key_options(parser)
    add_tls_options(parser)
    add_tunnel_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def add_key_options(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-file", metavar="FILE", help="read the machine key from a file, - for stdin"
    )
    keys.add_argument(
        "--api-key", metavar="KEY", help="the machine key itself (stays in your shell's history)"
    )


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca-file", metavar="PEM", help="trust this certificate authority too")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="do not check the server's certificate, or do without one; never kept",
    )
    parser.add_argument(
        "--i-understand", action="store_true", help="--insecure, and over the internet too"
    )


def add_tunnel_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ssh-tunnel",
        metavar="[USER@]HOST[:PORT]",
        help="reach the server from there; the URL is as that machine sees it ('' for none)",
    )


def check_trust(
    arguments: argparse.Namespace, server_url: str, again: str, *, usage: bool = True
) -> None:
    """Warns of what the connection does not protect from.

    Raises:
        ConfigError: it protects from too little.
    """
    insecure, understood = arguments.insecure, arguments.i_understand
    warnings = trust.check(
        server_url, insecure=insecure, understood=understood, again=again, usage=usage
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    log_in(arguments, here)
    if told := reload.tell_daemon(here):
        print(safe(told), file=sys.stderr)
    elif not arguments.json:
        install, start = here.command("install-service"), here.command("start")
        print(f"\n  Next: {install}   # now and at every login; or {start}", file=sys.stderr)
    return 0


def log_in(arguments: argparse.Namespace, here: Here) -> None:
    """Gets a key for the profile, by the options of `login`, and keeps it.

    Raises:
        CommandError, ConfigError: there is none.
    """
    stored = _stored(here)
    server_url = _server_url(arguments, stored, here)
    again = here.command(f"login --server {server_url}")
    check_trust(arguments, server_url, again)
    key = _given_key(arguments, again)
    ca_file = _ca_file(arguments, stored, server_url)
    tunnel = _tunnel(arguments, stored, server_url)
    known = stored if stored and stored.server_url == server_url else None
    config.check_writable(here.paths.config)
    done = _connect(
        here,
        server_url,
        key,
        known.machine_key if known else None,
        again,
        ca_file=ca_file,
        tunnel=tunnel,
        insecure=arguments.insecure,
        quiet=arguments.json,
    )
    limits = stored.limits if stored else config.Limits()
    kept = Stored(server_url, done.machine_key, done.host_id, limits, ca_file, tunnel)
    _keep(here, kept, done)
    _tell(here, kept, done, as_json=arguments.json)


def _stored(here: Here) -> Stored | None:
    """What the profile has now. What cannot be read is replaced; what others may know is not."""
    try:
        return config.read_file(here.paths.config)
    except ConfigError as error:
        if not error.replaceable:
            raise
        print(safe(f"warning: {error}; a login writes it anew"), file=sys.stderr)
        return None


def _server_url(arguments: argparse.Namespace, stored: Stored | None, here: Here) -> str:
    named = {url for url in (arguments.url, arguments.server) if url}
    if len(named) > 1:
        raise CommandError(
            "Two servers were named",
            f"{arguments.url} and --server {arguments.server}",
            here.command("login --server URL"),
            USAGE,
        )
    if named:
        return config.check_server_url(named.pop())
    if stored is None:
        raise CommandError(
            "The server's address is missing",
            f"profile {here.profile} has none yet",
            here.command("login --server URL"),
            USAGE,
        )
    return stored.server_url


def _given_key(arguments: argparse.Namespace, again: str) -> str | None:
    """The key of the command line; None: the machine shall be let in by a code."""
    if arguments.api_key or secret.was_in_argv(arguments.api_key_file):
        print(
            "warning: --api-key leaves the key in your shell's history; --api-key-file does not",
            file=sys.stderr,
        )
    if arguments.api_key_file:
        return secret.read_key(arguments.api_key_file, next_step=again)
    if arguments.api_key:
        return secret.check(arguments.api_key, next_step=again)
    if not sys.stderr.isatty():
        raise CommandError(
            "The machine key is missing",
            "there is no terminal where a code could be shown",
            f"{again} --api-key-file -   (with the key on standard input)",
            USAGE,
        )
    return None


def _ca_file(arguments: argparse.Namespace, stored: Stored | None, server_url: str) -> str | None:
    if arguments.ca_file:
        return str(Path(arguments.ca_file).expanduser().absolute())
    return stored.ca_file if stored and stored.server_url == server_url else None


def _tunnel(arguments: argparse.Namespace, stored: Stored | None, server_url: str) -> str | None:
    """What was named, or what was kept for this server."""
    named: str | None = getattr(arguments, "ssh_tunnel", None)
    known = stored.ssh_tunnel if stored and stored.server_url == server_url else None
    return ssh.kept(known if named is None else named)


def _connect(
    here: Here,
    server_url: str,
    key: str | None,
    older_key: str | None,
    again: str,
    *,
    ca_file: str | None,
    tunnel: str | None,
    insecure: bool,
    quiet: bool,
) -> LoggedIn:
    import anyio

    from cloudagent_daemon.cli.through import through
    from cloudagent_daemon.link.way import way_to

    authority = Path(ca_file) if ca_file else None
    fancy = not quiet and config.wants_colour(here.environ) and sys.stderr.isatty()

    async def work(near_end: Path | None) -> LoggedIn:
        way = way_to(
            server_url, here.environ, ca_file=authority, insecure=insecure, socket=near_end
        )
        if key is not None:
            return await _verify(way, key, again)
        return await _by_code(way, older_key, again, fancy=fancy)

    try:
        return anyio.run(through, tunnel, server_url, here.environ, work)
    except KeyboardInterrupt:
        print("Not logged in: you ended it.", file=sys.stderr)
        raise


async def _by_code(way: "Way", older_key: str | None, again: str, *, fancy: bool) -> LoggedIn:
    from cloudagent_daemon.cli import device

    done = await device.log_in(way, older_key, device.Talk(fancy=fancy), again)
    return LoggedIn(
        done.machine_key, done.host_id, done.host_name, done.approved_by, done.known_before
    )


async def _verify(way: "Way", key: str, again: str) -> LoggedIn:
    """Asks the backend whose key it is."""
    import httpx2

    from cloudagent_daemon.cli import device
    from cloudagent_daemon.link import http

    try:
        async with http.client(way) as client:
            answer = await client.get(_PATH, headers={"Authorization": f"Bearer {key}"})
    except (httpx2.HTTPError, OSError) as error:
        raise device.unreachable(way, error) from error
    if answer.status_code in (401, 403) and http.is_ours(answer):
        detail = http.body_of(answer).get("detail") or "no reason given"
        raise CommandError(
            f"{way.server_url} does not accept this machine key",
            f"{answer.status_code}: {detail} (key ending in …{key[-4:]})",
            f"{again}   (shows a code to approve instead)",
            NOT_LOGGED_IN,
        )
    host = device.host_of(answer)
    if host is None:
        raise device.no_backend(way, _PATH, answer)
    return LoggedIn(key, str(host["id"]), str(host["name"]))


def _make_way(path: Path) -> None:
    """What cannot be used is kept, for the person to look at: it may hold settings."""
    try:
        config.read_file(path)
    except ConfigError as error:
        if error.replaceable and not path.is_symlink():
            aside = set_aside(path)
            print(safe(f"{path.name} was set aside as {aside.name}"), file=sys.stderr)


def _keep(here: Here, kept: Stored, done: LoggedIn) -> None:
    try:
        _make_way(here.paths.config)
        config.write_file(here.paths.config, kept)
    except OSError as error:
        what = f"{done.host_name} was let in, but its key could not be kept"
        why = f"{here.paths.config}: {error.strerror or error}"
        raise CommandError(
            what, why, f"remove {done.host_name} in the page, then log in again"
        ) from error


def _tell(here: Here, kept: Stored, done: LoggedIn, *, as_json: bool) -> None:
    if as_json:
        shown = {
            "schema": SCHEMA,
            "profile": here.profile,
            "server_url": kept.server_url,
            "host_id": done.host_id,
            "host_name": done.host_name,
            "approved_by": done.approved_by,
            "known_before": done.known_before,
        }
        print(json.dumps(shown))
        return
    if done.approved_by:
        print(safe(f"✓ Approved by {done.approved_by} in the browser"))
    again = ", as before" if done.known_before else ""
    profile = f"profile {here.profile}"
    print(safe(f"✓ This machine is {done.host_name}{again}  {done.host_id} · {profile}"))
    print(safe(f"✓ Key saved to {here.shown(here.paths.config)} (0600)"), flush=True)
