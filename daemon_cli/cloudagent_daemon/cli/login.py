"""`login`: a machine key for a profile, verified and kept."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from cloudagent_daemon import config
from cloudagent_daemon.cli import secret
from cloudagent_daemon.cli.options import (
    NOT_LOGGED_IN,
    UNREACHABLE,
    CommandError,
    Commands,
    Here,
    safe,
)

_PATH: Final = "/v1/daemon/host"
_TIMEOUT_S: Final = 15.0


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("login", parents=[options], help="keep a machine key")
    parser.add_argument("--server", required=True, metavar="URL", help="the backend's address")
    add_key_options(parser)
    add_tls_options(parser)
    parser.set_defaults(run=run)


def add_key_options(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key-file", metavar="FILE", help="read the machine key from a file, - for stdin"
    )
    keys.add_argument("--api-key", metavar="KEY", help="the machine key itself (leaves argv)")


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--insecure", action="store_true", help="do not check the server's certificate"
    )
    parser.add_argument("--ca-file", metavar="PEM", help="trust this certificate authority too")


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    server_url = config.check_server_url(arguments.server)
    again = here.command(f"login --server {server_url}")
    if arguments.api_key_file:
        key = secret.read_key(arguments.api_key_file, next_step=again)
    elif arguments.api_key:
        key = secret.check(arguments.api_key, next_step=again)
    else:
        key = secret.ask(server_url, next_step=again)
    warn_of(server_url, insecure=arguments.insecure)
    ca_file = str(Path(arguments.ca_file).expanduser().absolute()) if arguments.ca_file else None
    host = _verify(server_url, key, again, ca_file=ca_file, insecure=arguments.insecure)
    stored = config.read_file(here.paths.config)
    kept = config.Stored(server_url, key, host["id"], ca_file=ca_file)
    config.write_file(here.paths.config, replace(kept, limits=stored.limits) if stored else kept)
    who = f"{host['id']} ({host['name']})"
    print(safe(f"logged in to {server_url} as {who}, profile {here.profile}"))
    print(f"  next  {here.command('start')}", file=sys.stderr)
    return 0


def warn_of(server_url: str, *, insecure: bool) -> None:
    """Says what a connection does not protect from."""
    if insecure:
        print("warning: the server's certificate is not checked (--insecure)", file=sys.stderr)
    host = server_url.removeprefix("http://").split("/")[0].rsplit(":", 1)[0]
    if server_url.startswith("http://") and host not in ("localhost", "127.0.0.1", "[::1]"):
        print(f"warning: {server_url} is not encrypted; the key can be read", file=sys.stderr)


def _verify(
    server_url: str, key: str, again: str, *, ca_file: str | None, insecure: bool
) -> dict[str, Any]:
    """The host machine that the key belongs to."""
    import httpx2

    from cloudagent_daemon.link.websocket import tls_context

    try:
        tls = tls_context(server_url, Path(ca_file) if ca_file else None, insecure=insecure)
        answer = httpx2.get(
            server_url + _PATH,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            verify=tls if tls is not None else True,
        )
    except (httpx2.HTTPError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CommandError(f"{server_url} cannot be reached", why, again, UNREACHABLE) from error
    if answer.status_code in (401, 403):
        raise CommandError(
            f"{server_url} does not accept this machine key",
            f"{answer.status_code}, key ending in …{key[-4:]}",
            "make a new key on the page (Hosts), then log in again",
            NOT_LOGGED_IN,
        )
    return _host(answer, server_url, again)


def _host(answer: Any, server_url: str, again: str) -> dict[str, Any]:
    try:
        body: Any = answer.json() if answer.status_code == 200 else None
    except ValueError:
        body = None
    if isinstance(body, dict) and {"id", "name"} <= cast("dict[str, Any]", body).keys():
        return cast("dict[str, Any]", body)
    kind = answer.headers.get("content-type", "no type")
    raise CommandError(
        f"{server_url} is no cloudagent backend",
        f"{_PATH} answers {answer.status_code} with {kind}",
        again,
        UNREACHABLE,
    )
