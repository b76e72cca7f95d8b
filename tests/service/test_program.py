"""Which command a service starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloudagent_daemon.service import program


@pytest.mark.parametrize(
    ("prefix", "vanishes"),
    [
        ("/home/ana/.cache/uv/archive-v0/8Gx2/", True),
        ("/home/ana/.cache/pipx/af31", True),
        ("/home/ana/.local/share/uv/tools/cloudagent-daemon", False),
        ("/home/ana/archive-v0-of-mine/.venv", False),
        ("/usr", False),
    ],
)
def test_a_cache_is_no_place_for_a_service(prefix: str, vanishes: bool) -> None:
    assert program.may_vanish(Path(prefix)) is vanishes


def test_the_command_is_the_one_of_this_environment() -> None:
    assert program.current() == Path(sys.prefix) / "bin" / "cloudagent-daemon"


def test_an_installation_that_does_not_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(program.ProgramError, match="no uv on PATH"):
        program.install({"PATH": str(tmp_path)})
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 3\n")
    uv.chmod(0o755)
    with pytest.raises(program.ProgramError, match="uv tool install cloudagent-daemon=="):
        program.install({"PATH": str(tmp_path)})


def test_windows_is_told_what_to_do_instead() -> None:
    code = "import sys; sys.platform = 'win32'; from cloudagent_daemon.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("  next: wsl --install")
