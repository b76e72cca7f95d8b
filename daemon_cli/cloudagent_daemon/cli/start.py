"""`start`: runs the daemon in the foreground."""

import argparse
import os
import sys
from pathlib import Path

from cloudagent_daemon import config, lock, profile
from cloudagent_daemon.cli import once, secret
from cloudagent_daemon.cli.login import (
    add_key_options,
    add_tls_options,
    add_tunnel_option,
    check_trust,
)
from cloudagent_daemon.cli.options import (
    CONFIGURATION,
    CONFLICT,
    FAILED,
    NOT_LOGGED_IN,
    RESTART,
    USAGE,
    CommandError,
    Commands,
    Here,
    complain,
    safe,
)
from cloudagent_daemon.service import program
from cloudagent_daemon.service.state import service_state


def add(commands: Commands, options: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "start",
        parents=[options],
        description="Runs the daemon with what `login` has kept; or, with --server-url and a key, "
        f"once, without writing anything. The key may also be in ${config.KEY_VARIABLE}.",
    )
    parser.add_argument("--server-url", metavar="URL", help="one-shot: the backend's address")
    add_key_options(parser)
    add_tls_options(parser)
    add_tunnel_option(parser)
    parser.add_argument(
        "--background", action="store_true", help="without a terminal; `stop` ends it"
    )
    once.add_options(parser)
    parser.add_argument("--service", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    if arguments.service:
        from cloudagent_daemon.cli import served

        return served.run(arguments, lambda here: _settings(arguments, here), _serve)
    once.check(arguments, here)
    if arguments.background:
        from cloudagent_daemon.cli import background

        background.check(arguments, here)
        _settings(arguments, here)  # what can be said at once is said here, not in a file
        if lock.holder(here.paths.lock, here.paths.pid) is not None:
            raise _running_already(here)
        return background.run(arguments, here)
    if arguments.once or arguments.server_url or arguments.api_key or arguments.api_key_file:
        return _one_shot(arguments, here)
    return _kept(arguments, here)


def _kept(arguments: argparse.Namespace, here: Here) -> int:
    settings = _settings(arguments, here)
    try:
        with lock.hold(here.paths.lock, here.paths.pid) as held:
            code = _serve(settings, here.paths.logs_dir, held)
    except lock.AlreadyRunningError as error:
        raise _running_already(here) from error
    if code == RESTART:
        _become_anew(here)
    return code


def _become_anew(here: Here) -> None:
    """Goes on as the program that is installed now, in this process: nobody else would start it.

    Its pid stays, and so does the terminal, or whoever waits for this process (decisions/0018).
    """
    try:
        command = str(program.current())
        os.execv(command, [command, *sys.argv[1:]])  # noqa: S606 - ourselves
    except (OSError, program.ProgramError) as error:
        again = here.command("start --background")
        raise CommandError("The daemon could not be started anew", str(error), again) from error


def _running_already(here: Here) -> CommandError:
    pid = lock.holder(here.paths.lock, here.paths.pid)
    service = service_state(here.profile, here.environ)
    what = f"Profile {here.profile} has a running daemon already"
    if service and service.pid == pid:
        what = f"The service is already running profile {here.profile}"
    why = f"pid {pid or 'unknown'} holds {here.paths.lock}"
    return CommandError(what, why, here.command("logs -f"), CONFLICT)


def _settings(arguments: argparse.Namespace, here: Here) -> config.Settings:
    settings = profile.settings_of(
        here.profile,
        here.environ,
        insecure=arguments.insecure,
        ca_file=_path(arguments.ca_file),
        ssh_tunnel=arguments.ssh_tunnel,
        debug=here.debug,
    )
    check_trust(arguments, settings.server_url, here.command("start"), usage=False)
    return settings


def _one_shot(arguments: argparse.Namespace, here: Here) -> int:
    again = here.command("start --server-url URL --api-key-file FILE")
    key = _key(arguments, here, again)
    if not arguments.server_url or key is None:
        missing = "--server-url" if key else "a key (--api-key-file, --api-key or the environment)"
        raise CommandError(
            "A one-shot start needs the server and the key", f"{missing} is missing", again, USAGE
        )
    with profile.one_shot(
        here.profile,
        arguments.server_url,
        key,
        here.environ,
        insecure=arguments.insecure,
        ca_file=_path(arguments.ca_file),
        ssh_tunnel=arguments.ssh_tunnel,
        debug=here.debug,
    ) as settings:
        check_trust(arguments, settings.server_url, again)
        if arguments.once:
            return once.run(arguments, here, settings)
        code = _serve(settings, None, None)
    if code == NOT_LOGGED_IN:
        complain(f"{settings.server_url} does not accept this machine key", "401 or 403", again)
    return code


def _key(arguments: argparse.Namespace, here: Here, again: str) -> str | None:
    if arguments.api_key_file:
        return secret.read_key(arguments.api_key_file, next_step=again)
    if key := arguments.api_key or here.environ.get(config.KEY_VARIABLE):
        return secret.check(key, next_step=again)
    return None


def _serve(settings: config.Settings, logs_dir: Path | None, held: lock.Held | None) -> int:
    import anyio

    from cloudagent_daemon import life
    from cloudagent_daemon.link.committer import SpoolError
    from cloudagent_daemon.link.spool_file import NewerSpoolError
    from cloudagent_daemon.log import logging_to

    for folder in (settings.runtime_dir, settings.agents_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with logging_to(logs_dir, debug=settings.debug):
            return anyio.run(life.run, settings, _say, held)
    except NewerSpoolError as error:
        raise CommandError(
            "The daemon's memory belongs to a newer version",
            str(error),
            "uv tool upgrade cloudagent-daemon",
            CONFIGURATION,
        ) from error
    except SpoolError as error:
        raise CommandError(
            "The daemon's memory cannot be opened",
            str(error),
            f"df -h {settings.state_dir}",
            FAILED,
        ) from error


def _say(line: str) -> None:
    print(safe(line), flush=True)


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None
