"""A machine on which somebody called ana is logged in, with a real `systemd --user` of her own.

Needs root; makes and leaves nothing outside of its own namespaces (user-manager.sh).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("user-manager.sh")
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
USER, UID = "ana", 47_110
DEADLINE_S = 60.0
POLL_S = 0.05


class Machine:
    """The machine, seen from outside of its namespaces.

    `home` is what is /home/ana inside, `path` the PATH of ana's terminal.
    """

    path = f"{BIN}:/usr/local/bin:/usr/bin:/bin"

    def __init__(self, folder: Path, process: "subprocess.Popen[str]") -> None:
        self.folder = folder
        self.home = folder / "home"
        self._process = process
        self.init = 0

    def log_in(self) -> None:
        answer = self._order("login")
        assert answer == "running", answer

    def log_out(self) -> None:
        assert self._order("logout") == "gone"

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str = "",
        env: dict[str, str] | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command as ana, in an environment like that of a terminal."""
        done = subprocess.run(
            self._inside(list(argv), env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def daemon(self, *words: str, **how: Any) -> "subprocess.CompletedProcess[str]":
        """Runs `cloudagent-daemon` as ana; further arguments as those of `run`."""
        return self.run(str(BIN / "cloudagent-daemon"), *words, **how)

    def as_root(self, *argv: str) -> None:
        """What an administrator of this machine does."""
        subprocess.run([*self._enter(), *argv], check=True, timeout=DEADLINE_S)

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        """A file of ana's, by its path below her home."""
        file = self.home / path
        missing = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        for made in (*missing, file):
            os.chown(made, UID, UID)
        return file

    def begin(self, *argv: str) -> "subprocess.Popen[str]":
        """As `run`, without waiting."""
        return subprocess.Popen(
            self._inside(list(argv), {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def show(self, unit: str, *names: str) -> dict[str, str]:
        out = self.run("systemctl", "--user", "show", unit, f"-p{','.join(names)}").stdout
        return dict(line.split("=", 1) for line in out.splitlines())

    def pid(self, unit: str) -> int:
        """The main process of a unit, as it is called in here."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def signal(self, name: str, pid: int) -> None:
        self.run("kill", f"-{name}", str(pid))

    def processes(self) -> dict[int, list[str]]:
        """What ana runs besides her manager: process ids as they are in here, and argument lists."""
        inside = Path(f"/proc/{self.init}/ns/pid").readlink()
        found: dict[int, list[str]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if entry.stat().st_uid == UID and (entry / "ns/pid").readlink() == inside:
                    argv = (entry / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
                    numbers = (entry / "status").read_text().partition("NSpid:")[2].split("\n")[0]
                    found[int(numbers.split()[-1])] = argv
            except OSError:
                continue  # it has just ended
        manager = ("/lib/systemd/systemd", "(sd-pam)", "/usr/bin/dbus-daemon", "")
        return {pid: argv for pid, argv in found.items() if argv[0] not in manager}

    def _inside(self, argv: list[str], env: dict[str, str]) -> list[str]:
        variables = {
            "HOME": f"/home/{USER}",
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": self.path,
            "XDG_RUNTIME_DIR": f"/run/user/{UID}",
            **env,
        }
        return [
            *self._enter(),
            *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"),
            *(
                "env",
                "-i",
                f"--chdir=/home/{USER}",
                *(f"{name}={value}" for name, value in variables.items()),
            ),
            *argv,
        ]

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.init), "--mount", "--pid", "--"]

    def _order(self, word: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")


def until(reached: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits for something that nobody announces."""
    end = time.monotonic() + deadline_s
    while not reached():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(POLL_S)


@contextmanager
def machine(
    folder: Path, prepare: Callable[[Path], None] = lambda home: None
) -> Generator[Machine]:
    """A machine with ana logged in, and her home in `folder`/home, filled by `prepare`."""
    if os.geteuid() != 0 or sys.platform != "linux":
        if os.environ.get("CI"):
            pytest.fail("the service's tests need root on Linux, for a systemd of their own")
        pytest.skip("needs root on Linux, for a systemd of its own")
    (folder / "home").mkdir(parents=True)
    prepare(folder / "home")
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix), ROOT}
    argv = [str(SCRIPT), str(folder), USER, str(UID), *map(str, sorted(needed))]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        made = Machine(folder, process)
        try:
            made.log_in()
            made.init = _child_of(_child_of(process.pid))
            yield made
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(DEADLINE_S)


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])
