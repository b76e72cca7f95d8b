"""The service under a real `systemd --user`, with a real backend and a fake coding agent."""

import json
import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from e2e.harness import Backend, running_backend
from fakes.installed import Installed
from faults.sizes import FULL
from service.machine import UID, Machine, until
from service.site import HASTE, NODE, UNIT, add_claude, override, site

pytestmark = pytest.mark.slow

LOGINCTL = """#!/bin/sh
case "$*" in *enable-linger*) touch /var/lib/systemd/linger/ana ;; esac
case "$*" in *disable-linger*) rm /var/lib/systemd/linger/ana ;; esac
"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Generator[Backend]:
    with running_backend(tmp_path_factory.mktemp("server")) as made:
        yield made


def rows(printed: str) -> dict[str, str]:
    """The rows of `install-service`, by their names; of several the first."""
    found = [line.split(None, 2) for line in printed.splitlines() if line[:1] in set("✓!✗")]
    return {name: f"{mark} {text}" for mark, name, text in reversed(found)}


def restarts(made: Machine, unit: str = UNIT) -> int:
    return int(made.show(unit, "NRestarts")["NRestarts"])


def connected(made: Machine, unit: str = UNIT) -> None:
    """Waits until the service says that it is connected."""
    until(
        lambda: made.show(unit, "StatusText")["StatusText"].startswith("connected"),
        f"{unit} is connected",
    )


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]


def test_a_message_is_answered_through_the_service_and_the_key_is_nowhere_but_in_its_file(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        override(made, f"{HASTE}LimitCORE=infinity\n")
        told = rows(here.install())
        assert told["unit"] == f"✓ ~/.config/systemd/user/{UNIT}"
        assert told["PATH"].endswith(f"(/bin/bash); claude → ~/{NODE}/claude")
        assert told["started"].startswith("✓ ready in ")
        assert f"connected to {here.backend.url} as {here.host_id}" in told["started"]
        assert told["runtime"] == f"✓ claude_code 2.1.197, logged in  (~/{NODE}/claude)"
        assert told["tools"].startswith("✓ an agent's tools start in ")
        assert told["backend"].startswith("✓ keeps a report in ")
        unit = made.home / ".config/systemd/user" / UNIT
        assert stat.S_IMODE(unit.stat().st_mode) == 0o600

        assert here.answered("@@variables\n@@reply done, ana", events)["text"] == "done, ana"
        shown = made.show(UNIT, "UnitFileState", "StatusText", "Environment", "Type", "ExecStart")
        assert (shown["UnitFileState"], shown["Type"]) == ("enabled", "notify")
        assert shown["StatusText"].startswith(f"connected to {here.backend.url} as {here.host_id}")
        variables = json.loads((made.home / "fake" / "variables.json").read_text())
        assert variables["PATH"].startswith(f"/home/ana/{NODE}:")
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "INVOCATION_ID"} & set(variables)

        # A crash of the hardest kind, which elsewhere leaves the memory on the disk.
        before = made.pid(UNIT)
        made.signal("ABRT", before)
        until(lambda: made.pid(UNIT) not in (0, before), "a restart after SIGABRT")
        connected(made)
        everything = [*shown.values(), *variables.values(), *map(str, made.processes().values())]
        everything.append(made.run("systemctl", "--user", "show", UNIT).stdout)
        assert not [text for text in everything if here.key in text]
        holders = [
            path.relative_to(made.home)
            for path in files_below(made.home)
            if not path.is_symlink() and here.key.encode() in path.read_bytes()
        ]
        assert holders == [Path(".cloudagent/daemon/config.json")]

        printed = made.daemon("uninstall-service").stdout
        assert "Kept: ~/.cloudagent/daemon" in printed
        assert made.processes() == {}
        left = files_below(made.home / ".config/systemd")
        assert left == [made.home / ".config/systemd/user" / f"{UNIT}.d" / "test.conf"]
        assert made.run("systemctl", "--user", "status", UNIT, check=False).returncode == 4
        assert (made.home / ".cloudagent/daemon/config.json").exists()
        assert "no service" in made.daemon("uninstall-service").stdout


def test_a_kill_is_followed_by_a_restart_and_what_was_running_gets_its_outcome(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        override(made, HASTE)
        here.install()
        sent = here.backend.send(here.agent_id, "@@gate a\n@@reply after all")
        here.reached("a")
        before = made.pid(UNIT)
        made.signal("KILL", before)
        here.open("a")
        assert events.reply(sent["conversation_id"])["text"] == "after all"
        assert events.delivery(sent["id"], "done")["outcome"] == "replied"
        assert here.backend.rungs(sent["id"]).count("replied") == 1
        assert made.pid(UNIT) != before
        assert restarts(made) == 1


@pytest.mark.timeout(300)
def test_a_hung_daemon_is_replaced_once_and_a_short_pause_is_forgiven(
    tmp_path: Path, backend: Backend
) -> None:
    """Rows 7 and 8 of the fault matrix; with a shorter watchdog, unless all is asked for."""
    pause_s, watchdog = (30, "") if FULL else (3, "WatchdogSec=6\n")
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        override(made, HASTE + watchdog)
        here.install()
        before = made.pid(UNIT)
        made.signal("STOP", before)
        made.run("sleep", f"{pause_s}", timeout_s=pause_s + 30)
        made.signal("CONT", before)
        assert here.answered("@@reply forgiven", events)["text"] == "forgiven"
        assert (made.pid(UNIT), restarts(made)) == (before, 0)

        made.signal("STOP", before)
        sent = here.backend.send(here.agent_id, "@@reply not lost")
        if FULL:
            until(lambda: made.pid(UNIT) not in (0, before), "the watchdog", 70)
        assert events.reply(sent["conversation_id"])["text"] == "not lost"
        assert made.pid(UNIT) != before
        assert restarts(made) == 1


def test_an_exit_code_says_whether_to_start_anew(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        here.install("--no-start")
        for code, again in ((0, True), (1, True), (75, True), (78, False)):
            line = f"/bin/sh -c 'echo >> /home/ana/fake/lives; exit {code}'"
            override(made, f"{HASTE}ExecStart=\nExecStart={line}\n")
            lives = made.write("fake/lives", "")
            made.run("systemctl", "--user", "daemon-reload")
            made.run("systemctl", "--user", "start", UNIT, check=False)
            if again:
                until(lambda file=lives: len(file.read_text()) > 2, f"a third life after {code}")
                made.run("systemctl", "--user", "stop", UNIT)
            else:
                shown = made.show(UNIT, "ActiveState", "ExecMainStatus")
                assert shown == {"ActiveState": "failed", "ExecMainStatus": "78"}
                assert len(lives.read_text()) == 1


def test_a_configuration_that_needs_a_person_keeps_the_service_down(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        override(made, HASTE)
        here.install()
        (made.home / ".cloudagent/daemon/config.json").chmod(0o644)
        made.signal("KILL", made.pid(UNIT))
        until(lambda: made.show(UNIT, "ActiveState")["ActiveState"] == "failed", "it gives up")
        shown = made.show(UNIT, "ExecMainStatus", "NRestarts")
        assert shown == {"ExecMainStatus": "78", "NRestarts": "1"}

        failed = made.daemon("install-service", check=False)
        assert failed.returncode == 78
        assert "may be known to others" in failed.stderr
        (made.home / ".cloudagent/daemon/config.json").chmod(0o600)
        assert rows(made.daemon("install-service").stdout)["started"].startswith("✓ ready in")


def test_a_stop_lets_running_work_finish_and_says_so(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        override(made, HASTE)
        here.install()
        sent = here.backend.send(here.agent_id, "@@gate a\n@@reply in time")
        here.reached("a")
        with made.begin("cloudagent-daemon", "stop") as stopping:
            until(
                lambda: made.show(UNIT, "StatusText")["StatusText"] == "draining: 1 still working",
                "it says that it drains",
            )
            here.open("a")
            assert events.reply(sent["conversation_id"])["text"] == "in time"
            output, _ = stopping.communicate(timeout=60)
        assert "starts again at the next login" in output
        until(lambda: made.show(UNIT, "ActiveState")["ActiveState"] == "inactive", "it has ended")
        assert made.processes() == {}


def test_an_upgrade_during_a_run_is_noticed_and_the_manager_starts_the_new_version(
    tmp_path: Path, backend: Backend
) -> None:
    """Row 41 of the fault matrix, as a service; tests/e2e/test_upgrade.py has the rest of it."""
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        override(made, HASTE)
        installed = Installed(made.home / "tool", seen_as=Path("/home/ana/tool"))
        words = ["install-service", "--server-url", here.backend.url, "--api-key-file", "-"]
        made.run("/home/ana/tool/bin/cloudagent-daemon", *words, stdin=here.key)
        before = made.pid(UNIT)
        sent = here.backend.send(here.agent_id, "@@gate a\n@@reply in time")
        here.reached("a")
        installed.remove()
        installed.add("0.3.1")
        until(
            lambda: made.show(UNIT, "StatusText")["StatusText"] == "draining: 1 still working",
            "it says that it drains",
        )
        assert made.show(UNIT, "ActiveState")["ActiveState"] == "active", "no clock of systemd runs"
        here.open("a")
        assert events.reply(sent["conversation_id"])["text"] == "in time"
        until(lambda: made.pid(UNIT) not in (0, before), "another life")
        assert here.answered("@@reply from the new one", events)["text"] == "from the new one"
        shown = here.backend.call("GET", f"/v1/host-machines/{here.host_id}")
        assert (shown["daemon_version"], shown["state"]) == ("0.3.1", "online")
        assert restarts(made) == 1
        assert here.backend.rungs(sent["id"]).count("started") == 1


def test_two_profiles_live_side_by_side_each_with_its_own_backend(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here, running_backend(tmp_path / "other") as other:
        made = here.machine
        host_id, key = other.create_host("mbp")
        agent_id = other.create_agent(host_id, driver="claude_code")
        here.install()
        words = ["--profile", "fr", "--server-url", other.url, "--api-key-file", "-"]
        made.daemon("install-service", *words, stdin=key)
        units = (UNIT, "cloudagent-daemon-fr.service")
        first, second = map(made.pid, units)
        assert 0 not in (first, second)
        for backend, agent in ((here.backend, here.agent_id), (other, agent_id)):
            with backend.follow() as events:
                sent = backend.send(agent, "@@env CLOUDAGENT_DAEMON_PROFILE")
                expected = "default" if backend is here.backend else "fr"
                assert events.reply(sent["conversation_id"])["text"] == expected
        made.daemon("uninstall-service")
        assert made.pid(units[1]) == second
        assert made.daemon("status", "--profile", "fr").returncode == 0


def test_a_second_install_changes_what_has_changed(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        here.install()
        before = made.pid(UNIT)
        assert "running already" in rows(made.daemon("install-service").stdout)["started"]
        assert made.pid(UNIT) == before

        sent = here.backend.send(here.agent_id, "@@gate a\n@@reply in time")
        here.reached("a")
        unit = made.home / ".config/systemd/user" / UNIT
        unit.write_text(unit.read_text().replace("0.3.0", "0.2.0"))
        with made.begin("cloudagent-daemon", "install-service") as upgrading:
            assert upgrading.stdout
            line = upgrading.stdout.readline()
            while "waiting for 1 running to finish" not in line:
                assert line
                line = upgrading.stdout.readline()
            here.open("a")
            assert "ready in" in upgrading.communicate(timeout=60)[0]
        assert events.reply(sent["conversation_id"])["text"] == "in time"
        assert made.pid(UNIT) != before


def test_a_new_version_of_node_needs_no_new_install(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        here.install()
        newer = NODE.replace("v22.1.0", "v24.0.0")
        add_claude(made.home, newer, "3.0.0")
        profile = made.home / ".bash_profile"
        profile.write_text(f'exec 2>&1; set -x\nexport PATH="$HOME/{newer}:$PATH"\nsleep 100 &\n')
        made.run("systemctl", "--user", "restart", UNIT)
        connected(made)
        runtime = rows(made.daemon("install-service").stdout)["runtime"]
        assert runtime == f"✓ claude_code 3.0.0, logged in  (~/{newer}/claude)"
        assert not [argv for argv in made.processes().values() if argv[0] == "sleep"]


def test_a_login_shell_that_hangs_costs_five_seconds_and_the_installed_path_is_used(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        here.install()
        (made.home / ".bash_profile").write_text("sleep 1000\n")
        made.run("systemctl", "--user", "restart", UNIT)
        connected(made)
        runtime = rows(made.daemon("install-service", check=False).stdout)["runtime"]
        assert "! claude_code: not found" in runtime


def test_logging_out_ends_the_service_and_logging_in_starts_it(
    tmp_path: Path, backend: Backend
) -> None:
    """Row 42 of the fault matrix, without lingering."""
    with site(tmp_path, backend) as here, here.backend.follow() as events:
        made = here.machine
        assert "! off" in rows(here.install())["linger"]
        assert "it stops when you log out" in made.daemon("doctor").stdout
        made.log_out()
        assert made.processes() == {}
        sent = here.backend.send(here.agent_id, "@@reply good morning")
        made.log_in()
        assert events.reply(sent["conversation_id"])["text"] == "good morning"


def test_lingering_that_we_turned_on_is_turned_off_with_the_last_service(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        made.write("bin/loginctl", LOGINCTL, 0o755)
        made.as_root("chown", str(UID), "/var/lib/systemd/linger")
        env = {"PATH": f"/home/ana/bin:{made.path}"}
        assert rows(here.install(env=env))["linger"].startswith("✓ on")
        words = ["--profile", "fr", "--no-start"]
        here.install(*words, env=env)
        there = ["test", "-e", "/var/lib/systemd/linger/ana"]
        assert "linger" not in rows(made.daemon("uninstall-service", env=env).stdout)
        made.run(*there)
        last = made.daemon("uninstall-service", "--profile", "fr", env=env).stdout
        assert rows(last)["linger"].startswith("✓ off again")
        assert made.run(*there, check=False).returncode == 1


def test_lingering_that_somebody_else_wanted_stays(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        made.as_root("touch", "/var/lib/systemd/linger/ana")
        assert rows(here.install("--no-start"))["linger"].startswith("✓ on")
        assert "linger" not in rows(made.daemon("uninstall-service").stdout)


def test_what_cannot_be_installed_changes_nothing_and_says_what_to_do(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        refused = made.daemon("install-service", check=False)
        assert refused.returncode == 4
        assert "next: cloudagent-daemon login --server URL" in refused.stderr
        lonely = made.daemon("install-service", "--server-url", here.backend.url, check=False)
        assert lonely.returncode == 2

        for foreign in ("[Service]\nExecStart=/bin/true\n", ""):
            unit = made.write(f".config/systemd/user/{UNIT}", foreign)
            refused = made.daemon("install-service", check=False)
            assert refused.returncode == 6
            assert f"mv /home/ana/.config/systemd/user/{UNIT}" in refused.stderr
            assert made.daemon("uninstall-service", check=False).returncode == 6
            assert unit.read_text() == foreign
        unit.unlink()

        nobody = {"XDG_RUNTIME_DIR": "/nonexistent"}
        refused = made.daemon("install-service", env=nobody, check=False)
        assert refused.returncode == 1
        assert "no systemd here that could run a service of yours" in refused.stderr
        assert "next: cloudagent-daemon start --background" in refused.stderr
        assert not unit.exists()


def test_a_daemon_in_a_terminal_is_not_pushed_aside(tmp_path: Path, backend: Backend) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        login = ["login", "--server", here.backend.url, "--api-key-file", "-"]
        made.daemon(*login, stdin=here.key)
        with made.begin("cloudagent-daemon", "start") as terminal:
            assert terminal.stdout
            while "Serving" not in terminal.stdout.readline():
                pass
            refused = made.daemon("install-service", check=False)
            assert refused.returncode == 6
            assert "is not the service" in refused.stderr
            made.daemon("install-service", "--no-start")
            made.run("systemctl", "--user", "start", UNIT)
            status = made.show(UNIT, "StatusText")["StatusText"]
            assert status.startswith("waiting: pid ")
            made.daemon("stop")
            terminal.communicate(timeout=60)
        connected(made)
        refused = made.daemon("start", check=False)
        assert refused.returncode == 6
        assert "The service is already running profile default" in refused.stderr


def test_a_service_that_does_not_start_shows_its_last_words(
    tmp_path: Path, backend: Backend
) -> None:
    with site(tmp_path, backend) as here:
        made = here.machine
        override(made, f"{HASTE}ExecStart=\nExecStart=/bin/false\n")
        failed = made.daemon(
            "install-service",
            *("--server-url", here.backend.url, "--api-key-file", "-"),
            stdin=here.key,
            check=False,
        )
        assert failed.returncode == 1
        assert "The service does not start" in failed.stderr
        assert "exit code 1" in failed.stderr
        assert f"next: systemctl --user status {UNIT}" in failed.stderr
