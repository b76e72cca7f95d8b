"""`cloudagent up`: from nothing to a chat with an agent, and back to nothing on Ctrl-C."""

import getpass
import re
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from cloudagent import config, terminal
from cloudagent.async_client import AsyncCloudAgent
from cloudagent.errors import CloudAgentError, ConnectionFailedError
from cloudagent.local import pairing, ports
from cloudagent.local.folder import NoRuntimeError, agent_for
from cloudagent.local.home import Home, State
from cloudagent.local.page import Page, offer
from cloudagent.local.pairing import Grant, Paired
from cloudagent.local.processes import POLL_S, Child, child, end_leftovers, first_to_end, script
from cloudagent.local.report import Report
from cloudagent_protocol.resources import Driver, HostMachine, HostState, Runtime

_START_S: Final = 30.0


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line."""

    folder: Path
    #: None: 8700, or the next free one.
    port: int | None = None
    browser: bool = True
    #: None: the first that is found.
    runtime: str | None = None


async def run_up(wishes: Wishes, report: Report) -> int:
    """Run until a signal; or join the `up` that runs already. The exit code.

    Raises:
        CloudAgentError: something could not be started, or ended by itself.
    """
    home = Home(config.home())
    try:
        with home.locked() as alone:
            await (_run if alone else _join)(home, wishes, report)
    except NoRuntimeError as error:
        _tell_no_runtime(error, report)
        return terminal.ExitCode.FAILED
    return terminal.ExitCode.OK


async def _run(home: Home, wishes: Wishes, report: Report) -> None:
    """Everything, until a signal; whatever ends it, nothing is left alive."""
    failed: CloudAgentError | None = None
    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            tg.start_soon(_cancel_on_signal, scope, report)
            try:
                await _start_and_wait(home, wishes, report)
            except CloudAgentError as error:  # as a value: a task group would wrap it
                failed = error
        tg.cancel_scope.cancel()
    report.clear()
    home.save(replace(home.load(), processes=[], ready=False))
    if failed is not None:
        raise failed


async def _start_and_wait(home: Home, wishes: Wishes, report: Report) -> None:
    state = home.load()
    if left := end_leftovers(state.processes):
        report.note("cleaned", f"ended {left} processes that an earlier `up` had left")
    report.busy("server", "starting")
    # Before the server starts: one without any user would write a set-up link into its log.
    granted = await pairing.grant(home, _email())
    async with child("server", _serve(home, wishes, state), home.backend_log) as server:
        state.processes = [server.identity]
        home.save(state)
        with _deadline(server):
            line = await server.wait_for_line("Listening on ")
        url = line.rpartition(" ")[2].rstrip("/")
        _tell_server(home, url, wishes, report)
        async with _client(url, granted) as client:
            report.busy("host", "pairing")
            paired = await pairing.pair(client, home, state)
        _tell_profile(paired, report)
        state = replace(state, url=url, port=ports.of(url), host_id=paired.host.id)
        argv = [script("cloudagent-daemon"), "start", "--profile", paired.profile]
        async with child("daemon", argv, home.daemon_log) as daemon:
            state.processes.append(daemon.identity)
            home.save(state)
            async with _client(url, granted) as client:
                host = await _online(client, paired.host.id, daemon, report)
                page = await _introduce(client, host, granted, wishes, report)
            pairing.save_login(url, granted, report)
            home.save(replace(state, ready=True))
            await offer(page, report, browser=wishes.browser)
            terminal.say("  Stop      Ctrl-C")
            raise (await first_to_end(server, daemon)).death()


def _serve(home: Home, wishes: Wishes, state: State) -> list[str]:
    port = ports.choose(wishes.port, state.port)
    argv = [script("cloudagent-backend"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    return [*argv, "--database-url", home.database_url]


async def _join(home: Home, wishes: Wishes, report: Report) -> None:
    """Offer the page of the `up` that runs, with an agent for this folder too."""
    report.busy("server", "is starting elsewhere")
    state = await _started(home)
    granted = await pairing.grant(home, _email())
    async with _client(state.url, granted) as client:
        host = await client.hosts.get(state.host_id)
        report.done("server", f"{state.url}  runs already")
        page = await _introduce(client, host, granted, wishes, report)
    pairing.save_login(state.url, granted, report)
    await offer(page, report, browser=wishes.browser)


async def _started(home: Home) -> State:
    """The state of the `up` that runs, once it can be used."""
    with anyio.move_on_after(_START_S):
        while True:
            state = home.load()
            if state.ready:
                return state
            await anyio.sleep(POLL_S)
    raise ConnectionFailedError(
        "another `cloudagent up` is starting, and does not come to its end",
        why=f"it holds {home.server_dir / 'up.lock'}, and nothing answers yet",
        next_step=f"less {home.backend_log}",
    )


async def _introduce(
    client: AsyncCloudAgent, host: HostMachine, granted: Grant, wishes: Wishes, report: Report
) -> Page:
    """Say what this computer has, and make sure of an agent for the folder."""
    usable = [
        runtime
        for runtime in host.runtimes
        if not runtime.problem and runtime.name != Driver.SCRIPTED
    ]
    if wishes.runtime is None and usable:
        report.done("runtimes", " · ".join(_runtime(runtime) for runtime in usable))
    agent = await agent_for(client, host, wishes.folder, wishes.runtime)
    where = f"in {_short(wishes.folder)}  (this directory)"
    report.done("agent", f"“{agent.name}” on {agent.driver} {where}")
    return Page(client.settings.url, agent.name, granted.link_key)


async def _online(
    client: AsyncCloudAgent, host_id: str, daemon: Child, report: Report
) -> HostMachine:
    """The host, once its daemon has connected and told what it found."""
    report.busy("host", "connecting")
    with _deadline(daemon):
        while True:
            host = await client.hosts.get(host_id)
            # It connects first and looks for runtimes then; until it has, it tells of none.
            if host.state == HostState.ONLINE and host.runtimes:
                report.done("host", f"{host.name}  paired with this server")
                return host
            if daemon.process.returncode is not None:
                raise daemon.death("could not connect")
            await anyio.sleep(POLL_S)


@contextmanager
def _deadline(child: Child) -> Generator[None]:
    try:
        with anyio.fail_after(_START_S):
            yield
    except TimeoutError as error:
        raise child.death(f"is not ready after {_START_S:g} s") from error


async def _cancel_on_signal(scope: anyio.CancelScope, report: Report) -> None:
    """The first signal ends everything in order; further ones change nothing about that."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            if not scope.cancel_called:
                report.clear()
                terminal.say("\nStopping …")
                scope.cancel()


def _client(url: str, granted: Grant) -> AsyncCloudAgent:
    return AsyncCloudAgent(url, granted.access_token, max_retries=2)


def _email() -> str:
    """The one user of a server that only this person reaches."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        name = ""
    return f"{re.sub(r'[^a-z0-9._-]', '', name.lower()).strip('.-_') or 'me'}@localhost.localdomain"


def _runtime(runtime: Runtime) -> str:
    logged_in = {True: " (logged in)", False: " (not logged in)", None: ""}[runtime.logged_in]
    return f"{runtime.name} {runtime.version or ''}".strip() + logged_in


def _short(path: Path) -> str:
    """A path as people write it."""
    with suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}".removesuffix("/.")
    return str(path)


def _tell_server(home: Home, url: str, wishes: Wishes, report: Report) -> None:
    report.done("server", f"{url}  (SQLite {_short(home.database)})")
    if wishes.port is None and ports.of(url) != ports.PREFERRED:
        report.note("port", f"{ports.PREFERRED} is taken by another program")


def _tell_profile(paired: Paired, report: Report) -> None:
    if paired.default_server:
        report.note(
            "profile",
            f"the daemon's default profile belongs to {paired.default_server}",
            f"and stays so; this server gets the profile “{paired.profile}”",
        )


def _tell_no_runtime(error: NoRuntimeError, report: Report) -> None:
    report.failed(
        "runtimes",
        str(error),
        *error.problems,
        "install one          https://claude.ai/code",
        "or use the built-in  cloudagent up --runtime builtin   (an Anthropic or OpenAI key is set)",
        "or just look around  cloudagent up --demo   (a scripted model, no key needed)",
    )
