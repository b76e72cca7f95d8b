"""What `doctor` does: each part of what a message needs, in turn; a fault in one is no end."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from cloudagent_daemon import config, control, lock, profile, trust
from cloudagent_daemon.cli import probe
from cloudagent_daemon.cli.agent import agent_folders
from cloudagent_daemon.cli.options import FAILED, Here, safe
from cloudagent_daemon.cli.standing import uses_demo
from cloudagent_daemon.config import ConfigError
from cloudagent_daemon.doctor import asked, findings, machine
from cloudagent_daemon.doctor.findings import Finding
from cloudagent_daemon.service.state import manager_problem, service_state

#: Steps of `probe`, as they are called here, where other things are checked too.
_NAMES: Final = {"http": "server", "key": "machine key"}


def run(arguments: argparse.Namespace) -> int:
    here = Here(arguments)
    running = lock.holder(here.paths.lock, here.paths.pid) is not None
    if not arguments.json and sys.stderr.isatty():
        print("checking …", file=sys.stderr)
    report, problem = _ask(here, "report") if running else (None, "")
    if report is not None:
        kept = service_state(here.profile, here.environ)
        report["service"] = kept.as_json() if kept else None
    check, no_check = _ask(here, "check") if report else (None, problem)
    where = "in the running daemon" if check else "in this process: no daemon answers"
    found = list(_all(here, running, report, check, no_check))
    done = findings.mend(found) if arguments.fix else []
    if done:  # what was in the way of other checks is not any more
        found = list(_all(here, running, report, check, no_check))
    bad = findings.failed(found, strict=arguments.strict)
    if arguments.json:
        print(json.dumps(_json(here, found, done, in_daemon=bool(check), ok=not bad)))
    else:
        for line in done:
            print(f"fixed  {findings.shown(line)}", file=sys.stderr)
        print(safe("\n".join(findings.lines(found, where=where))))
    return FAILED if bad else 0


def _json(
    here: Here, found: list[Finding], done: list[str], *, in_daemon: bool, ok: bool
) -> dict[str, Any]:
    return {
        "schema": findings.SCHEMA,
        "profile": here.profile,
        "checked_in": "daemon" if in_daemon else "this process",
        "ok": ok,
        "fixed": [findings.shown(line) for line in done],
        "findings": [one.json() for one in found],
    }


def _ask(here: Here, verb: control.Verb) -> tuple[dict[str, Any] | None, str]:
    try:
        return control.ask(here.paths.state_dir, verb), ""
    except control.NoAnswerError as error:
        return None, str(error)


def _all(
    here: Here,
    running: bool,
    report: dict[str, Any] | None,
    check: dict[str, Any] | None,
    no_check: str,
) -> Iterable[Finding]:
    yield from _safely("Environment", lambda: machine.environment(here.paths, report, here.command))
    yield from _safely("Connection", lambda: _connection(here, report, check))
    if running and check is None:
        detail = f"the daemon does not answer: {no_check}"
        yield Finding("Service", "answers", "fail", detail, here.command("stop --force"))
    if report is not None or not running:
        yield from _safely("Service", lambda: _service(here, report))
    yield from _safely("Runtimes", lambda: _runtimes(here, report, check))
    yield from _safely("Agents", lambda: machine.agents(here.paths, agent_folders(here)))


def _safely(section: str, look: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    """What is found; a fault of ours in one part does not keep the others from being told."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 - the edge of a check: the next one goes on
        yield Finding(
            section, "check", "fail", f"could not be finished: {type(error).__name__}: {error}"
        )


def _service(here: Here, report: dict[str, Any] | None) -> Iterable[Finding]:
    no_manager = manager_problem(here.profile, here.environ)
    return asked.service(report, here.command, no_manager)


def _connection(
    here: Here, report: dict[str, Any] | None, check: dict[str, Any] | None
) -> Iterable[Finding]:
    if report is not None:
        yield from asked.link(report, check, here.command)
    try:
        settings = profile.settings_of(here.profile, here.environ)
    except ConfigError as error:
        yield Finding("Connection", "server", "skip", f"{error.what}: see config")
        return
    yield from _way(here, settings)


def _way(here: Here, settings: config.Settings) -> Iterable[Finding]:
    """The way to the backend, step by step, as `probe` looks at it and judges it."""
    import anyio

    from cloudagent_daemon.probe import judge
    from cloudagent_protocol.version import DISTRIBUTION, SUPPORTED

    looked, weak = looked_at(settings)
    seen, _ = anyio.run(probe.look_at, here, looked)
    for step in judge.judge(seen, SUPPORTED, DISTRIBUTION):
        if step.name == "key" and weak:
            yield Finding("Connection", "machine key", "skip", f"not sent: {weak}")
        else:
            login = step.name == "key" and step.state == "fail" and step.code == judge.KEY_REJECTED
            fix = here.command(f"login --server {settings.server_url}") if login else step.next
            name = _NAMES.get(step.name, step.name)
            yield Finding("Connection", name, step.state, step.seen, fix)
    if seen.http and seen.http.is_ours:
        yield asked.clock(seen.http.date)


def looked_at(settings: config.Settings) -> tuple[probe.Looked, str]:
    """What is looked at, and why without the machine key; empty if with it.

    Over a way that is not checked the key goes only where a person has just said so.
    """
    weak = "; ".join(trust.weaknesses(settings.server_url, insecure=False))
    key = None if weak else settings.machine_key
    server, tunnel = settings.server_url, settings.ssh_tunnel
    return probe.Looked(server, settings.ca_file, key, tunnel, insecure=False), weak


def _runtimes(
    here: Here, report: dict[str, Any] | None, check: dict[str, Any] | None
) -> Iterable[Finding]:
    seen = check["runtimes"] if check else _detected(here)
    tools = check["tools"] if check else None
    path = here.environ.get("PATH", "")
    yield from asked.runtimes(
        seen,
        path,
        tools,
        in_daemon=check is not None,
        demo=report is not None and uses_demo(report),
        command=here.command,
    )


def _detected(here: Here) -> list[dict[str, Any]]:
    import anyio

    from cloudagent_daemon.drivers.table import detect

    environment = config.child_environment(here.environ, here.profile)
    return [one.model_dump() for one in anyio.run(detect, environment)]
