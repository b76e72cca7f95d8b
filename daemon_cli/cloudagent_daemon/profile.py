"""A profile: one connection of this computer to one backend, and the settings that go with it."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cloudagent_daemon import config, ssh
from cloudagent_daemon.config import ConfigError, Limits, NotLoggedInError, Settings
from cloudagent_daemon.paths import DEFAULT, Paths, profiles_dir

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def check_name(name: str) -> str:
    """`name`, if a profile may be called so; `default` is the one that needs no name.

    Raises:
        ConfigError: it does not match `[a-z0-9][a-z0-9-]{0,30}`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "The profile's name cannot be used",
            f"got {name!r}; names have 1 to 31 characters of a-z, 0-9 and -, and begin with no -",
            "cloudagent-daemon list-profiles",
            usage=True,
        )
    return name


def chosen(name: str | None, environ: Mapping[str, str]) -> str:
    """The profile that was named: by option, else by `CLOUDAGENT_DAEMON_PROFILE`, else `default`.

    Raises:
        ConfigError: there can be no profile of that name.
    """
    return check_name(name or environ.get(config.PROFILE_VARIABLE) or DEFAULT)


def paths_of(name: str, environ: Mapping[str, str]) -> Paths:
    return Paths(config.home_dir(environ), name)


def known(environ: Mapping[str, str]) -> list[str]:
    """The profiles that have a configuration here, the default one first."""
    home = config.home_dir(environ)
    folder = profiles_dir(home)
    found = sorted(path.parent.name for path in folder.glob("*/config.json"))
    named = [name for name in found if _NAME.fullmatch(name) and name != DEFAULT]
    return [DEFAULT, *named] if Paths(home, DEFAULT).config.exists() else named


def settings_of(
    name: str,
    environ: Mapping[str, str],
    *,
    insecure: bool = False,
    ca_file: Path | None = None,
    ssh_tunnel: str | None = None,
    debug: bool = False,
) -> Settings:
    """What `login` has stored for the profile.

    Raises:
        NotLoggedInError: nothing yet.
        ConfigError: it cannot be used.
    """
    paths = paths_of(name, environ)
    stored = config.read_file(paths.config)
    if stored is None:
        raise NotLoggedInError(
            f"Profile {name} is not logged in",
            f"there is no {paths.config}",
            f"cloudagent-daemon login --server URL{'' if name == DEFAULT else f' --profile {name}'}",
        )
    return Settings(
        profile=name,
        server_url=stored.server_url,
        machine_key=stored.machine_key,
        host_id=stored.host_id,
        home=paths.home,
        state_dir=paths.state_dir,
        runtime_dir=paths.state_dir / "run",
        config_file=paths.config,
        agents_dir=paths.agents_dir,
        environment=config.child_environment(environ, name),
        insecure=insecure,
        ca_file=ca_file or (Path(stored.ca_file) if stored.ca_file else None),
        ssh_tunnel=ssh.kept(stored.ssh_tunnel if ssh_tunnel is None else ssh_tunnel),
        crash_at=environ.get(config.CRASH_VARIABLE),
        debug=debug,
        limits=config.read_limits(environ, stored.limits),
    )


@contextmanager
def one_shot(
    name: str,
    server_url: str,
    machine_key: str,
    environ: Mapping[str, str],
    *,
    insecure: bool = False,
    ca_file: Path | None = None,
    ssh_tunnel: str | None = None,
    debug: bool = False,
) -> Generator[Settings]:
    """Settings for a daemon that leaves no trace: all its files are temporary.

    Raises:
        ConfigError: a setting cannot be used.
    """
    import shutil
    import tempfile

    limits = config.read_limits(environ, Limits())
    folder = Path(tempfile.mkdtemp(prefix="cloudagent-"))
    try:
        yield Settings(
            profile=name,
            server_url=config.check_server_url(server_url),
            machine_key=machine_key,
            host_id=None,
            home=None,
            state_dir=None,
            runtime_dir=folder / "run",
            config_file=None,
            agents_dir=folder / "agents",
            environment=config.child_environment(environ, name),
            insecure=insecure,
            ca_file=ca_file,
            ssh_tunnel=ssh.kept(ssh_tunnel),
            crash_at=environ.get(config.CRASH_VARIABLE),
            debug=debug,
            limits=limits,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
