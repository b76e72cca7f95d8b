"""A backend, and ana's machine with the service installed: what the tests of the service begin with."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.harness import Backend, Follower, Json
from service.machine import Machine, machine, until

AGENT = Path(__file__).with_name("agent.py")
UNIT = "cloudagent-daemon.service"
NODE = ".nvm/versions/node/v22.1.0/bin"
#: What makes a test wait less than a person would have to.
HASTE = "[Service]\nRestartSec=0.2\n"


@dataclass
class Site:
    backend: Backend
    machine: Machine
    key: str
    host_id: str
    agent_id: str

    def install(self, *words: str, **how: Any) -> str:
        """`install-service`, logging in with the key; what it printed."""
        arguments = ["--server-url", self.backend.url, "--api-key-file", "-", *words]
        return self.machine.daemon("install-service", *arguments, stdin=self.key, **how).stdout

    def answered(self, text: str, events: Follower, **more: Any) -> Json:
        """Sends a message and waits for its reply."""
        sent = self.backend.send(self.agent_id, text, **more)
        return events.reply(sent["conversation_id"])

    def reached(self, gate: str) -> None:
        """Waits until the fake agent stands before a gate."""
        until((self.machine.home / "fake" / f"{gate}.reached").exists, f"gate {gate}")

    def open(self, gate: str) -> None:
        (self.machine.home / "fake" / f"{gate}.open").touch()


def add_claude(home: Path, folder: str = NODE, version: str = "2.1.197") -> None:
    """A fake `claude`, where nvm would put it: on no PATH but that of a login shell."""
    program = home / folder / "claude"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec echo "{version} (Claude Code)"\n'
        '[ "$1" = auth ] && exec echo \'{"loggedIn": true}\'\n'
        "export FAKE_STATE=/home/ana/fake FAKE_EFFECTS=/home/ana/fake/effects\n"
        f'exec {sys.executable} {AGENT} "$@"\n'
    )
    program.chmod(0o755)


def override(made: Machine, text: str, unit: str = UNIT, name: str = "test") -> None:
    """A drop-in of ana's own for a unit."""
    made.write(f".config/systemd/user/{unit}.d/{name}.conf", text)


@contextmanager
def site(folder: Path, backend: Backend) -> Generator[Site]:
    """Ana's machine at a backend, with a coding agent from nvm; nothing is installed as a service yet."""
    host_id, key = backend.create_host("mbp")
    agent_id = backend.create_agent(host_id, f"shop-{host_id[-6:]}", driver="claude_code")
    with machine(folder / "laptop", prepare=_make_home) as made:
        yield Site(backend, made, key, host_id, agent_id)


def _make_home(home: Path) -> None:
    add_claude(home)
    (home / "fake").mkdir()
    profile = f'echo "Welcome, ana"\nexport PATH="$HOME/{NODE}:$PATH"\n'
    (home / ".bash_profile").write_text(profile)
