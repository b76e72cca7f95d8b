"""The sequence of launchctl, against a fake that fails as the real one is known to."""

import os
import sys
from pathlib import Path

import pytest

from cloudagent_daemon.service import envfile
from cloudagent_daemon.service.base import ServiceError, write
from cloudagent_daemon.service.launchd import Launchd
from cloudagent_daemon.service.state import manager_problem
from service.test_render import ANA

FAKE = Path(__file__).parents[1] / "fakes" / "launchctl.py"
TARGET = f"gui/{os.getuid()}/chat.cloudagent.daemon"


class Mac:
    def __init__(self, folder: Path) -> None:
        self.memory = folder / "launchd"
        program = folder / "bin" / "launchctl"
        program.parent.mkdir()
        self.memory.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE} "$@"\n')
        program.chmod(0o755)
        self.environ = {
            "HOME": str(folder),
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "FAKE_LAUNCHD": str(self.memory),
        }
        self.launchd = Launchd("default", self.environ, pause_s=0.0)

    def tell(self, name: str, number: int = 0) -> None:
        (self.memory / name).write_text(str(number))

    def calls(self, *verbs: str) -> list[str]:
        lines = (self.memory / "calls").read_text().splitlines()
        return [line.split()[0] for line in lines if line.split()[0] in verbs]

    def install(self) -> None:
        write(self.launchd.file, self.launchd.render(ANA))
        self.launchd.load()
        self.launchd.start()


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path)


def test_a_first_install_loads_the_agent_and_kicks_it(mac: Mac) -> None:
    assert mac.launchd.problem() is None
    assert mac.launchd.state().activity == "stopped"
    mac.install()
    assert mac.calls("enable", "bootstrap", "kickstart") == ["enable", "bootstrap", "kickstart"]
    state = mac.launchd.state()
    assert (state.activity, state.pid, state.restarts, state.enabled) == ("running", 4711, 0, True)
    assert mac.launchd.file.stat().st_mode & 0o777 == 0o600


def test_a_second_install_waits_until_the_first_has_gone(mac: Mac) -> None:
    mac.install()
    mac.tell("slow", 3)
    mac.install()
    assert mac.calls("bootstrap") == ["bootstrap"] * 2  # it never met the older one
    assert mac.launchd.state().pid == 4711


def test_input_output_errors_are_outlived(mac: Mac) -> None:
    mac.tell("errno-5", 4)
    mac.install()
    assert mac.calls("bootstrap") == ["bootstrap"] * 5


def test_one_that_never_ends_is_told_with_its_words(mac: Mac) -> None:
    mac.tell("errno-5", 100)
    with pytest.raises(ServiceError, match="attempt 6: Bootstrap failed: 5: Input/output error"):
        mac.install()


def test_an_agent_that_was_bootstrapped_by_somebody_else_is_replaced(mac: Mac) -> None:
    mac.install()
    genuine = Launchd("default", mac.environ, pause_s=0.0)
    attempts: list[None] = []

    def boot_out() -> None:
        attempts.append(None)
        if len(attempts) > 1:  # at the first, it was not there yet
            genuine._boot_out()

    mac.launchd._boot_out = boot_out
    mac.launchd.start()
    assert mac.calls("bootstrap") == ["bootstrap"] * 3
    assert len(attempts) == 2


def test_without_anybody_at_the_screen_it_says_so(mac: Mac) -> None:
    mac.tell("no-gui")
    problem = mac.launchd.problem()
    assert problem is not None
    assert problem.startswith("nobody is logged in at this computer's screen")
    with pytest.raises(ServiceError, match="attempt 1: Bootstrap failed: 125"):
        mac.install()


def test_doctor_is_told_only_where_a_service_is_installed(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    mac.tell("no-gui")
    assert manager_problem("default", mac.environ) == ""
    write(mac.launchd.file, mac.launchd.render(ANA))
    assert "logged in at this computer's screen" in manager_problem("default", mac.environ)
    (mac.memory / "no-gui").unlink()
    assert manager_problem("default", mac.environ) == ""
    mac.launchd.file.write_text("somebody else's")
    mac.tell("no-gui")
    assert manager_problem("default", mac.environ) == ""


def test_a_removal_waits_for_the_end_and_works_with_nobody_at_the_screen(mac: Mac) -> None:
    mac.install()
    mac.tell("slow", 3)
    mac.launchd.unload()
    assert mac.launchd.state().activity == "stopped"
    mac.launchd.unload()
    mac.tell("no-gui")
    mac.launchd.unload()


def test_the_person_s_own_variables_are_read_as_systemd_reads_them() -> None:
    text = '# mine\nA=1\n B = 2\nC=\'x y\'\nD="q"\n\nexport E=1\nF=a\\\nG=\nH="broken\n'
    assert envfile.parse(text) == {"A": "1", "C": "x y", "D": "q", "G": ""}
